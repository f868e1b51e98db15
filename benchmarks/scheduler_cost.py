"""What one decision costs: schedule() and update() of the real core over an executor that is free.

Steady state: every request that ends is replaced, so running and waiting stay at their size; the
output lengths are spread, so steps mix decodes, chunks, starts and ends as in service. Garbage
collection runs as in service. `cpu` is the thread's own time, `wall` includes whatever else the
machine did meanwhile. Each setting is measured in a few rounds, and the round that the rest of
the machine disturbed least (least wall time in all) is the one reported.
Run: python -m benchmarks.scheduler_cost
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from engine.core.batch import Batch, SampledToken, StepResult
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies import make_policy
from engine.core.request import RequestOrder, SamplingParams
from engine.sim.tiers import DEFAULT_TIERS

RESULT = Path(__file__).parent / "results" / "scheduler_cost.json"
GOALS_US = {(64, 1_000): 200.0, (256, 10_000): 1000.0}
BLOCK_SIZE = 16
STEP_NS = 20_000_000
PROFILE = "mistral-7b-rtx6000ada"  # for policies that think in time: their steps take its time
TIMED = ("slai", "hybrid")
WARM_STEPS = 300  # until the batch is full and the ages of its rows are mixed


class Feeder:
    """Submits requests with spread lengths so that the queue keeps its size."""

    def __init__(self, core: EngineCore, seed: int) -> None:
        self._core = core
        self._random = random.Random(seed)
        self._count = 0

    def submit(self, now_ns: int) -> None:
        rng = self._random
        length = min(8000, 16 + int(rng.lognormvariate(6.0, 1.0)))
        self._count += 1
        premium, free = DEFAULT_TIERS
        tier = free if self._count % 20 else premium
        order = RequestOrder(
            id=f"request-{self._count}",
            prompt=tuple(rng.randrange(32_000) for _ in range(length)),
            sampling=SamplingParams(max_tokens=rng.randrange(32, 512)),
            arrival_ns=now_ns,
            tenant=f"tenant-{self._count % 16}",
            tier=tier.name,
            cache_salt=f"tenant-{self._count % 16}",
            slo=tier.slo,
        )
        self._core.submit(order, now_ns)


def answer(batch: Batch, elapsed_ns: int) -> StepResult:
    """Draw a token for every sampling chunk, in no time."""
    tokens = tuple(SampledToken(c.request_id, 7) for c in batch.chunks if c.sampling)
    return StepResult(batch.step, tokens, elapsed_ns)


def measure(
    policy: str, running: int, waiting: int, steps: int, seed: int, *, is_short: bool = False
) -> dict[str, Any]:
    """Measure one setting; `is_short` has blocks for about half of the rows, so it preempts."""
    capacity = Capacity(
        num_blocks=running * (30 if is_short else 640),
        block_size=BLOCK_SIZE,
        max_model_len=8_512,
        max_batch_tokens=2_048,
        max_batch_requests=running,
    )
    config = CoreConfig(max_waiting_requests=2 * waiting, max_waiting_prompt_tokens=1 << 40)
    wide = (("token_budget", 2048.0), ("max_running", 1e6))
    model = LatencyModel(load_profile(PROFILE)) if policy in TIMED else None
    made = make_policy(policy, wide if policy == "sarathi" else (), model)
    core = EngineCore(capacity, made, config, model=model)
    feeder, now_ns, step_ns = Feeder(core, seed), 0, STEP_NS
    for _ in range(waiting + running):
        feeder.submit(now_ns)
    stopwatches = {name: Stopwatch() for name in ("schedule", "update")}
    warm, rows, noise = WARM_STEPS, list[int](), random.Random(seed)
    while len(rows) < steps:
        now_ns += step_ns
        with stopwatches["schedule"]:
            batch = core.start_step(now_ns)
        assert batch is not None
        if model is not None:
            step_ns = int(noise.uniform(0.95, 1.05) * model.step_ns(batch))  # so it has to learn
        result = answer(batch, step_ns)
        with stopwatches["update"]:
            events = core.finish_step(batch, result, now_ns)
        for event in events:
            if event.stats is not None:
                feeder.submit(now_ns)
        if warm:
            warm -= 1
            for stopwatch in stopwatches.values():
                stopwatch.clear()
        else:
            rows.append(len(batch.chunks))
    preemptions = core.snapshot(now_ns).preemptions_total
    return {
        "policy": policy,
        "running": running,
        "waiting": waiting,
        "steps": steps,
        "memory": "short" if is_short else "plenty",
        "preemptions_per_step": round(preemptions / (steps + WARM_STEPS), 3),
        "mean_rows": round(statistics.fmean(rows), 1),
        "wall_s": round(sum(s.wall_s for s in stopwatches.values()), 3),
        "schedule_us": stopwatches["schedule"].report(),
        "update_us": stopwatches["update"].report(),
        "goal_schedule_p99_us": GOALS_US[running, waiting],
    }


class Stopwatch:
    """Collects the wall and CPU time of a block of code."""

    def __init__(self) -> None:
        self._wall_ns: list[int] = []
        self._cpu_ns: list[int] = []

    def __enter__(self) -> None:
        self._began = (time.perf_counter_ns(), time.thread_time_ns())

    def __exit__(self, *_: object) -> None:
        self._cpu_ns.append(time.thread_time_ns() - self._began[1])
        self._wall_ns.append(time.perf_counter_ns() - self._began[0])

    def clear(self) -> None:
        self._wall_ns.clear()
        self._cpu_ns.clear()

    @property
    def wall_s(self) -> float:
        return sum(self._wall_ns) / 1e9

    def report(self) -> dict[str, dict[str, float]]:
        return {"cpu": quantiles(self._cpu_ns), "wall": quantiles(self._wall_ns)}


def quantiles(values_ns: list[int]) -> dict[str, float]:
    ordered = sorted(values_ns)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 1)
        for name, share in (("p50", 0.50), ("p99", 0.99), ("max", 1.0))
    }


def machine() -> dict[str, str]:
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "load_1m": f"{os.getloadavg()[0]:.1f}",  # above the cores: `wall` tells of others too
        "python": sys.version.split()[0],
        "system": platform.platform(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--policy", action="append", help="default: four of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()

    def least_disturbed(
        policy: str, running: int, waiting: int, *, is_short: bool
    ) -> dict[str, Any]:
        rounds = [
            measure(policy, running, waiting, args.steps, args.seed, is_short=is_short)
            for _ in range(args.rounds)
        ]
        return min(rounds, key=lambda row: row["wall_s"])

    rows = [
        least_disturbed(policy, running, waiting, is_short=is_short)
        for policy in args.policy or ["fcfs", "sarathi", "slai", "hybrid"]
        for running, waiting in GOALS_US
        for is_short in (False, True)
    ]
    for row in rows:
        print(json.dumps(row))
    if not args.dry_run:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine(), "seed": args.seed, "rounds": args.rounds, "rows": rows}
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
