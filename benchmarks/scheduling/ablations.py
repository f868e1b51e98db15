"""What each idea of the hybrid is worth: one switch off at a time, and other length predictors.

    python -m benchmarks.scheduling.ablations [--fresh hybrid]

The headline's workload near the hybrid's capacity. `time_budget=0` is a fixed budget of 512 tokens;
the other switches are described in engine/core/policies/hybrid.py. Predictors: the truth, one that
mirrors lengths (long looks short), and the running mean that the gateway itself has without a
learned one. Writes benchmarks/results/scheduling_ablations.json.
"""

from __future__ import annotations

from benchmarks.scheduling import points
from benchmarks.scheduling.headline import TRACE
from engine.sim.point import PointSpec

RATES = (2.0, 2.1)
SWITCHES = (
    "time_budget",
    "defer",
    "memory_pace",
    "deadlines",
    "triage",
    "displace",
    "park",
    "predict",
)
PREDICTORS = ("oracle", "history", "liar")
LABELS = (
    "hybrid",
    *[f"hybrid[{name}=0]" for name in SWITCHES],
    *[f"hybrid[predictor={name}]" for name in PREDICTORS],
)


def main() -> None:
    parser = points.parser(__doc__, requests=2500, seeds=3)
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    asked = parser.parse_args()
    rates = [float(rate) for rate in asked.rates.split(",")]
    base = PointSpec(str(points.data_file(asked.data, TRACE)), "hybrid", 1.0, asked.requests)
    seeds = range(1, asked.seeds + 1)
    store = points.Store("ablations", asked)
    jobs = points.jobs_of(base, dict.fromkeys(LABELS, rates), seeds)
    tallies = points.by_policy(store.run(jobs), LABELS)
    points.print_grid(tallies)
    table = points.rows_of(tallies)
    points.print_table(
        ("policy", "rate", "free P99 TTFT s", "preempted", "parked", "recomputed"),
        [
            (
                row["policy"],
                row["rate"],
                row["free"]["ttft_p99_s"],
                row["preemptions"],
                row["parks"],
                row["recompute_share"],
            )
            for row in table
        ],
    )
    result = {**points.head(base, seeds), "engines": store.engines(), "table": table}
    points.write_result(asked, "scheduling_ablations", result)


if __name__ == "__main__":
    main()
