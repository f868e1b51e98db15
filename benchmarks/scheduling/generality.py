"""Other workloads: is the hybrid ever worse than another policy, and where is nothing to gain?

    python -m benchmarks.scheduling.generality [--fresh hybrid] [--only azure-conv,r1]

Rates are shares of what Sarathi (first come, first served) gets done on that workload when all
come at once: from light load to beyond saturation. Recorded arrivals are kept and scaled. Tiers are
the two seeded ones, 5 % of the requests premium, whatever the tenant.

    azure-conv      one production tenant, recorded arrivals
    azure-code      the bursty neighbour beside it (azure2023_code), two tenants
    servegen        12 ServeGen clients (m-large), see servegen.py
    r1              10 ServeGen clients of a reasoning model: long answers
    mooncake        long prompts with shared prefixes; its 3 s clock blurred by as much
    rtx4090         the headline's lengths on another device: Llama-3.1-8B, 41,408 KV tokens

Judged: in no tier may the hybrid's attainment be more than one point below the best of the others
at the same rate. A gain is nil where no tier gains half a point. Writes
benchmarks/results/scheduling_generality.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scheduling import points, servegen
from benchmarks.scheduling.headline import TRACE
from benchmarks.scheduling.made_traces import neighbours, write_trace
from engine.sim.point import PointSpec
from engine.sim.statistics import mean
from engine.sim.tally import Tallies

OURS = "hybrid"
LABELS = ("sarathi", "sarathi-spf", "slai", "alise", OURS)
SHARES = (0.6, 0.85, 1.0, 1.15, 1.3)
ALLOWED, NIL = 0.01, 0.005
LONG = 131_072


@dataclass(frozen=True, slots=True)
class Case:
    """A workload: where its trace comes from, and what it needs besides."""

    trace: Callable[[Path, Path], str]  # (data, work) -> path
    arrivals: str = "trace"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _file(name: str) -> Callable[[Path, Path], str]:
    return lambda data, work: str(points.data_file(data, name))


def _beside(data: Path, work: Path) -> str:
    sources = {
        name: points.data_file(data, f"traces/azure2023_{name}.csv.gz") for name in ("conv", "code")
    }
    return write_trace(work / "azure_neighbours.csv.gz", neighbours(**sources))


def _servegen(pool: str, clients: int, context: int) -> Callable[[Path, Path], str]:
    def make(data: Path, work: Path) -> str:
        rows = servegen.make(
            data, pool, clients=clients, rate=2.0, requests=5000, seed=1, context=context
        )
        return write_trace(work / f"servegen_{pool}.csv.gz", rows)

    return make


CASES: Mapping[str, Case] = {
    "azure-conv": Case(_file("traces/azure2023_conv.csv.gz")),
    "azure-code": Case(_beside),
    "servegen": Case(_servegen("mlarge", 12, 16_384)),
    "r1": Case(_servegen("r1", 10, 32_768), changes={"max_model_len": LONG}),
    "mooncake": Case(
        _file("traces/mooncake_conversation.csv.gz"),
        arrivals="trace+jitter:3",
        changes={"max_model_len": LONG},
    ),
    "rtx4090": Case(_file(TRACE), arrivals="poisson", changes={"profile": "llama31-8b-rtx4090"}),
}


def judge(tallies: Tallies) -> list[dict[str, Any]]:
    """Return, rate by rate and tier by tier, the hybrid beside the best of the others."""
    rows = []
    for rate in tallies.rates:
        for tier in tallies.objectives:
            shares = {
                label: mean([t.number(tier, "attainment") or 0.0 for t in cell])
                for label in tallies.labels
                if (cell := tallies.cell(label, rate))
            }
            ours = shares.pop(OURS)
            best = max(shares, key=lambda label: shares[label])
            rows.append(
                {
                    "rate": rate,
                    "tier": tier,
                    "hybrid": round(ours, 4),
                    "best": round(shares[best], 4),
                    "best_policy": best,
                    "gain": round(ours - shares[best], 4),
                }
            )
    return rows


def study(asked: argparse.Namespace, store: points.Store, name: str, case: Case) -> dict[str, Any]:
    """Run, judge and print one workload; returns its part of the result."""
    seeds = range(1, asked.seeds + 1)
    trace = case.trace(asked.data, asked.work)
    changes: dict[str, Any] = {"arrivals": case.arrivals, **case.changes}
    base = PointSpec(trace, LABELS[0], 1.0, asked.requests, **changes)
    saturation = points.service_rate(store, base, LABELS[0])
    rates = [round(share * saturation, 4) for share in SHARES]
    jobs = points.jobs_of(base, dict.fromkeys(LABELS, rates), seeds)
    tallies = points.by_policy(store.run(jobs), LABELS)
    print(f"\n{name}: {LABELS[0]} serves {saturation:.3f} requests/s when all come at once")
    points.print_grid(tallies)
    verdict = judge(tallies)
    _print_verdict(name, verdict)
    return {
        **points.head(base, seeds)["run"],
        "saturation": round(saturation, 4),
        "shares_of_saturation": list(SHARES),
        "judged": verdict,
        "table": points.rows_of(tallies),
    }


def _print_verdict(name: str, verdict: Sequence[dict[str, Any]]) -> None:
    for row in verdict:
        if row["gain"] < -ALLOWED:
            print(
                f"{name} {row['rate']:g}/s {row['tier']}: hybrid {row['hybrid']} is below "
                f"{row['best_policy']} {row['best']} by {-100 * row['gain']:.1f} points"
            )
    rates = dict.fromkeys(row["rate"] for row in verdict)
    nil = [
        f"{rate:g}"
        for rate in rates
        if all(abs(row["gain"]) < NIL for row in verdict if row["rate"] == rate)
    ]
    if nil:
        print(f"{name}: the gain is nil at {', '.join(nil)}")


def main() -> None:
    parser = points.parser(__doc__, requests=1500, seeds=2)
    parser.add_argument("--only", default="", help=f"some of {', '.join(CASES)}")
    asked = parser.parse_args()
    names = asked.only.split(",") if asked.only else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown workload {unknown[0]}; known: {', '.join(CASES)}")
    store = points.Store("generality", asked)
    studies = {name: study(asked, store, name, CASES[name]) for name in names}
    worst = [row["gain"] for one in studies.values() for row in one["judged"]]
    result = {
        "machine": points.machine(),
        "engines": store.engines(),
        "allowed": ALLOWED,
        "never_below_by_more": min(worst) >= -ALLOWED,
        "workloads": studies,
    }
    points.write_result(asked, "scheduling_generality", result)


if __name__ == "__main__":
    main()
