"""What the process boundary costs: the same loop in a child process and in a thread of the door.

An executor that is free (or sleeps 5 ms, like a device that leaves the CPU alone) answers 1, 16
and 64 streams, each read by its own task. `delivery` is from the end of the step in the engine to
the reader of a stream, `interval` from step to step, CPU is per step: the door's process, and the
engine's main thread where it is a process of its own. Garbage collection runs as in service.
Run: python -m benchmarks.engine_ipc
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import uvloop

from engine.core.batch import Batch, SampledToken, StepResult
from engine.core.clock import MonotonicClock, utc_now
from engine.core.executor import Capacity
from engine.core.request import RequestOrder, SamplingParams
from engine.core.stats import Snapshot, StepStats, TokenEvent
from engine.serving.build import ProgressReport
from engine.serving.client import TokenStream
from engine.serving.config import EngineConfig
from engine.serving.inprocess import InProcessEngine
from engine.serving.messages import StepOutput, output_codec
from engine.serving.process import EngineProcess

RESULT = Path(__file__).parent / "results" / "engine_ipc.json"
STREAMS = (1, 16, 64)
STEP_S = {"free": 0.0, "5 ms": 0.005}
WARM_STEPS = 100
CLOCK = MonotonicClock()


@dataclass(frozen=True, slots=True)
class Info:
    model: str = "free"
    model_path: str = ""
    runner: str = "benchmark"
    device: str = "none"
    dtype: str = "none"


class FreeExecutor:
    """Answers every step with the same token after a fixed sleep."""

    def __init__(self, step_s: float) -> None:
        self.capacity = Capacity(65_536, 16, 65_536, 2_048, 64)
        self.info = Info()
        self._step_s = step_s

    def execute(self, batch: Batch) -> StepResult:
        if self._step_s:
            time.sleep(self._step_s)
        tokens = tuple(SampledToken(c.request_id, 7) for c in batch.chunks if c.sampling)
        return StepResult(batch.step, tokens, 0)


def make(config: EngineConfig, progress: ProgressReport) -> FreeExecutor:
    """Make the executor; looked up by name in the engine's process."""
    return FreeExecutor(float(dict(config.executor_options)["step_s"]))


class Probe:
    """Counts steps and collects the times of arrival from `WARM_STEPS` on."""

    def __init__(self, engine_pid: int | None) -> None:
        self._pid = engine_pid
        self.delivery_ns: list[int] = []
        self.steps_ns: list[int] = []
        self._began: tuple[int, int, int] | None = None
        self._last_step = 0

    def on_step(self, stats: StepStats) -> None:
        if stats.step == WARM_STEPS:
            self.delivery_ns.clear()
            self.steps_ns.clear()
            self._began = (stats.step, *self._cpu_ns())
        self.steps_ns.append(stats.started_ns)
        self._last_step = stats.step

    def finish(self) -> dict[str, float]:
        assert self._began is not None
        count = self._last_step - self._began[0]
        now = self._cpu_ns()
        return {
            "door": round((now[0] - self._began[1]) / count / 1000, 1),
            "engine": round((now[1] - self._began[2]) / count / 1000, 1),
        }

    def _cpu_ns(self) -> tuple[int, int]:
        engine = 0
        if self._pid is not None:  # Linux: nanoseconds on the CPU of the main thread
            engine = int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0])
        return time.process_time_ns(), engine


async def measure(kind: str, step: str, streams: int, steps: int) -> dict[str, object]:
    config = EngineConfig(
        model="free",
        executor="engine_ipc:make" if kind == "process" else f"{__spec__.name}:make",
        executor_options=(("step_s", str(STEP_S[step])),),
        import_paths=(str(Path(__file__).parent),),
        policy="fcfs",
    )
    engine = EngineProcess(config) if kind == "process" else InProcessEngine(config)
    await engine.start()
    assert engine.info is not None
    probe = Probe(engine.info.pid if kind == "process" else None)
    engine.add_step_listener(probe.on_step)

    async def read(stream: TokenStream) -> None:
        while events := await stream.next_events():
            now_ns = CLOCK.now_ns()
            probe.delivery_ns.extend(now_ns - event.at_ns for event in events)

    orders = [
        RequestOrder(
            f"chatcmpl-{i:032x}",
            tuple(range(16)),
            SamplingParams(max_tokens=steps + WARM_STEPS, temperature=0.0),
            CLOCK.now_ns(),
        )
        for i in range(streams)
    ]
    await asyncio.gather(*[read(engine.submit(order)) for order in orders])
    cpu = probe.finish()
    await engine.close()
    intervals = [b - a for a, b in zip(probe.steps_ns, probe.steps_ns[1:], strict=False)]
    return {
        "engine": kind,
        "step": step,
        "streams": streams,
        "delivery_us": quantiles(probe.delivery_ns),
        "interval_us": quantiles(intervals),
        "cpu_us_per_step": cpu,
    }


def quantiles(values_ns: list[int]) -> dict[str, float]:
    ordered = sorted(values_ns)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 1)
        for name, share in (("p50", 0.50), ("p99", 0.99))
    }


def message_cost(streams: int, repeats: int = 2000) -> dict[str, float]:
    """Bytes of one message, and CPU microseconds to pack and unpack it (best of five)."""
    now_ns = CLOCK.now_ns()
    step = StepOutput(
        tuple(TokenEvent(f"chatcmpl-{i:032x}", 31_999, now_ns) for i in range(streams)),
        StepStats(*[1000] * len(fields(StepStats))),
        Snapshot(1000, now_ns, 1, streams, 0, 1000, 900, 1000, (("free", 1),), (("free", 64),)),
    )
    codec = output_codec()
    frame = codec.encode(step)
    pack, unpack = [], []
    for _ in range(5):
        began = time.thread_time_ns()
        for _ in range(repeats):
            codec.encode(step)
        middle = time.thread_time_ns()
        for _ in range(repeats):
            codec.feed(frame)
        pack.append(middle - began)
        unpack.append(time.thread_time_ns() - middle)
    return {
        "streams": streams,
        "bytes": len(frame),
        "pack_us": round(min(pack) / repeats / 1000, 1),
        "unpack_us": round(min(unpack) / repeats / 1000, 1),
    }


def combine(runs: list[dict[str, object]]) -> dict[str, object]:
    """Return the run with the median p50 interval: repeats guard against a busy neighbour."""
    ordered = sorted(runs, key=lambda run: run["interval_us"]["p50"])  # type: ignore[index]
    return ordered[len(ordered) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    runner = uvloop.run if args.loop == "uvloop" else asyncio.run
    busy = os.getloadavg()  # of everybody else, before this begins
    messages = [message_cost(streams) for streams in STREAMS]
    rows = []
    for step in STEP_S:
        for streams in STREAMS:
            for kind in ("thread", "process"):
                runs = [
                    runner(measure(kind, step, streams, args.steps)) for _ in range(args.repeats)
                ]
                rows.append(combine(runs))
    for row in [*messages, *rows]:
        print(json.dumps(row))
    if not args.dry_run:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "measured": utc_now().date().isoformat(),
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "python": sys.version.split()[0],
                "load_average": [round(load, 1) for load in busy],
            },
            "event_loop": args.loop,
            "steps": args.steps,
            "messages": messages,
            "rows": rows,
        }
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
