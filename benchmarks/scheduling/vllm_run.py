"""Does a profile fitted to single kernels tell what a whole server did? vLLM's own run, simulated.

    python -m benchmarks.scheduling.vllm_run [--dry-run]

LLMServingSim's authors recorded vLLM 0.19 with Llama-3.1-8B on an RTX 4090: 300 ShareGPT requests
at 10.3 a second, far more than the card can take (it lies in ../shared/data/calibration and is no
part of this repository). The profile `llama31-8b-rtx4090` was fitted to kernel times of that card
and has not seen this run. Here the same requests arrive with the same gaps in the simulator with
`fcfs`, the policy closest to vLLM's; the simulator goes round the recording from a place the seed
chooses, and figures are medians over seeds. Not simulated: prefix sharing (about 8 % of the prompt
tokens) and vLLM's own work between steps. Writes benchmarks/results/scheduling_vllm_run.json.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.core.clock import NS_PER_S
from engine.sim.point import PointSpec, run_point
from engine.sim.trace import TraceRow

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT.parent / "shared/data/calibration/vllm019_rtx4090_llama31_8b_requests.csv.gz"
RESULT = ROOT / "benchmarks" / "results" / "scheduling_vllm_run.json"
SEEDS = 5


@dataclass(frozen=True, slots=True)
class Span:
    """One request, in seconds."""

    arrival_s: float
    first_s: float
    last_s: float
    prompt: int
    output: int


def recorded(path: Path = RECORDED) -> list[Span]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        spans = [
            Span(
                float(row["queued_s"]),
                float(row["first_token_s"]),
                float(row["last_token_s"]),
                int(row["input_tokens"]),
                int(row["output_tokens"]),
            )
            for row in csv.DictReader(lines)
        ]
    return sorted(spans, key=lambda span: span.arrival_s)


def simulated(real: Sequence[Span], seed: int, policy: str = "fcfs") -> list[Span]:
    rows = [TraceRow(span.prompt, span.output, arrival_s=span.arrival_s) for span in real]
    spec = PointSpec(
        "",
        policy,
        rate=len(real) / real[-1].arrival_s,
        requests=len(real),
        seed=seed,
        profile="llama31-8b-rtx4090",
        arrivals="trace",
    )
    spans = []
    for record in run_point(spec, rows).records:
        assert record.first_token_ns is not None
        assert record.finished_ns is not None
        times = (record.arrival_ns, record.first_token_ns, record.finished_ns)
        spans.append(Span(*(ns / NS_PER_S for ns in times), record.prompt, record.output))
    return spans


def figures(spans: Sequence[Span]) -> dict[str, float]:
    """Return what is compared; TPOT is a request's time a token after the first."""
    began = min(span.arrival_s for span in spans)
    lasted = max(span.last_s for span in spans) - began
    tpots = [(s.last_s - s.first_s) / (s.output - 1) for s in spans if s.output > 1]
    return {
        "output_tokens_per_s": sum(span.output for span in spans) / lasted,
        "mean_tpot_ms": 1000 * statistics.fmean(tpots),
        "mean_ttft_s": statistics.fmean(span.first_s - span.arrival_s for span in spans),
        "makespan_s": lasted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    told = parser.parse_args()
    real = recorded()
    measured = figures(real)
    runs = [figures(simulated(real, seed)) for seed in range(SEEDS)]
    found = {name: statistics.median(run[name] for run in runs) for name in measured}
    report = {
        "requests": len(real),
        "profile": "llama31-8b-rtx4090",
        "policy": "fcfs",
        "seeds": SEEDS,
        "measured": {name: round(value, 3) for name, value in measured.items()},
        "simulated": {name: round(value, 3) for name, value in found.items()},
        "error": {name: round(found[name] / measured[name] - 1, 3) for name in measured},
    }
    print(json.dumps(report, indent=2))
    if not told.dry_run:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
