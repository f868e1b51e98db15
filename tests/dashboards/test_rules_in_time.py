"""When alerts fire and when they do not, as `promtool test rules` computes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_kit import OPTIONS, a_tier
from promtool_kit import ALIVE, Scene, check, counter, steady, tenant_events, tier_events

from gateway.slo_rules import Alert
from gateway.slo_rules_health import health_groups

P95, P99, ALL = a_tier("free", "0.95", 1), a_tier("premium", "0.99"), a_tier("perfect", "1", 2)
H = 60
FAST, SLOW, SPENT = "TiergateBurnFast", "TiergateBurnSlow", "TiergateBudgetSpent"


def after_six_good_hours(tier: str, bad: float, objective: str = "ttft") -> Scene:
    """A hundred requests a minute, first all good, then an hour with so many bad ones."""
    length = 7 * H
    return Scene(
        tier_events(tier, objective, counter((length, 100)), counter((6 * H, 0), (H, bad))),
        {},
    )


@pytest.mark.parametrize(
    ("tier", "below", "above"),
    # 5 times 5 %, and 14.4 times 1 %: just below, and just above.
    [(P95, 24.5, 25.5), (P99, 14, 15)],
    ids=["p95", "p99"],
)
def test_a_page_at_the_edge_of_the_fast_factor(
    tmp_path: Path, tier: object, below: float, above: float
) -> None:
    assert tier in (P95, P99)
    chosen = P95 if tier is P95 else P99
    calm, alarm = (after_six_good_hours(chosen.name, bad) for bad in (below, above))
    fires = {(FAST, chosen.name, "ttft")}
    check(
        tmp_path,
        [chosen],
        [
            Scene(calm.series, {6 * H: set(), 7 * H: set()}, only=FAST),
            Scene(alarm.series, {6 * H: set(), 7 * H: fires}, only=FAST),
        ],
    )


def test_a_page_ends_when_the_short_window_is_good_again(tmp_path: Path) -> None:
    """The hour is still bad, but nothing more is happening."""
    bad = counter((6 * H, 0), (H, 80), (10, 0))
    series = tier_events("free", "all", counter((7 * H + 10, 100)), bad)
    page = (FAST, "free", "all")
    check(
        tmp_path,
        [P95],
        [Scene(series, {7 * H: {page}, 7 * H + 2: {page}, 7 * H + 8: set()}, only=FAST)],
    )


def test_a_slow_burn_is_a_ticket_and_no_page(tmp_path: Path) -> None:
    """Bad requests of 1.5 times the budget: 7.5 % of a p95's, over three days."""
    days = 3 * 24 * H // 5  # every sample stands for five minutes, or promtool takes long
    series = tier_events("free", "all", counter((days, 100)), counter((days, 7.5)))
    check(
        tmp_path,
        [P95],
        [Scene(series, {days: {(SLOW, "free", "all"), (SPENT, "free", "all")}})],
    )


def test_with_little_traffic_a_few_bad_requests_are_no_alert_and_ten_are(tmp_path: Path) -> None:
    """Eight of eight within the hour stay silent; one every five minutes does not."""
    few = tier_events("premium", "ttft", counter((8, 1), (52, 0)), counter((8, 1), (52, 0)))
    many = tier_events(
        "premium", "ttft", counter(*[(1, 1), (4, 0)] * 14), counter(*[(1, 1), (4, 0)] * 14)
    )
    check(
        tmp_path,
        [P99],
        [
            Scene(few, {minute: set() for minute in (5, 10, 30, 60)}),
            Scene(many, {40: set(), 70: {
                (FAST, "premium", "ttft"), (SLOW, "premium", "ttft"), (SPENT, "premium", "ttft"),
            }}),
        ],
    )  # fmt: skip


def test_no_traffic_is_no_value_and_no_alert(tmp_path: Path) -> None:
    """Nothing divided by nothing would be NaN on every board."""
    series = tier_events("premium", "all", steady(500, 2 * H), steady(400, 2 * H))
    share = 'sum(slo:sli_error:ratio_rate5m{sloth_slo="premium-all"})'
    check(tmp_path, [P99], [Scene(series, {2 * H: set()}, ((share, 2 * H, None),))])


def test_a_restart_of_the_gateway_is_no_alert(tmp_path: Path) -> None:
    """Counters that fall to zero count from zero."""
    asked = counter((H, 100)) + counter((H, 100))
    bad = counter((H, 0.5)) + counter((H, 0.5))
    check(tmp_path, [P99], [Scene(tier_events("premium", "all", asked, bad), {2 * H: set()})])


def test_a_promise_of_everything_alerts_at_its_first_break_and_pages_at_ten(tmp_path: Path) -> None:
    one = tier_events("perfect", "ttft", counter((2 * H, 10)), counter((H, 0), (1, 1), (59, 0)))
    more = tier_events("perfect", "ttft", counter((2 * H, 10)), counter((H, 0), (H, 1)))
    ticket, page = (SLOW, "perfect", "ttft"), (FAST, "perfect", "ttft")
    check(
        tmp_path,
        [ALL],
        [
            Scene(one, {H: set(), 2 * H: {ticket}}),
            Scene(more, {H: set(), H + 5: {ticket}, 2 * H: {ticket, page}}),
        ],
    )


def test_shares_burns_and_budgets_are_those_one_computes_by_hand(tmp_path: Path) -> None:
    """3 of 100 bad: 60 % of a p95's budget burnt, 40 % left."""
    series = tier_events("free", "tbt", counter((2 * H, 100)), counter((2 * H, 3)))
    of = '{sloth_slo="free-tbt"}'
    check(
        tmp_path,
        [P95],
        [
            Scene(
                series,
                {2 * H: set()},
                (
                    (f"sum(slo:sli_error:ratio_rate5m{of})", 2 * H, 0.03),
                    (f"sum(slo:sli_error:ratio_rate30d{of})", 2 * H, 0.03),
                    (f"sum(slo:objective:ratio{of})", 2 * H, 0.95),
                    (f"sum(slo:error_budget:ratio{of})", 2 * H, 0.05),
                    (f"sum(slo:current_burn_rate:ratio{of})", 2 * H, 0.6),
                    (f"sum(slo:period_error_budget_remaining:ratio{of})", 2 * H, 0.4),
                ),
            )
        ],
    )


BOTH = ("all", "availability")
FAILING, MISSING = "TiergateTenantFailing", "TiergateTenantMissing"


def test_an_all_failing_tenant_alerts_and_others_do_not(tmp_path: Path) -> None:
    """All failures of the first may lie in the first sample: there is no increase to see."""
    half_hour = 30
    series = {
        **tenant_events("dead", [None] * 5 + [12.0] * 20, [None] * 5 + [12.0] * 20,
                        objectives=BOTH),
        **tenant_events("idle", steady(400, half_hour), steady(400, half_hour), objectives=BOTH),
        **tenant_events("good", counter((half_hour, 5)), counter((half_hour, 0)), objectives=BOTH),
        **tenant_events("half", counter((half_hour, 6)), counter((half_hour, 3)), objectives=BOTH),
        **tenant_events("seldom", [None] * 5 + [3.0] * 20, [None] * 5 + [3.0] * 20,
                        objectives=BOTH),
    }  # fmt: skip
    dead = {(FAILING, "free", "availability")}
    check(tmp_path, [P95], [Scene(series, {4: set(), 5: set(), 6: dead, 15: dead, 29: dead})])


def after_a_gap(values: list[float | None], begin: int = H) -> list[float | None]:
    """Nobody scraped for eight minutes; a sample is looked back to for five."""
    return [*values[:begin], *steady(None, 8), *values[begin + 8 :]]


def test_what_a_tenant_failed_long_ago_does_not_come_back(tmp_path: Path) -> None:
    """A series that was there before nobody scraped is not new, at any time after.

    Nor is what a Prometheus sees first that has only just begun, beside a gateway that has run for
    long; nor after an hour without it.
    """
    length = 8 * H
    past = tenant_events(
        "past", counter((length, 0.05), start=1000), steady(1000, length + 1), objectives=BOTH
    )
    gap = {name: after_a_gap(list(values)) for name, values in past.items()}
    one, other = (ALIVE.replace("}", f',worker="{number}"}}') for number in (1, 2))
    at_one_worker = {name.replace("}", ',worker="1"}'): values for name, values in gap.items()}
    alive = steady(1, length + 1)
    hours = {
        name: [*values[:30], *steady(None, 90), *values[120:]] for name, values in past.items()
    }
    quiet: dict[int, set[tuple[str, str, str]]] = {
        minute: set()
        for begin in (0, H, H + 15, 2 * H, 2 * H + 15, 7 * H)
        for minute in range(begin, begin + 16, 2)
    }
    check(
        tmp_path,
        [P95],
        [
            Scene(past, quiet),
            Scene(gap | {ALIVE: after_a_gap(alive)}, quiet),
            Scene(at_one_worker | {one: after_a_gap(alive), other: alive}, quiet),
            Scene(hours | {ALIVE: [*steady(1, 30), *steady(None, 90), *steady(1, 361)]}, {
                minute: found for minute, found in quiet.items() if minute not in range(30, 120)
            }),
        ],
    )  # fmt: skip


def test_a_tenant_that_fails_all_after_a_gap_or_a_restart_alerts(tmp_path: Path) -> None:
    """It came after the first scrape, or its process was another then."""
    late = tenant_events("late", *[[*steady(None, H + 10), *steady(12, 20)]] * 2, objectives=BOTH)
    back = tenant_events(
        "back", *[[*counter((20, 0)), *steady(None, 50), *steady(12, 20)]] * 2, objectives=BOTH
    )
    alive = {ALIVE: after_a_gap(steady(1, 100))}
    page = {(FAILING, "free", "availability")}
    check(
        tmp_path,
        [P95],
        [
            Scene(late | alive, {H + 9: set(), H + 12: page, H + 25: page}),
            Scene(back | alive, {H + 9: set(), H + 13: page, H + 25: page}),
        ],
    )


def test_an_idle_tenant_is_silent_though_its_past_was_bad(tmp_path: Path) -> None:
    """Seven hours after its last request nothing is left of it in any window."""
    length = 7 * H
    series = tenant_events(
        "idle", counter((20, 5), (length, 0)), counter((20, 5), (length, 0)), objectives=BOTH
    )
    check(
        tmp_path,
        [P95],
        [Scene(series, {15: {(FAILING, "free", "availability")}, 20 + length - 10: set()})],
    )


def test_workers_and_gateways_of_a_job_are_one_tier(tmp_path: Path) -> None:
    """Six bad requests at each of three series are eighteen of the tier; another job is another."""
    asked, bad = counter((H, 1)), counter((H - 6, 0), (6, 1))
    series = tier_events("premium", "ttft", asked, bad)
    parts = {
        name.replace('instance="g:8000"', more): values
        for more in (
            'instance="g:8000",worker="1"',
            'instance="g:8000",worker="2"',
            'instance="other:8000"',
        )
        for name, values in series.items()
    }
    staging = {name.replace('job="tiergate"', 'job="staging"'): v for name, v in parts.items()}
    one = {name.replace("g:8000", "alone:8000"): values for name, values in series.items()}
    page = {(FAST, "premium", "ttft")}
    check(
        tmp_path,
        [P99],
        [
            Scene(parts, {H: page}, only=FAST),
            Scene(one, {H: set()}, only=FAST),
            Scene(one | staging, {H: set()}, only=FAST),
        ],
    )


def test_a_slow_tenant_is_found_by_its_fifth_failure(tmp_path: Path) -> None:
    every_half_hour = counter(*[(1, 1), (29, 0)] * 8)
    series = tenant_events("slow", every_half_hour, every_half_hour, objectives=BOTH)
    check(tmp_path, [P95], [Scene(series, {90: set(), 200: {(FAILING, "free", "availability")}})])


def test_a_tenant_that_is_answered_late_is_a_ticket(tmp_path: Path) -> None:
    asked = counter((20, 5))
    series = {
        **tenant_events("late", asked, asked, objectives=("all",)),
        **tenant_events("late", asked, counter((20, 0)), objectives=("availability",)),
    }
    check(tmp_path, [P95], [Scene(series, {15: {(MISSING, "free", "all")}})])


def test_where_many_tenants_fail_one_alert_says_so(tmp_path: Path) -> None:
    asked = counter((20, 5))
    series: dict[str, list[float | None]] = {}
    for number in range(25):
        series |= tenant_events(f"t{number}", asked, asked, objectives=BOTH)  # type: ignore[arg-type]
    check(tmp_path, [P95], [Scene(series, {15: {("TiergateManyTenantsFailing", "", "")}})])


GATEWAY = 'job="tiergate",instance="g:8000"'


def test_what_waits_on_a_disk_is_counted_once(tmp_path: Path) -> None:
    """Each worker shows what all of them have there."""
    (rule,) = [
        rule
        for group in health_groups(OPTIONS)
        for rule in group.rules
        if isinstance(rule, Alert) and rule.alert == "TiergateUsageSpooled"
    ]
    series = {
        f'tiergate_usage_backlog{{{GATEWAY},worker="{worker}",tiergate_state="spooled_bytes"}}': (
            steady(4096, 15)
        )
        for worker in range(3)
    }
    told = one_alert("TiergateUsageSpooled")
    check(tmp_path, [P95], [Scene(series, {14: told}, ((f"sum({rule.expr})", 14, 4096),))])


def one_alert(name: str, tier: str = "") -> set[tuple[str, str, str]]:
    return {(name, tier, "")}


def test_engine_records_and_silence(tmp_path: Path) -> None:
    """Each condition of the gateway itself fires after its time; a healthy gateway is silent."""
    quiet: set[tuple[str, str, str]] = set()
    up, name = f"tiergate_engine_up{{{GATEWAY}}}", "tiergate_usage_records_total"
    waiting = f'tiergate_engine_requests{{{GATEWAY},tiergate_state="waiting"}}'
    computed = f"tiergate_engine_computed_tokens_total{{{GATEWAY}}}"
    busy = {waiting: steady(3, 20)}
    scenes = [
        Scene({up: steady(1, 20)}, {15: quiet}),
        Scene({up: [1, 1, 0, 0, 0, 0]}, {1: quiet, 5: one_alert("TiergateEngineDown")}),
        Scene({f'{up[:-1]},worker="1"}}': [0.0] * 9, f'{up[:-1]},worker="2"}}': [1.0] * 9,
               up: [None] * 9}, {8: quiet}),
        Scene({**busy, computed: counter((19, 50))}, {15: quiet}),
        Scene({**busy, computed: steady(900, 20)}, {15: one_alert("TiergateEngineStalled")}),
        Scene({waiting: steady(0, 20), computed: steady(900, 20)}, {15: quiet}),
        Scene({f"tiergate_engine_restarts_total{{{GATEWAY}}}": counter((5, 0), (4, 1), (5, 0))},
              {5: quiet, 12: one_alert("TiergateEngineRestarting")}),
        Scene({f'{name}{{{GATEWAY},tiergate_state="lost"}}': counter((5, 0), (1, 4), (9, 0))},
              {5: quiet, 8: one_alert("TiergateUsageLost")}),
        Scene({f'{name}{{{GATEWAY},tiergate_state="written"}}': counter((15, 400))}, {15: quiet}),
        Scene({f'tiergate_usage_backlog{{{GATEWAY},tiergate_state="spooled_bytes"}}':
               steady(4096, 20)}, {5: quiet, 15: one_alert("TiergateUsageSpooled")}),
        Scene({f'tiergate_requests_total{{{GATEWAY},tiergate_outcome="ledger_unavailable"}}':
               counter((3, 0), (6, 3), (10, 0))},
              {3: quiet, 8: one_alert("TiergateKeysUnchecked"), 18: quiet}),
        Scene({f"tiergate_limits_store_up{{{GATEWAY}}}": steady(0, 9)},
              {1: quiet, 5: one_alert("TiergateLimitsAway")}),
        Scene({f"tiergate_limits_lost_total{{{GATEWAY}}}": counter((3, 0), (1, 2), (5, 0))},
              {3: quiet, 6: one_alert("TiergateLimitsLost")}),
        Scene({f'tiergate_telemetry_items_total{{{GATEWAY},tiergate_state="dropped"}}':
               counter((3, 0), (17, 9))}, {10: quiet, 19: one_alert("TiergateTelemetryDropped")}),
        Scene({up: [1.0] * 3 + [None] * 12}, {2: quiet, 14: one_alert("TiergateSilent")}),
        Scene({f"up{{{GATEWAY}}}": [1, 0, 0, 0, 0]},
              {1: quiet, 4: one_alert("TiergateInstanceSilent")}),
        Scene({f'tiergate_slo_requests_total{{{GATEWAY},otel_metric_overflow="true"}}':
               counter((5, 9))}, {3: one_alert("TiergateSeriesOverflow")}),
        Scene({f'tiergate_slo_threshold_seconds{{{GATEWAY},tiergate_tier="{tier}"}}': steady(1, 15)
               for tier in ("free", "new")}
              | tier_events("free", "all", steady(0, 15), steady(0, 15)),
              {5: quiet, 14: one_alert("TiergateTierWithoutRules", "new")}),
    ]  # fmt: skip
    check(tmp_path, [P95], scenes)
