"""What Prometheus computes of the gateway's own counters is what one computes by hand."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_kit import OPTIONS, Prometheus, a_tier, program, prometheus, wait_until

from gateway.slo_rules import slos_of
from gateway.slo_rules_text import rules_text
from gateway.telemetry import AnswerRecord, Telemetry
from tenants.slo import Budget, Objective, Outcome, Verdict, is_steady, judge
from tenants.values import TierRecord

TIERS = [a_tier("premium", "0.99"), a_tier("free", "0.95", 1, ttft_ms="2000"),
         a_tier("perfect", "1", 2)]  # fmt: skip
REQUESTS = 10_000


@contextmanager
def exporter(telemetry: Telemetry) -> Iterator[str]:
    """Serve a gateway's metrics and nothing else; yields HOST:PORT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = telemetry.expose()
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def some_verdict(chance: random.Random) -> Verdict:
    """Return what became of a request: the real judge's word on one of every kind."""
    outcome = chance.choices(
        list(Outcome), weights=[80 if one is Outcome.COMPLETED else 2 for one in Outcome]
    )[0]
    has_token = outcome is Outcome.COMPLETED or chance.random() < 0.4
    gaps = chance.randint(0, 300) if has_token else 0
    return judge(
        outcome,
        ttft_ns=chance.randint(1, 1050) if has_token else None,
        ttft_due_ns=1000,
        total_ns=2000,
        is_steady=is_steady(gaps, min(gaps, chance.choice((0, 0, 0, 0, 1, 3)))),
    )


def answer(tier: str, tenant: str, verdict: Verdict) -> AnswerRecord:
    return AnswerRecord(
        operation="chat", model="m", tier=tier, tenant_id=tenant, outcome="ok",
        duration_ns=10**9, verdict=verdict,
    )  # fmt: skip


# Series, and how many there are of three tiers; one of them has no budget to burn.
ASKED = {
    "slo:sli_error:ratio_rate5m": 12,
    "slo:sli_error:ratio_rate1h": 12,
    "slo:sli_error:ratio_rate30d": 12,
    "slo:current_burn_rate:ratio": 8,
    "slo:period_burn_rate:ratio": 8,
    "slo:period_error_budget_remaining:ratio": 8,
}


def settled(server: Prometheus, number: int) -> None:
    """Wait until Prometheus knows of so many, and every rule has been evaluated after that."""
    known = 'sum(tiergate_tier_slo_requests_total{tiergate_slo_objective="all"})'
    wait_until(lambda: server.number(known) == number, f"{number} requests are scraped")
    now = server.number("time()") or 0.0

    def evaluated() -> bool:
        for name, count in ASKED.items():
            times = [float(s["value"][1]) for s in server.query(f"timestamp({name})")]
            if len(times) != count or min(times) <= now:
                return False
        return True

    wait_until(evaluated, "the rules have seen them")


@pytest.mark.slow
def test_ten_thousand_requests_of_known_outcome(tmp_path: Path) -> None:
    """Counts are equal; shares, burns and budgets are, up to the last bits of a float."""
    program("prometheus")
    chance, telemetry = random.Random(20261122), Telemetry(TIERS)
    made = [
        (chance.choice(TIERS).name, f"t{chance.randrange(7)}", some_verdict(chance))
        for _ in range(REQUESTS)
    ]
    rules = rules_text(TIERS, OPTIONS).replace('interval: "2m"', 'interval: "500ms"')
    with (
        exporter(telemetry) as target,
        prometheus(tmp_path / "prometheus", target, rules) as server,
    ):
        # The counters begin at zero, and Prometheus has seen it: so it misses none.
        wait_until(lambda: server.query("tiergate_tier_slo_requests_total"), "a first scrape")
        for tier, tenant, verdict in made:
            telemetry.answered(answer(tier, tenant, verdict))
        counted = sum(verdict.met is not None for _, _, verdict in made)
        settled(server, counted)
        for slo in slos_of(TIERS):
            mine = [v.of(slo.objective) for tier, _, v in made if tier == slo.tier]
            judged = [kept for kept in mine if kept is not None]
            budget = Budget(len(judged), judged.count(False), slo.target)
            assert budget.counted > 2000
            labels = (
                f'{{tiergate_tier="{slo.tier}",tiergate_slo_objective="{slo.objective.value}"}}'
            )
            of = f'{{sloth_id="{slo.id}"}}'
            assert server.number(f"tiergate_tier_slo_requests_total{labels}") == budget.counted
            assert server.number(f"tiergate_tier_slo_violations_total{labels}") == budget.bad
            for window in ("5m", "1h", "30d"):
                share = server.number(f"slo:sli_error:ratio_rate{window}{of}")
                close(share, Fraction(budget.bad, budget.counted))
            if slo.budget:
                close(server.number(f"slo:period_burn_rate:ratio{of}"), budget.burn)
                close(server.number(f"slo:period_error_budget_remaining:ratio{of}"), budget.left)
                close(server.number(f"slo:current_burn_rate:ratio{of}"), budget.burn)
            else:
                assert budget.left is None
                assert server.query(f"slo:period_burn_rate:ratio{of}") == []
        assert server.problems() == []


def close(found: float | None, true: Fraction | None) -> None:
    assert found is not None
    assert true is not None
    assert found == pytest.approx(float(true), rel=1e-12, abs=1e-12)


@pytest.mark.slow
def test_more_tenants_than_are_kept_apart_raise_an_alert(tmp_path: Path) -> None:
    """Sums by tier stay right; what is not kept apart any more is seen."""
    program("prometheus")
    tiers: list[TierRecord] = TIERS[:2]
    telemetry = Telemetry(tiers)
    good = judge(Outcome.COMPLETED, ttft_ns=1, ttft_due_ns=2, total_ns=3, is_steady=True)
    tenants = 2600
    assert tenants * len(Objective) > 10_000
    for number in range(tenants):
        telemetry.answered(answer("free", f"t{number}", good))
    with (
        exporter(telemetry) as target,
        prometheus(
            tmp_path / "prometheus", target, rules_text(tiers, OPTIONS), interval="2s"
        ) as server,
    ):
        raised = 'ALERTS{alertname="TiergateSeriesOverflow",alertstate="firing"}'
        found = wait_until(lambda: server.query(raised), "the alert of an overflow")
        metrics = {sample["metric"]["metric"] for sample in found}
        assert {"tiergate_slo_requests_total", "tiergate_slo_violations_total"} <= metrics
        everything = 'sum(tiergate_tier_slo_requests_total{tiergate_slo_objective="ttft"})'
        assert server.number(everything) == tenants
        assert server.number("sum(tiergate_slo_requests_total)") == tenants * len(Objective)
