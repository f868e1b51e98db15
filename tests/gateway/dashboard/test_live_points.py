"""Dots, samples and looks of live pages: each request once, rates from totals, streams bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.stats import Snapshot
from gateway.dashboard.live import MOST_OF_ONE, MOST_STREAMS, Live, event
from gateway.dashboard.points import in_order, newest_dots, samples_of, summaries, tier_lines
from tenants.slo import Outcome, SloRecord
from tenants.values import Overload, TierRecord

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
RECORD = SloRecord(
    id="a", request_id="r", tenant_id="t", key_id="k", model="m", operation="chat",
    tier_asked="premium", tier="premium", tier_version=1, arrival=NOW, outcome=Outcome.COMPLETED,
    reason="", stream=True, prompt_tokens=1, output_tokens=2, total_ns=2 * NS_PER_S, queue_ns=0,
    ttft_ns=250 * NS_PER_MS, ttft_due_ns=500 * NS_PER_MS, gaps=1, late_gaps=0,
    tbt_ns=100 * NS_PER_MS, tbt_mode="gap", needed_tbt_ns=120 * NS_PER_MS, draw=0, met=False,
    ttft_met=True, tbt_met=False, available=True,
)  # fmt: skip
SNAPSHOT = Snapshot(1, 0, 2, 3, 1, 40, 60, 100, waiting_by_tier=(("free", 2),))


def test_a_dot_is_the_share_of_the_promise_that_a_request_took() -> None:
    (dot,) = newest_dots(deque([RECORD]), 1)
    assert dot == [NOW.timestamp() * 1000 + 2000, "premium", 50.0, 120.0, False]
    (single,) = newest_dots(deque([replace(RECORD, needed_tbt_ns=None)]), 1)
    assert single[3] is None


def test_only_the_new_ones_are_read_and_refusals_have_no_dot() -> None:
    latest = deque(replace(RECORD, id=str(n)) for n in range(5))
    latest.append(replace(RECORD, ttft_ns=None))
    assert len(newest_dots(latest, 3)) == 2
    assert len(newest_dots(latest, 100)) == 5
    assert newest_dots(latest, 0) == []


def test_samples_are_rates_between_neighbours_and_another_engine_is_skipped() -> None:
    later = replace(SNAPSHOT, output_tokens_total=50, submitted_total=9, free_blocks=25)
    other = replace(SNAPSHOT, submitted_total=1)
    history = [(0, SNAPSHOT), (2 * NS_PER_S, later), (3 * NS_PER_S, other)]
    (sample,) = samples_of(history, 3 * NS_PER_S, NOW)
    assert sample["out"] == 25.0
    assert sample["t"] == round((NOW - timedelta(seconds=1)).timestamp() * 1000)
    assert sample["waiting"] == {"free": 2}
    assert (sample["kv"], sample["host"]) == (75.0, 0.0)


def test_a_summary_counts_who_was_late() -> None:
    dots = [[0.0, "premium", float(share), None, True] for share in range(1, 201)]
    first, second = summaries(dots, ("premium", "free"), 2)
    assert (first.num, first.late, first.worst) == (200, 100, 200.0)
    assert (first.median, first.high) == (101.0, 191.0)
    assert (second.num, second.median, second.worst) == (0, None, None)
    assert summaries(dots, ("premium",), 3)[0].num == 0


def test_an_event_keeps_its_lines() -> None:
    assert event("a\nb", "points") == "event: points\ndata: a\ndata: b\n\n"
    assert event("a") == "data: a\n\n"


def test_streams_are_bounded_for_one_and_for_all() -> None:
    live = Live(None)  # type: ignore[arg-type]
    assert [live.enter("ann") for _ in range(MOST_OF_ONE + 1)] == [True] * MOST_OF_ONE + [False]
    live.leave("ann")
    assert live.enter("ann")
    others = [live.enter(f"user {n}") for n in range(MOST_STREAMS)]
    assert sum(others) == MOST_STREAMS - MOST_OF_ONE
    assert len(live) == MOST_STREAMS


def test_a_tier_has_one_place_and_so_one_colour_whatever_a_chart_draws() -> None:
    """By rank, as the overview has it; one that is gone stands behind all."""
    first = TierRecord(
        "premium", 1, 500, 0, 100, "gap", 0, 0.99, 4.0, None, None, Overload.QUEUE, 1
    )
    tiers = [replace(first, name="free", rank=1), replace(first, rank=0)]
    assert in_order(tiers) == ("premium", "free")
    for names in (("free",), ("free", "gone", "premium")):
        chart = {"x": [1], "lines": [{"label": name, "values": [1]} for name in names]}
        found = tier_lines(tiers, chart)
        places = {line["label"]: line["place"] for line in found["lines"]}
        assert places == {n: p for n, p in (("free", 1), ("gone", 2), ("premium", 0)) if n in names}
        assert found["x"] == [1]
