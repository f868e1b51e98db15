"""Does the simulator tell what the real engine does? One workload on both, regime by regime.

    python -m benchmarks.scheduling.fidelity [--quick] [--policy NAME] [--dry-run]

The built-in model runs in its own process as in service. Its profile is measured first, as
`tiergate profile` does; then requests with the lengths of ../shared/data's ShareGPT trace divided
by eight (so that they fit the model's context) arrive by a Poisson process, at rates that the
simulator with that profile calls light, knee and overload (0.4, 0.85 and 1.3 of the rate at which
it finishes requests when all are there at once). The very same requests, arrivals and lengths are
simulated. Repeats have other seeds. A figure is the median of the repeats, an error the simulated
median relative to the real one. Output lengths are pinned: end tokens are off.

The machine has to be quiet: the profile is that of the minute in which it was measured. `others` is
how many cores were busy with something else during each run. Writes
benchmarks/results/scheduling_fidelity.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.core.clock import NS_PER_MS, NS_PER_S, MonotonicClock, utc_now
from engine.core.latency_profile import LatencyProfile, dump_profile
from engine.core.request import FinishReason, RequestOrder, SamplingParams
from engine.core.stats import RequestStats
from engine.serving.client import EngineClient
from engine.serving.config import EngineConfig
from engine.serving.neighbours import NeighbourMeter
from engine.serving.process import EngineProcess
from engine.serving.profiling import TOKEN_IDS, make_profile, measure, read_to_the_end
from engine.sim.point import PointSpec, Scene, run_point
from engine.sim.trace import TraceRow, load_trace
from engine.sim.workload import SimRequest
from gateway.cli.profile import machine

ROOT = Path(__file__).resolve().parents[2]
TRACE = ROOT.parent / "shared" / "data" / "traces" / "sharegpt8k_llama2_lengths.csv.gz"
RESULT = ROOT / "benchmarks" / "results" / "scheduling_fidelity.json"
REGIMES = {"light": 0.4, "knee": 0.85, "overload": 1.3}
SHRINK = 8
CLOCK = MonotonicClock()


@dataclass(frozen=True, slots=True)
class Figures:
    """What is compared, and what has to be known to believe it."""

    mean_ttft_ms: float
    p99_ttft_ms: float
    mean_tbt_ms: float
    tokens_per_s: float


COMPARED = tuple(Figures.__dataclass_fields__)


def figures(
    spans: Sequence[tuple[int, int, int, int]],
) -> Figures:
    """Return the figures of requests given as (arrival, first token, last token, tokens), in ns."""
    ttfts = sorted(first - arrival for arrival, first, _, _ in spans)
    gaps_ns = sum(last - first for _, first, last, _ in spans)
    num_gaps = sum(tokens - 1 for *_, tokens in spans)
    lasted_ns = max(last for _, _, last, _ in spans) - min(arrival for arrival, *_ in spans)
    return Figures(
        mean_ttft_ms=statistics.fmean(ttfts) / NS_PER_MS,
        p99_ttft_ms=ttfts[-(-99 * len(ttfts) // 100) - 1] / NS_PER_MS,
        mean_tbt_ms=gaps_ns / max(1, num_gaps) / NS_PER_MS,
        tokens_per_s=sum(tokens for *_, tokens in spans) * NS_PER_S / lasted_ns,
    )


def short_rows() -> list[TraceRow]:
    """Return the trace's rows, an eighth as long."""
    return [
        replace(
            row,
            num_prompt_tokens=-(-row.num_prompt_tokens // SHRINK),
            num_output_tokens=-(-row.num_output_tokens // SHRINK),
        )
        for row in load_trace(str(TRACE))
    ]


def simulate(spec: PointSpec, rows: Sequence[TraceRow]) -> Figures:
    records = run_point(spec, rows).records
    spans = []
    for record in records:
        assert record.first_token_ns is not None, f"{record.id} was not served"
        assert record.finished_ns is not None
        spans.append((record.arrival_ns, record.first_token_ns, record.finished_ns, record.output))
    return figures(spans)


async def run_for_real(engine: EngineClient, requests: Sequence[SimRequest], tag: str) -> Figures:
    """Let the requests arrive by the wall clock; every stream has a reader."""
    rng = random.Random(tag)
    # Drawn beforehand: no door does that while its engine computes.
    prompts = [tuple(rng.choices(TOKEN_IDS, k=r.num_prompt_tokens)) for r in requests]
    finished: dict[str, RequestStats] = {}
    engine.add_finish_listener(lambda stats: finished.__setitem__(stats.request_id, stats))
    began_ns = CLOCK.now_ns() + NS_PER_S // 10
    async with asyncio.TaskGroup() as readers:
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            due_ns = began_ns + request.arrival_ns
            while (wait_ns := due_ns - CLOCK.now_ns()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait_ns / NS_PER_S)
            order = RequestOrder(
                f"{tag}-{request.id}",
                prompt,
                SamplingParams(max_tokens=request.num_output_tokens, seed=number),
                CLOCK.now_ns(),  # a sleep ends up to a millisecond late
                slo=request.tier.slo,
                tier=request.tier.name,
            )
            readers.create_task(read_to_the_end(engine.submit(order)))
    spans = []
    for request in requests:
        stats = finished[f"{tag}-{request.id}"]
        assert stats.finish_reason is FinishReason.LENGTH
        assert stats.num_output_tokens == request.num_output_tokens
        assert stats.first_token_ns is not None
        assert stats.last_token_ns is not None
        spans.append(
            (stats.arrival_ns, stats.first_token_ns, stats.last_token_ns, stats.num_output_tokens)
        )
    return figures(spans)


def measured_profile(config: EngineConfig) -> LatencyProfile:
    told = asyncio.run(measure(config, lambda stage, fraction: None))
    return make_profile(told, "measured", machine(config))


def saturated_rate(spec: PointSpec, rows: Sequence[TraceRow]) -> float:
    """Return the requests a second that are finished when all are there at once."""
    records = run_point(replace(spec, rate=1e6, requests=1000), rows).records
    return len(records) * NS_PER_S / max(record.finished_ns or 0 for record in records)


async def compare(
    config: EngineConfig,
    spec: PointSpec,
    rates: dict[str, float],
    seeds: Sequence[int],
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run every regime and seed on one engine and in the simulator."""
    rows = short_rows()
    runs: dict[str, list[dict[str, Any]]] = {regime: [] for regime in rates}
    engine = EngineProcess(config)
    await engine.start()
    try:
        assert engine.info is not None
        pids = (os.getpid(), engine.info.pid)
        await run_for_real(engine, workload(spec, rows, rates["light"], 0, 2.0), "warm")
        for seed in seeds:
            for regime, rate in rates.items():
                requests = workload(spec, rows, rate, seed, seconds)
                told = replace(spec, rate=rate, seed=seed, requests=len(requests))
                meter = NeighbourMeter(pids)
                real = await run_for_real(engine, requests, f"{regime}-{seed}")
                others = round(meter.cores() or 0.0, 2)
                simulated = simulate(told, rows)
                runs[regime].append(
                    {
                        "seed": seed,
                        "others_cores": others,
                        "real": asdict(real),
                        "simulated": asdict(simulated),
                    }
                )
                say(f"{regime} {rate:.1f}/s seed {seed} others {others}: {line(real, simulated)}")
    finally:
        await engine.close()
    return {regime: summarise(rates[regime], runs[regime]) for regime in rates}


def workload(
    spec: PointSpec, rows: Sequence[TraceRow], rate: float, seed: int, seconds: float
) -> tuple[SimRequest, ...]:
    """Return the requests of one run, for about so many seconds; the simulator draws the same."""
    told = replace(spec, rate=rate, seed=seed, requests=max(50, round(rate * seconds)))
    return Scene(told, rows).workload.requests


def summarise(rate: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return medians, and the error of the simulated median."""
    real = {name: statistics.median(run["real"][name] for run in runs) for name in COMPARED}
    simulated = {
        name: statistics.median(run["simulated"][name] for run in runs) for name in COMPARED
    }
    return {
        "rate": round(rate, 2),
        "real": {name: round(value, 3) for name, value in real.items()},
        "simulated": {name: round(value, 3) for name, value in simulated.items()},
        "error": {name: round(simulated[name] / real[name] - 1, 3) for name in COMPARED},
        "others_cores_max": max(run["others_cores"] for run in runs),
        "runs": runs,
    }


def line(real: Figures, simulated: Figures) -> str:
    return ", ".join(
        f"{name} {getattr(real, name):.2f} / {getattr(simulated, name):.2f}"
        f" ({getattr(simulated, name) / getattr(real, name) - 1:+.1%})"
        for name in COMPARED
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--policy", default="sarathi")
    parser.add_argument("--profile", type=Path, help="use this one instead of measuring")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals in each run")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 6 seconds")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    told = parser.parse_args()
    if told.quick:
        told.seeds, told.seconds = 2, 6.0
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    config = EngineConfig(model="builtin", device="cpu", policy=told.policy)
    with tempfile.TemporaryDirectory() as folder:
        path = told.profile
        if path is None:
            path = Path(folder) / "measured.json"
            path.write_text(dump_profile(measured_profile(config)))
        config = replace(config, latency_profile=str(path))
        spec = PointSpec(
            "", told.policy, rate=1.0, requests=1, profile=str(path), predictor="constant:64"
        )
        capacity = saturated_rate(spec, short_rows())
        rates = {regime: share * capacity for regime, share in REGIMES.items()}
        say(f"the simulator finishes {capacity:.1f} requests/s at most")
        seeds = range(1, told.seeds + 1)
        found = asyncio.run(compare(config, spec, rates, seeds, told.seconds, say))
        profile = json.loads(path.read_text())
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine(config),
        "policy": told.policy,
        "seconds": told.seconds,
        "saturated_rate": round(capacity, 2),
        "regimes": found,
        "profile": profile,
    }
    print(json.dumps({regime: found[regime]["error"] for regime in found}, indent=2))
    if not told.dry_run:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
