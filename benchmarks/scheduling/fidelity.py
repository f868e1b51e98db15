"""Does the simulator tell what the real engine does? One workload on both, regime by regime.

    python -m benchmarks.scheduling.fidelity [--policy NAME] [--seeds N] [--dry-run]

The built-in model runs in its own process as in service. Blocks follow one another, one a seed: the
steps are measured for half a minute as `tiergate profile` does, then requests with the lengths of
../shared/data's ShareGPT trace divided by eight (so that they fit the model's context) arrive by a
Poisson process, at rates that the simulator calls light, knee and overload (0.4, 0.85 and 1.3 of
the rate at which it finishes requests when all are there at once). One profile is fitted to the
steps of all blocks, and the very same requests, arrivals and lengths are simulated on it. A figure
is the median over seeds; an error is that of one seed's simulation relative to its real run, and
of these the median and the range. Output lengths are pinned: end tokens are off.

The machine has to be quiet: a profile is that of the minutes in which it was measured, and even
then steps drift by some percent from one minute to the next, which waiting times near saturation
multiply. So every workload is simulated twice: on the profile as it is, and with all its prices
times the `level` of that run (what its steps took in all over what the profile says of them). The
second tells what the simulator itself gets wrong, the first what a user meets.
`others_cores` is how many cores others kept busy during each run. Writes
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.core.clock import NS_PER_MS, NS_PER_S, MonotonicClock, utc_now
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile, dump_profile, load_profile
from engine.core.request import FinishReason, RequestOrder, SamplingParams
from engine.core.stats import RequestStats
from engine.core.step_features import PRICES
from engine.serving.client import EngineClient
from engine.serving.config import EngineConfig
from engine.serving.neighbours import NeighbourMeter
from engine.serving.process import EngineProcess
from engine.serving.profiling import RECORDER, TOKEN_IDS, measure, read_to_the_end
from engine.serving.step_records import Measured, StepRecord, make_profile
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


def short_rows(times: int = SHRINK) -> list[TraceRow]:
    """Return the trace's rows, so many times shorter."""
    return [
        replace(
            row,
            num_prompt_tokens=-(-row.num_prompt_tokens // times),
            num_output_tokens=-(-row.num_output_tokens // times),
        )
        for row in load_trace(str(TRACE))
    ]


async def serve(
    engine: EngineClient, requests: Sequence[SimRequest], tag: str
) -> dict[str, RequestStats]:
    """Let the requests arrive by the wall clock, a reader each; returns what became of them."""
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
    return {request.id: finished[f"{tag}-{request.id}"] for request in requests}


async def run_for_real(engine: EngineClient, requests: Sequence[SimRequest], tag: str) -> Figures:
    """Serve the requests to their last tokens and return the figures."""
    finished = await serve(engine, requests, tag)
    spans = []
    for request in requests:
        stats = finished[request.id]
        assert stats.finish_reason is FinishReason.LENGTH
        assert stats.num_output_tokens == request.num_output_tokens
        assert stats.first_token_ns is not None
        assert stats.last_token_ns is not None
        spans.append(
            (stats.arrival_ns, stats.first_token_ns, stats.last_token_ns, stats.num_output_tokens)
        )
    return figures(spans)


def saturated_rate(spec: PointSpec, rows: Sequence[TraceRow]) -> float:
    """Return the requests a second that are finished when all are there at once."""
    records = run_point(replace(spec, rate=1e6, requests=1000), rows).records
    return len(records) * NS_PER_S / max(record.finished_ns or 0 for record in records)


def workload(
    spec: PointSpec, rows: Sequence[TraceRow], rate: float, seed: int, seconds: float
) -> tuple[SimRequest, ...]:
    """Return the requests of one run, for about so many seconds; the simulator draws the same."""
    told = replace(spec, rate=rate, seed=seed, requests=max(50, round(rate * seconds)))
    return Scene(told, rows).workload.requests


def pooled(blocks: Sequence[Measured]) -> Measured:
    """Return what was measured in all blocks as one."""
    return replace(
        blocks[0],
        observations=tuple(seen for block in blocks for seen in block.observations),
        loop_share=statistics.median(block.loop_share for block in blocks),
        num_steps=sum(block.num_steps for block in blocks),
        rounds=sum(block.rounds for block in blocks),
        neighbours=max(block.neighbours or 0.0 for block in blocks),
    )


def read_steps(path: Path) -> list[StepRecord]:
    """Return the steps that an engine has noted."""
    with path.open(encoding="utf-8") as lines:
        next(lines)
        return [StepRecord(*json.loads(line)) for line in lines if line.endswith("\n")]


def level_of(
    steps: Sequence[StepRecord], profile: LatencyProfile, began_ns: int, ended_ns: int
) -> float:
    """Return the time of the steps between, by the clock, over what the profile says of them."""
    model = LatencyModel(profile)
    told_ns = took_ns = 0.0
    for step, following in pairwise(steps):
        if began_ns <= step.began_ns < ended_ns and following.continues:
            took_ns += following.began_ns - step.began_ns
            told_ns += model.held_ns(
                step.num_tokens,
                step.num_decodes + step.num_prefills,
                step.num_prefills,
                step.kv_tokens,
                step.pairs,
                step.prompt_kv,
            )
    return took_ns / told_ns


def scaled(profile: LatencyProfile, level: float) -> LatencyProfile:
    """Return the profile with every price of a step times `level`."""
    names = [name for name in PRICES if name != "mixed_kv_factor"]
    return replace(profile, **{name: level * getattr(profile, name) for name in names})


@dataclass(frozen=True, slots=True)
class RealRun:
    """One run of the real engine."""

    regime: str
    seed: int
    rate: float
    num_requests: int
    others: float
    level: float
    figures: Figures


class Comparison:
    """Measures steps and runs workloads in turn, then simulates the same workloads."""

    def __init__(self, config: EngineConfig, folder: Path, told: argparse.Namespace) -> None:
        self._config = config
        self._path = folder / "measured.json"
        self._told = told
        self._rows = short_rows()
        self._spec = PointSpec(
            "",
            config.policy,
            rate=1.0,
            requests=1,
            profile=str(self._path),
            predictor="constant:64",
        )
        self._blocks: list[Measured] = []
        self._records: list[tuple[Path, list[tuple[RealRun, int, int]]]] = []
        self._rates: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        for seed in range(1, self._told.seeds + 1):
            self._block(seed)
        self._write_profile()
        found: dict[str, Any] = {}
        for name in ("regimes", "regimes_levelled"):
            pairs = [
                (run, self._simulate(run, run.level if name == "regimes_levelled" else 1.0))
                for run in self._real_runs()
            ]
            found[name] = {
                regime: summarise([pair for pair in pairs if pair[0].regime == regime])
                for regime in REGIMES
            }
        return {**found, "profile": json.loads(self._path.read_text())}

    def _block(self, seed: int) -> None:
        """Measure steps, then run every regime: what disturbs the one disturbs the other."""
        budget_s = self._told.block_seconds
        self._blocks.append(asyncio.run(measure(self._config, silent, budget_s=budget_s)))
        if not self._rates:
            self._write_profile()
            capacity = saturated_rate(self._spec, self._rows)
            self._rates = {regime: share * capacity for regime, share in REGIMES.items()}
            say(f"the simulator finishes {capacity:.1f} requests/s at most")
        asyncio.run(self._run_regimes(seed))

    async def _run_regimes(self, seed: int) -> None:
        record = self._path.with_name(f"steps-{seed}.jsonl")
        config = replace(
            self._config,
            executor=RECORDER,
            executor_options=(("record", str(record)),),
            latency_profile=str(self._path),
        )
        engine = EngineProcess(config)
        await engine.start()
        runs: list[tuple[RealRun, int, int]] = []
        try:
            assert engine.info is not None
            pids = (os.getpid(), engine.info.pid)
            warm = workload(self._spec, self._rows, self._rates["light"], 0, 2.0)
            await run_for_real(engine, warm, f"warm-{seed}")
            for regime, rate in self._rates.items():
                requests = workload(self._spec, self._rows, rate, seed, self._told.seconds)
                meter = NeighbourMeter(pids)
                began_ns = CLOCK.now_ns()
                found = await run_for_real(engine, requests, f"{regime}-{seed}")
                others = round(meter.cores() or 0.0, 2)
                run = RealRun(regime, seed, rate, len(requests), others, 1.0, found)
                runs.append((run, began_ns, CLOCK.now_ns()))
                say(f"{regime} {rate:.1f}/s, seed {seed}, others {others} cores: {found}")
        finally:
            await engine.close()
        self._records.append((record, runs))

    def _real_runs(self) -> list[RealRun]:
        """Return every run with its level on the profile that was fitted to all blocks."""
        profile = load_profile(str(self._path))
        return [
            replace(run, level=round(level_of(steps, profile, began_ns, ended_ns), 4))
            for record, runs in self._records
            for steps in [read_steps(record)]
            for run, began_ns, ended_ns in runs
        ]

    def _simulate(self, run: RealRun, level: float) -> Figures:
        path = self._path.with_name("levelled.json")
        path.write_text(dump_profile(scaled(load_profile(str(self._path)), level)))
        told = replace(
            self._spec,
            profile=str(path),
            rate=run.rate,
            seed=run.seed,
            requests=run.num_requests,
        )
        records = run_point(told, self._rows).records
        spans = []
        for record in records:
            assert record.first_token_ns is not None, f"{record.id} was not served"
            assert record.finished_ns is not None
            spans.append(
                (record.arrival_ns, record.first_token_ns, record.finished_ns, record.output)
            )
        return figures(spans)

    def _write_profile(self) -> None:
        made = make_profile(pooled(self._blocks), "measured", machine(self._config))
        self._path.write_text(dump_profile(made))


def summarise(pairs: Sequence[tuple[RealRun, Figures]]) -> dict[str, Any]:
    """Return medians over seeds; an error is of one seed's simulation, relative to its real run."""

    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 3)

    errors = [
        {name: getattr(told, name) / getattr(run.figures, name) - 1 for name in COMPARED}
        for run, told in pairs
    ]
    return {
        "rate": round(pairs[0][0].rate, 2),
        "real": {name: median(getattr(run.figures, name) for run, _ in pairs) for name in COMPARED},
        "simulated": {name: median(getattr(told, name) for _, told in pairs) for name in COMPARED},
        "error": {name: median(error[name] for error in errors) for name in COMPARED},
        "error_range": {
            name: [round(edge(error[name] for error in errors), 3) for edge in (min, max)]
            for name in COMPARED
        },
        "levels": [run.level for run, _ in pairs],
        "others_cores": [run.others for run, _ in pairs],
        "requests": sum(run.num_requests for run, _ in pairs),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def silent(_stage: str, _fraction: float) -> None:
    """Loading and measuring need not be told."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--policy", default="sarathi")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of arrivals in each run")
    parser.add_argument("--block-seconds", type=float, default=30.0, help="of measuring steps")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def main() -> None:
    told = arguments()
    config = EngineConfig(model="builtin", device="cpu", policy=told.policy)
    with tempfile.TemporaryDirectory() as folder:
        found = Comparison(config, Path(folder), told).run()
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine(config),
        "policy": told.policy,
        "seeds": told.seeds,
        "seconds": told.seconds,
        **found,
    }
    for name in ("regimes", "regimes_levelled"):
        for regime, row in report[name].items():
            print(name, regime, json.dumps(row))
    if not told.dry_run:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
