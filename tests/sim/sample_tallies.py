"""Tallies with known numbers, for tests of reports and searches: no simulation runs."""

from __future__ import annotations

import math
import random
from typing import Any

from engine.sim.statistics import Histogram
from engine.sim.tally import Tally

OBJECTIVES = {"premium": 0.99, "free": 0.95}


def attainment(rate: float, capacity: float, objective: float) -> float:
    """Falls with the rate and is exactly the objective at the capacity."""
    odds = objective / (1 - objective) * math.exp(min(8 * (capacity - rate), 500.0))
    return odds / (1 + odds)


def make_tally(label: str, rate: float, seed: int, capacity: float, offered: int = 400) -> Tally:
    """One point of a policy with that capacity; the seed shifts it by a few per cent."""
    draw = random.Random(f"{label}/{seed}")
    mine = capacity * (1 + 0.02 * draw.uniform(-1, 1))
    tiers: dict[str, Any] = {}
    ttft, lateness = {}, {}
    for tier, objective in OBJECTIVES.items():
        middle = (100 if tier == "premium" else 400) * math.exp(2 * max(0.0, rate - mine))
        times = [middle * math.exp(draw.gauss(0, 0.7)) for _ in range(offered)]
        ttft[tier] = Histogram.of(times, offered)
        late = [max(0.0, draw.gauss(-60, 60 + 40 * rate)) for _ in range(offered)]
        lateness[tier] = Histogram.of(late, offered)
        times.sort()
        names = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        tiers[tier] = {
            "attainment": attainment(rate, mine, objective),
            "offered": offered,
            "ttft_ms": {name: times[int(share * offered)] for name, share in names},
            "lateness_ms": {"p50": 0.0, "p95": 0.0, "p99": 12.5},
            "normalised_latency_ms": {"p50": 40.0, "p95": 50.0, "p99": None, "mean": 41.0},
        }
    share = sum(fields["attainment"] for fields in tiers.values()) / 2
    point = {
        "policy": label,
        "rate": rate,
        "seed": seed,
        "requests": 2 * offered,
        "tiers": tiers,
        "goodput": share * rate,
        "attainment": share,
        "tokens_per_s": 350.0 * min(rate, 1.3 * mine),
        "preemptions": 3,
        "recompute_share": 0.01,
        "swap_bytes": 10_000_000,
        "unfinished": 0,
    }
    return Tally(
        label=label,
        rate=rate,
        seed=seed,
        point=point,
        objectives=OBJECTIVES,
        ttft=ttft,
        lateness=lateness,
        ttft_p50_ms=300.0 * math.exp(rate - mine),
        normalised_mean_ms=40.0 * math.exp(rate - mine),
        unserved=0,
        attainment_by_tenant={"acme": 1.0, "<bob>": 0.5},
    )
