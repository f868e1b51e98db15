"""A load that changes its kind every few seconds, on an engine in a process of its own, recorded.

Each step is noted as `tiergate profile` notes it (engine/model/profiler.py); a step's time is from
its batch to the next, less what writing the line took.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from engine.core.clock import NS_PER_S, MonotonicClock
from engine.core.request import RequestOrder, SamplingParams
from engine.core.step_features import Held, freshness
from engine.serving.client import EngineClient
from engine.serving.config import EngineConfig
from engine.serving.neighbours import NeighbourMeter
from engine.serving.process import EngineProcess
from engine.serving.profiling import RECORDER, TOKEN_IDS, read_to_the_end
from engine.serving.step_records import StepRecord

PHASES = ("decodes", "prompts", "mixed", "bursts", "one user", "long contexts")
CLOCK = MonotonicClock()


@dataclass(frozen=True, slots=True)
class Step:
    """What a step held, how long it took (ns), and in which phase of the load (by number)."""

    held: Held
    ns: int
    phase: str
    window: int


@dataclass(frozen=True, slots=True)
class Recording:
    """Steps that followed each other, and the circumstances.

    `live_errors` are (phase, median, p99) as the engine exported them at the end of each window.
    """

    steps: tuple[Step, ...]
    seconds: float
    neighbours: float | None
    live_errors: tuple[tuple[str, float, float], ...]


class Load:
    """Asks an engine for answers; sizes are drawn evenly by their logarithm."""

    def __init__(self, engine: EngineClient, seed: int) -> None:
        self._engine = engine
        self._rng = random.Random(seed)
        self._count = 0

    def order_of_phases(self) -> list[str]:
        """Return the phases of one cycle, shuffled."""
        return self._rng.sample(PHASES, len(PHASES))

    async def play(self, phase: str, seconds: float) -> None:
        """Load the engine in one way for about so long; returns when nothing is open."""
        if phase == "decodes":
            await self._users(40, seconds, (8, 40), (60, 200), 0.01)
        elif phase == "prompts":
            await self._users(6, seconds, (300, 1500), (2, 6), 0.01)
        elif phase == "mixed":
            await self._poisson(25.0, seconds, (10, 400), (10, 120))
        elif phase == "bursts":
            until_ns = CLOCK.now_ns() + int(seconds * NS_PER_S)
            while CLOCK.now_ns() < until_ns:
                await self._burst(24, (20, 300), (10, 60))
                await asyncio.sleep(0.3)
        elif phase == "one user":
            await self._users(1, seconds, (10, 300), (10, 60), 0.05)
        else:
            await self._users(12, seconds, (600, 1400), (40, 160), 0.05)

    async def _ask(self, prompt: tuple[int, int], output: tuple[int, int]) -> None:
        self._count += 1
        tokens = tuple(self._rng.choices(TOKEN_IDS, k=self._size(prompt)))
        sampling = SamplingParams(max_tokens=self._size(output), seed=self._count)
        order = RequestOrder(f"mix-{self._count}", tokens, sampling, CLOCK.now_ns())
        await read_to_the_end(self._engine.submit(order))

    def _size(self, span: tuple[int, int]) -> int:
        least, most = span
        drawn: float = least * (most / least) ** self._rng.random()
        return round(drawn)

    async def _users(
        self,
        count: int,
        seconds: float,
        prompt: tuple[int, int],
        output: tuple[int, int],
        think_s: float,
    ) -> None:
        until_ns = CLOCK.now_ns() + int(seconds * NS_PER_S)

        async def use() -> None:
            while CLOCK.now_ns() < until_ns:
                await asyncio.sleep(self._rng.expovariate(1 / think_s))
                await self._ask(prompt, output)

        async with asyncio.TaskGroup() as users:
            for _ in range(count):
                users.create_task(use())

    async def _poisson(
        self, rate: float, seconds: float, prompt: tuple[int, int], output: tuple[int, int]
    ) -> None:
        until_ns = CLOCK.now_ns() + int(seconds * NS_PER_S)
        async with asyncio.TaskGroup() as readers:
            while CLOCK.now_ns() < until_ns:
                await asyncio.sleep(self._rng.expovariate(rate))
                readers.create_task(self._ask(prompt, output))

    async def _burst(self, count: int, prompt: tuple[int, int], output: tuple[int, int]) -> None:
        async with asyncio.TaskGroup() as readers:
            for _ in range(count):
                readers.create_task(self._ask(prompt, output))


async def record(
    config: EngineConfig,
    lines: Path,
    *,
    cycles: int,
    seconds: float,
    seed: int,
    realtime: bool = False,
) -> Recording:
    """Run so many cycles of all phases, `seconds` each; the engine writes its steps to `lines`.

    `realtime` has the engine's threads run before everybody else's, where the system allows it.
    """
    options = (*config.executor_options, ("record", str(lines)))
    engine = EngineProcess(replace(config, executor=RECORDER, executor_options=options))
    await engine.start()
    windows: list[tuple[int, str]] = []
    live: list[tuple[str, float, float]] = []
    try:
        assert engine.info is not None
        if realtime:
            for thread in os.listdir(f"/proc/{engine.info.pid}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))
        load = Load(engine, seed)
        await load.play("one user", 1.0)  # caches and threads warm up
        meter = NeighbourMeter((os.getpid(), engine.info.pid))
        began_ns = CLOCK.now_ns()
        for phase in [phase for _ in range(cycles) for phase in load.order_of_phases()]:
            windows.append((CLOCK.now_ns(), phase))
            await load.play(phase, seconds)
            now = engine.snapshot
            assert now is not None
            live.append((phase, now.latency_error_p50 or 0.0, now.latency_error_p99 or 0.0))
        windows.append((CLOCK.now_ns(), ""))
        neighbours = meter.cores()
    finally:
        await engine.close()
    took_s = (windows[-1][0] - began_ns) / NS_PER_S
    return Recording(steps_of(lines, windows), took_s, neighbours, tuple(live))


def steps_of(lines: Path, windows: Sequence[tuple[int, str]]) -> tuple[Step, ...]:
    """Return the steps within the windows where the engine cannot have idled before the next."""
    with lines.open(encoding="utf-8") as file:
        next(file)
        noted = [StepRecord(*json.loads(line)) for line in file if line.endswith("\n")]
    found, place, since_idle, follows_prompt = [], -1, 0, False
    for step, following in pairwise(noted):
        since_idle = since_idle + 1 if step.continues else 0
        fresh = freshness(since_idle, follows_prompt=bool(step.continues) and follows_prompt)
        follows_prompt = step.num_prefills > 0
        while place + 1 < len(windows) and windows[place + 1][0] <= step.began_ns:
            place += 1
        if place < 0 or not windows[place][1] or not following.continues:
            continue
        held = Held(
            step.num_tokens,
            step.num_decodes + step.num_prefills,
            step.num_prefills,
            step.kv_tokens,
            step.pairs,
            step.prompt_kv,
            fresh,
        )
        took_ns = following.began_ns - step.began_ns - following.writing_ns
        found.append(Step(held, took_ns, windows[place][1], place))
    return tuple(found)


def keep(recording: Recording, path: Path) -> None:
    """Write a recording, so that models can be compared on it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(recording)), encoding="utf-8")


def kept(path: Path) -> Recording:
    """Read what `keep` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    steps = [Step(Held(*s["held"]), s["ns"], s["phase"], s["window"]) for s in fields["steps"]]
    live = [(phase, p50, p99) for phase, p50, p99 in fields["live_errors"]]
    return Recording(tuple(steps), fields["seconds"], fields["neighbours"], tuple(live))
