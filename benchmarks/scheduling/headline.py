"""Attainment of each tier against the rate, policy by policy, and the dual-SLO capacity of each.

    python -m benchmarks.scheduling.headline [--fresh hybrid] [--full] [--plots]

The workload of the papers: sharegpt8k lengths, Poisson arrivals, 5 % premium, the two seeded tiers,
Mistral-7B on an RTX 6000 Ada, predicted lengths off by a log-normal factor (sigma 0.4). Beside the
capacities stands the physical bound of the profile on the very same requests: the rate at which a
schedule is busy all the time that packs every token perfectly and never pays for a step,

    n / sum(price * (prompt + output - 1) + decode_kv * sum(prompt + i for i in 1 .. output - 1))

with the price of one more token in a full step and of one cached token that a decode reads; the
last token of an answer is never computed. Steps of at most 100 ms, which premium's promise
allows, pay their fixed part in any schedule: `bound_100ms` is the bound less that share.
`within_tail` is the largest rate up to which P99 TTFT of free requests is below 30 s as well: work
is conserved, so what keeps 95 % on time near the bound makes the few others wait for all of it.
Writes benchmarks/results/scheduling_headline.json, and with --plots docs/images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.scheduling import points
from engine.core.latency_profile import LatencyProfile, load_profile
from engine.sim.capacity import Capacity, EverySlo, capacities_of
from engine.sim.comparison import Comparison, facts
from engine.sim.plot_files import write_plots
from engine.sim.point import PointSpec, Scene
from engine.sim.report import capacity_fields
from engine.sim.report_page import Report
from engine.sim.statistics import mean
from engine.sim.tally import Tallies
from engine.sim.trace import TraceRow, load_trace

TRACE = "traces/sharegpt8k_llama2_lengths.csv.gz"
RATES = (0.8, 1.2, 1.6, 1.8, 2.0, 2.05, 2.1, 2.2, 2.4)
WITHOUT_PARKING = "hybrid[park=0]"
BASE_RATES = (0.4, 0.6, 0.8, 1.2, 1.6, 1.8, 2.0, 2.2)
BEYOND = (3.3, 3.5, 5.0, 6.5)
TAIL_S = 30.0  # what P99 TTFT of the free requests served should stay below, up to capacity
IMAGES = points.ROOT / "docs" / "images"


def rates_of(*, full: bool) -> dict[str, Sequence[float]]:
    """Return where each policy is run: where its attainment changes, and the hybrid far beyond."""
    chosen: dict[str, Sequence[float]] = {
        "vllm0": (0.4, 0.8, 1.2, 1.6),
        "sarathi": BASE_RATES,
        "sarathi-spf": BASE_RATES,
        "slai": (0.8, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2),
        "alise": BASE_RATES,
        "hybrid": (*RATES, *BEYOND),
        WITHOUT_PARKING: (1.6, 1.8, 2.0, 2.05, 2.1, 2.2, 3.3),
    }
    if full:
        chosen["fcfs"] = chosen["fastserve"] = (0.2, *BASE_RATES)
        for label in ("slai", "sarathi-spf"):
            chosen[label] = (*chosen[label], 2.1, 2.4, *BEYOND)
    return chosen


def busy_s(profile: LatencyProfile, rows: Sequence[tuple[int, int]]) -> float:
    """Return the device time of (prompt, output) pairs in steps that cost nothing themselves."""
    token_ns = profile.token_ns + profile.knee_token_ns + profile.tile_ns / profile.tile_tokens
    total = 0.0
    for prompt, output in rows:
        decodes = output - 1
        read = decodes * prompt + decodes * (decodes + 1) / 2
        total += token_ns * (prompt + decodes) + profile.decode_kv_ns * read
        total += profile.pair_ns * prompt * prompt / 2
    return total / 1e9


def bounds(base: PointSpec, rows: Sequence[TraceRow], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the physical bound in requests a second, for each seed's own requests."""
    profile = load_profile(base.profile)
    by_seed = {}
    for seed in seeds:
        spec = PointSpec("", base.policy, base.rate, base.requests, seed, base.profile)
        drawn = Scene(spec, rows).workload.requests
        lengths = [(r.num_prompt_tokens, r.num_output_tokens) for r in drawn]
        by_seed[str(seed)] = round(len(lengths) / busy_s(profile, lengths), 4)
    fixed_ns = profile.base_ns - profile.knee_tokens * profile.knee_token_ns
    bound = mean(list(by_seed.values()))
    return {
        "formula": "n / sum(token price * (prompt + output - 1) + decode KV reads)",
        "by_seed": by_seed,
        "bound": round(bound, 4),
        "bound_100ms": round(bound * (1 - fixed_ns / 100e6), 4),
    }


def print_capacities(capacities: Sequence[Capacity], bound: float) -> None:
    """Print capacities, and what they are of the bound and the best of the others."""
    points.print_table(
        ("policy", "capacity", "mean of seeds", "low", "high", "of the bound"),
        [
            (c.label, c.rate, c.interval.mean, c.interval.low, c.interval.high, c.rate / bound)
            for c in capacities
        ],
    )


def write_images(
    base: PointSpec, rows: Sequence[TraceRow], tallies: Tallies, capacities: Sequence[Capacity]
) -> None:
    """Draw capacity and attainment; what lies beyond saturation is left to the tables."""
    near = Tallies([t for t in tallies.rows if t.rate <= max(RATES)])
    comparison = Comparison(base, (), near.rates, near.seeds)
    report = Report(
        "Scheduling policies compared",
        facts(comparison, rows),
        base.tiers,
        near,
        capacities,
        EverySlo(),
        capacity_is_searched=False,
    )
    IMAGES.mkdir(parents=True, exist_ok=True)
    write_plots(IMAGES, report)
    for path in IMAGES.glob("goodput.svg"):
        path.unlink()
    for name in ("capacity", "attainment_premium", "attainment_free"):
        (IMAGES / f"{name}.svg").replace(IMAGES / f"scheduling_{name}.svg")


def main() -> None:
    parser = points.parser(__doc__, requests=2500, seeds=5)
    parser.add_argument("--full", action="store_true", help="more policies, more rates")
    parser.add_argument("--rates", default="", help="only these, for a quick look: 1.8,2.0")
    parser.add_argument("--policies", default="", help="only these, for a quick look")
    parser.add_argument("--plots", action="store_true", help="write docs/images as well")
    asked = parser.parse_args()
    trace = str(points.data_file(asked.data, TRACE))
    base = PointSpec(trace, "fcfs", 1.0, asked.requests)
    seeds = range(1, asked.seeds + 1)
    chosen = rates_of(full=asked.full)
    if asked.policies:
        chosen = {label: chosen.get(label, RATES) for label in asked.policies.split(",")}
    if asked.rates:
        chosen = {label: [float(r) for r in asked.rates.split(",")] for label in chosen}
    rows = load_trace(trace)
    bound = bounds(base, rows, seeds)
    print(f"physical bound {bound['bound']} requests/s, {bound['by_seed']}")
    store = points.Store("headline", asked)
    tallies = points.by_policy(store.run(points.jobs_of(base, chosen, seeds)), list(chosen))
    capacities = capacities_of(tallies, EverySlo())
    points.print_grid(tallies)
    print_capacities(capacities, bound["bound"])
    table = points.rows_of(tallies)
    print("P99 TTFT of free, s (everyone is served in the end)")
    points.print_table(
        ("policy", *[f"{rate:g}" for rate in tallies.rates]),
        [
            (label, *[_p99(table, label, rate) for rate in tallies.rates])
            for label in tallies.labels
        ],
    )
    result = {
        **points.head(base, seeds),
        "engines": store.engines(),
        "bound": bound,
        "capacity": {
            "criterion": EverySlo().text,
            "method": "straight lines between the rates that were run; 0: none was low enough",
            "policies": [
                capacity_fields(c)
                | {
                    "of_bound": round(c.rate / bound["bound"], 4),
                    "within_tail": round(min(c.rate, _within_tail(table, c.label)), 4),
                }
                for c in capacities
            ],
        },
        "table": table,
    }
    points.write_result(asked, "scheduling_headline", result)
    if asked.plots:
        write_images(base, rows, tallies, capacities)
        print(f"wrote {IMAGES.relative_to(points.ROOT)}", file=sys.stderr)


def _within_tail(table: Sequence[dict[str, Any]], label: str) -> float:
    """Return where the tail first passes TAIL_S, straight between rates; the last one if never."""
    rows = [row for row in table if row["policy"] == label]
    found = sorted((row["rate"], row["free"]["ttft_p99_s"]) for row in rows)
    last = 0.0
    for (rate, p99), (next_rate, next_p99) in pairwise(found):
        if p99 >= TAIL_S:
            break
        if next_p99 >= TAIL_S:
            share = (TAIL_S - p99) / (next_p99 - p99)
            return float(rate + share * (next_rate - rate))
        last = next_rate
    return last


def _p99(table: Sequence[dict[str, Any]], label: str, rate: float) -> float | None:
    found = [row for row in table if row["policy"] == label and row["rate"] == rate]
    return found[0]["free"]["ttft_p99_s"] if found else None


if __name__ == "__main__":
    main()
