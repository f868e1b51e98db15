"""RAD: the token rate it reaches of the bound that no scheduler can exceed, and what lies beyond.

    python -m benchmarks.scheduling.reproduce_rad

The device is that of the theorems (https://arxiv.org/abs/2508.01002, Eq. 7): a step of n tokens
takes t_lin * ceil(n / b_col) + t_nl * n, attention is free, memory is no limit, prompts are
multiples of the tile. No scheduler serves more than 1 / (t_lin / b_col + t_nl) tokens a second
(Theorem 1), and RAD is stable at every rate below (Theorem 2). Measured: computed tokens a second
while half as much again as the bound is offered, up to the last arrival; and the number of requests
in the system over time at 0.95 and at 1.05 of the bound. `real lengths` takes prompts as recorded,
no multiples of anything: what the assumption is worth. Latency plays no part here.
Writes benchmarks/results/scheduling_reproduce_rad.json.
"""

from __future__ import annotations

import argparse
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from benchmarks.scheduling import points
from benchmarks.scheduling.headline import TRACE
from benchmarks.scheduling.made_traces import write_trace
from engine.core.latency_profile import LatencyProfile, dump_profile
from engine.sim.choices import parse_choice
from engine.sim.point import PointSpec, run_point
from engine.sim.statistics import mean
from engine.sim.tally import job_of
from engine.sim.trace import TraceRow, load_trace

TILE = 128  # tokens; the step that fits the authors' own measurements
TILE_NS, TOKEN_NS = 7_240_000.0, 10_000.0
LABELS = (
    "rad",
    "sarathi",
    "sarathi[token_budget=500]",
    "fcfs",
    "vllm0",
    "orca",
)
OVERLOAD, BELOW, ABOVE = 1.5, 0.95, 1.05
CHECKPOINTS = 20


def profile() -> LatencyProfile:
    """Return the theorems' device."""
    return LatencyProfile(
        name="theorem",
        token_ns=TOKEN_NS,
        tile_tokens=TILE,
        tile_ns=TILE_NS,
        num_kv_tokens=1 << 22,
        max_model_len=1 << 16,
        fit={"source": "made for the theorems; no device is like this"},
    )


def whole_tiles(count: int) -> list[TraceRow]:
    """Return rows whose prompts are 1 to 16 tiles, and outputs of 20 to 400 tokens."""
    rng = random.Random("rad/lengths")
    return [TraceRow(TILE * rng.randint(1, 16), rng.randint(20, 400)) for _ in range(count)]


def mean_tokens(rows: Sequence[TraceRow]) -> float:
    """Return the tokens of a request that go through the model: never its last one."""
    return mean([r.num_prompt_tokens + r.num_output_tokens - 1.0 for r in rows])


def saturated(
    store: points.Store, base: PointSpec, seeds: Sequence[int], bound: float
) -> list[dict[str, Any]]:
    """Return what each policy computes while more than the bound is offered."""
    jobs = [
        job_of(parse_choice(label), base, base.rate, seed) for seed in seeds for label in LABELS
    ]
    tallies = store.run(jobs)
    rows = []
    for label in LABELS:
        some = [t for t in tallies if t.label == label]
        reached = mean([float(t.point["computed_tokens_per_s"]) for t in some])
        rows.append(
            {
                "policy": label,
                "tokens_per_s": round(reached, 1),
                "of_bound": round(reached / bound, 4),
                "mean_step_ms": round(mean([float(t.point["mean_step_ms"]) for t in some]), 2),
            }
        )
    return rows


def in_system(spec: PointSpec) -> list[int]:
    """Return how many requests have come and not gone, at even times up to the last arrival."""
    records = run_point(spec).records
    came = sorted(r.arrival_ns for r in records)
    left = sorted(r.finished_ns for r in records if r.finished_ns is not None)
    times = [came[-1] * i // CHECKPOINTS for i in range(1, CHECKPOINTS + 1)]
    return [bisect_right(came, at) - bisect_right(left, at) for at in times]


def growth(counts: Sequence[int], span_s: float) -> dict[str, float]:
    """Return the least-squares slope in requests a second, and how well the line fits (R^2).

    The first quarter, in which the device fills up, is left out.
    """
    begin = len(counts) // 4
    times = [span_s * (i + 1) / len(counts) for i in range(begin, len(counts))]
    counts = counts[begin:]
    mid_t, mid_n = mean(times), mean([float(n) for n in counts])
    cross = sum((t - mid_t) * (n - mid_n) for t, n in zip(times, counts, strict=True))
    square_t = sum((t - mid_t) ** 2 for t in times)
    square_n = sum((n - mid_n) ** 2 for n in counts)
    fit = cross**2 / (square_t * square_n) if square_n else 0.0
    return {"slope_per_s": round(cross / square_t, 4), "r2": round(fit, 3)}


def stability(base: PointSpec, bound_rate: float, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the queue below and above the bound, seed by seed."""
    rows = []
    for share in (BELOW, ABOVE):
        for seed in seeds:
            rate = share * bound_rate
            spec = PointSpec(base.trace, "rad", rate, base.requests, seed, base.profile)
            counts = in_system(spec)
            found = growth(counts, base.requests / rate)
            excess = max(0.0, rate - bound_rate)
            rows.append({"of_bound": share, "seed": seed, "in_system": counts, **found})
            rows[-1]["expected_slope_per_s"] = round(excess, 4)
    return rows


def study(asked: argparse.Namespace, store: points.Store, name: str, trace: str) -> dict[str, Any]:
    """Run and print one set of lengths; returns its part of the result."""
    device = asked.work / "theorem.json"
    device.write_text(dump_profile(profile()))
    bound = 1e9 / (TILE_NS / TILE + TOKEN_NS)
    bound_rate = bound / mean_tokens(load_trace(trace))
    rate = OVERLOAD * bound_rate
    seeds = range(1, asked.seeds + 1)
    horizon_s = 0.9 * asked.requests / rate  # before the last arrival: nothing drains
    base = PointSpec(trace, "rad", rate, asked.requests, profile=str(device), horizon_s=horizon_s)
    rows = saturated(store, base, seeds, bound)
    print(f"{name}: bound {bound:.0f} tokens/s = {bound_rate:.2f} requests/s")
    points.print_table(
        ("policy", "tokens/s", "of the bound", "mean step ms"), [list(r.values()) for r in rows]
    )
    return {
        **points.head(base, seeds)["run"],
        "bound_tokens_per_s": round(bound, 1),
        "bound_requests_per_s": round(bound_rate, 4),
        "saturated": rows,
        "base": base,
        "rate": bound_rate,
    }


def main() -> None:
    asked = points.parser(__doc__, requests=6000, seeds=3).parse_args()
    source = points.data_file(asked.data, TRACE)
    store = points.Store("reproduce-rad", asked)
    tiles = write_trace(asked.work / "whole_tiles.csv.gz", whole_tiles(6000))
    first = study(asked, store, "whole tiles", tiles)
    second = study(asked, store, "real lengths", str(source))
    base, rate = first.pop("base"), first.pop("rate")
    del second["base"], second["rate"]
    queue = stability(base, rate, range(1, asked.seeds + 1))
    print(f"requests in the system, every 1/{CHECKPOINTS} of the time")
    for row in queue:
        print(
            f"{row['of_bound']} of the bound, seed {row['seed']}: slope {row['slope_per_s']} a s "
            f"(excess {row['expected_slope_per_s']}), R2 {row['r2']}: {row['in_system']}"
        )
    result = {
        "machine": points.machine(),
        "engines": store.engines(),
        "device": {"tile_tokens": TILE, "t_lin_ms": TILE_NS / 1e6, "t_nl_ms": TOKEN_NS / 1e6},
        "whole tiles": first,
        "real lengths": second,
        "queue": queue,
    }
    points.write_result(asked, "scheduling_reproduce_rad", result)


if __name__ == "__main__":
    main()
