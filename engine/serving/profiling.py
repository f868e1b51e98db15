"""Measures what the steps of a real engine take: workloads in, observations out; it fits nothing.

The engine runs as in service: its own process, loop, scheduler, sampler, messages and a reader
for every stream. Workloads are chosen so that the steps cover what an engine meets: decodes alone
over batch sizes and context lengths, prompt chunks over sizes and starts, and both together. A
step's time is from its batch to the next batch, so the engine's own work between steps is in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from engine.core.clock import NS_PER_S, Clock, MonotonicClock
from engine.core.errors import EngineUnavailable
from engine.core.request import FinishReason, RequestOrder, SamplingParams
from engine.serving.client import EngineClient, EngineInfo, TokenStream
from engine.serving.config import EngineConfig
from engine.serving.neighbours import NeighbourMeter
from engine.serving.process import EngineProcess
from engine.serving.step_records import Measured, StepRecord, summarise

RECORDER = "engine.model.profiler:make"
TOKEN_IDS = range(10, 250)  # every tokenizer has these
CHUNKS = (1, 4, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 1024, 2048)
DECODE_STEPS = 24
USERS = (1, 4, 16, 64)
TRAFFIC_ROUNDS = 3  # as many rounds of it as the budget is made for
THINK_S = 0.02  # of one user; several think shorter, or the engine would never be full
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`rows` requests decode behind `context` tokens each; meanwhile prompts come one by one.

    `prompts` are (start, size): `size` new tokens behind `start` cached ones. Without rows each
    prompt is alone; without prompts the rows decode for DECODE_STEPS steps.
    """

    rows: int = 0
    context: int = 0
    prompts: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, about: what decides how long it takes."""
        return self.rows * (self.context + DECODE_STEPS) + sum(a + b for a, b in self.prompts)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Service in small: users who think, ask and read, each with one request at a time.

    Prompts have 4 to `most_prompt` tokens and answers 2 to `most_output`, drawn evenly by their
    logarithm; a user thinks for `think_s` on average before each.
    """

    users: int
    think_s: float
    most_prompt: int
    most_output: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: each scenario up to `rounds` times, in about `budget_s` seconds."""

    scenarios: tuple[Scenario, ...]
    rounds: int
    budget_s: float
    traffic: tuple[Traffic, ...] = ()  # played once in every round


def make_plan(info: EngineInfo, *, quick: bool = False) -> Plan:
    """Return what to measure of an engine of this size."""
    held = int(0.8 * info.num_blocks * info.block_size)
    longest = info.max_model_len - 4 * DECODE_STEPS
    budget = info.max_batch_tokens
    all_rows = (1, 8, 64) if quick else (1, 2, 4, 8, 16, 32, 48, 64, 128, 256)
    rows = [n for n in all_rows if n <= info.max_batch_requests]
    contexts = [n for n in ((64, 512) if quick else (16, 256, 1024)) if n <= longest]
    contexts = contexts or [max(1, info.max_model_len // 2)]
    sizes = [
        n for n in ((16, 128, 512) if quick else CHUNKS) if n <= min(budget, info.max_model_len - 2)
    ]
    starts = [n for n in ((512,) if quick else (256, 1024, 1536)) if n + budget <= longest]
    behind = tuple((start, size) for start in starts for size in sizes if size >= 16)
    found = [Scenario(n, context) for n in rows for context in contexts]
    found += [Scenario(prompts=tuple((0, size) for size in sizes)), Scenario(prompts=behind)]
    # One seat stays free, or the prompts would wait until a row has ended.
    beside = sorted({min(n, info.max_batch_requests - 1, budget - 1) for n in rows[1:]})
    found += [
        Scenario(n, context, tuple((0, min(size, budget - n)) for size in sizes if size >= 16))
        for n in beside
        for context in contexts[:2]
        if n > 0
    ]
    fitting = [
        s
        for s in found
        if (s.rows or s.prompts) and s.rows * (s.context + 4 * DECODE_STEPS) <= held
    ]
    ordered = tuple(sorted(fitting, key=lambda scenario: scenario.num_tokens))
    budget_s = 10.0 if quick else 45.0
    return Plan(ordered, 2 if quick else 5, budget_s, _traffic(info, budget_s))


def _traffic(info: EngineInfo, budget_s: float) -> tuple[Traffic, ...]:
    """Return traffic from light to more than can be served; a third of the time in all."""
    longest = info.max_model_len // 4
    if longest < 4:
        return ()
    fitting = info.num_blocks * info.block_size // (2 * longest)
    users = [n for n in USERS if n <= min(info.max_batch_requests, max(1, fitting))]
    seconds = budget_s / (3 * len(users) * TRAFFIC_ROUNDS)
    return tuple(Traffic(n, THINK_S / n, longest, longest // 2, seconds) for n in users)


async def measure(
    config: EngineConfig,
    progress: Progress,
    *,
    quick: bool = False,
    plan: Plan | None = None,
    budget_s: float | None = None,
    recorder: str = RECORDER,
    clock: Clock | None = None,
) -> Measured:
    """Start an engine, run the plan (one of its size by default), and return what was seen.

    `budget_s` replaces the plan's time.
    `recorder` makes an executor that writes as engine/model/profiler.py says. Raises
    ModelLoadError, one line, for what an operator can put right.
    """
    with tempfile.TemporaryDirectory(prefix="tiergate-profile-") as folder:
        path = Path(folder) / "steps.jsonl"
        recorded = replace(
            config,
            executor=recorder,
            executor_options=(*config.executor_options, ("record", str(path))),
            policy="fcfs",
            policy_options=(),
            host_kv_bytes=0,  # the recorder carries contexts itself, in both formats
            host_kv_format="raw",
        )
        engine = EngineProcess(recorded, on_progress=progress)
        await engine.start()
        try:
            assert engine.info is not None
            info, chosen = engine.info, plan or make_plan(engine.info, quick=quick)
            if budget_s is not None:
                chosen = replace(chosen, budget_s=budget_s)
            driver = Driver(engine, info, clock or MonotonicClock())
            meter = NeighbourMeter((os.getpid(), info.pid))
            windows = await driver.run(chosen, progress)
            neighbours = meter.cores()
        finally:
            await engine.close()
        with path.open(encoding="utf-8") as lines:
            facts: dict[str, float] = json.loads(next(lines))
            steps = [StepRecord(*json.loads(line)) for line in lines if line.endswith("\n")]
    seen = summarise(info, facts, steps, windows, num_scenarios=len(chosen.scenarios))
    return replace(seen, neighbours=neighbours)


class Driver:
    """Runs scenarios on an engine."""

    def __init__(self, engine: EngineClient, info: EngineInfo, clock: Clock) -> None:
        self._engine = engine
        self._info = info
        self._clock = clock
        self._rng = random.Random(0)
        self._count = 0
        self._stepped = asyncio.Event()
        engine.add_step_listener(lambda stats: self._stepped.set())

    async def run(self, plan: Plan, progress: Progress) -> list[tuple[int, int]]:
        """Run the plan; return when each run of a scenario began (ns), and which one it was.

        The smallest scenarios come first; when half the time is gone in the first round, the rest
        of it is left out, so that a slow model still gets its smallest steps measured twice.
        """
        began_ns = self._clock.now_ns()
        budget_ns = plan.budget_s * NS_PER_S
        windows: list[tuple[int, int]] = []
        chosen = list(range(len(plan.scenarios)))
        await self._play(Scenario(4, 32, ((0, 16),)))  # caches and threads warm up
        for number in range(plan.rounds):
            for offset, traffic in enumerate(plan.traffic):
                if number and self._clock.now_ns() - began_ns > budget_ns:
                    break
                progress("measuring", min(1.0, number / plan.rounds))
                windows.append((self._clock.now_ns(), len(plan.scenarios) + offset))
                await self._serve(traffic)
            for place, index in enumerate(list(chosen)):
                spent_ns = self._clock.now_ns() - began_ns
                if number == 0 and place > 3 and spent_ns > budget_ns / 2:
                    del chosen[place:]
                    break
                if number > 0 and spent_ns > budget_ns:
                    break
                by_work = (number + place / len(chosen)) / plan.rounds
                progress("measuring", min(1.0, max(by_work, spent_ns / budget_ns)))
                windows.append((self._clock.now_ns(), index))
                await self._play(plan.scenarios[index])
        windows.append((self._clock.now_ns(), -1))
        return windows

    async def _play(self, scenario: Scenario) -> None:
        """Run one scenario; when this returns, none of its requests is open."""
        # While the last of the rows still has its prompt computed, the first decode already.
        spare = max(1, self._info.max_batch_tokens - scenario.rows)
        ramp = scenario.rows * scenario.context // spare + 2
        longest = self._info.max_model_len - scenario.context - 1
        steps = longest if scenario.prompts else min(longest, ramp + DECODE_STEPS)
        # All tokens are drawn beforehand: no door does that while its engine computes.
        contexts = [self._tokens(scenario.context) for _ in range(scenario.rows)]
        prompts = [(self._tokens(start), self._tokens(size)) for start, size in scenario.prompts]
        rows = [self._submit(context, steps) for context in contexts]
        try:
            async with asyncio.TaskGroup() as readers:
                for _, stream in rows:
                    readers.create_task(read_to_the_end(stream))
                if rows and scenario.prompts:
                    await self._until_decoding(len(rows))
                for cached, new in prompts:
                    await self._prompt(cached, new, alone=not rows)
                if rows and scenario.prompts:
                    await self._next_step()  # it tells when the one before it was over
                    for name, _ in rows:
                        self._engine.abort(name)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _serve(self, traffic: Traffic) -> None:
        """Let the users come and go; when this returns, none of their requests is open."""
        until_ns = self._clock.now_ns() + int(traffic.seconds * NS_PER_S)
        try:
            async with asyncio.TaskGroup() as users:
                for _ in range(traffic.users):
                    users.create_task(self._use(traffic, until_ns))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _use(self, traffic: Traffic, until_ns: int) -> None:
        while self._clock.now_ns() < until_ns:
            prompt = self._tokens(self._size(4, traffic.most_prompt))
            await asyncio.sleep(self._rng.expovariate(1 / traffic.think_s))
            _, stream = self._submit(prompt, self._size(2, traffic.most_output))
            await read_to_the_end(stream)

    def _size(self, least: int, most: int) -> int:
        """Draw a number of tokens, evenly by its logarithm."""
        drawn: float = least * (max(least, most) / least) ** self._rng.random()
        return round(drawn)

    async def _until_decoding(self, rows: int) -> None:
        """Wait until all rows run and no prompt waits."""
        while (seen := self._engine.snapshot) is None or seen.running < rows or seen.waiting:
            await self._next_step()

    async def _next_step(self) -> None:
        self._stepped.clear()
        await self._stepped.wait()

    async def _prompt(self, cached: tuple[int, ...], new: tuple[int, ...], *, alone: bool) -> None:
        """Have the `new` tokens computed behind `cached` ones.

        Alone, a second token is asked for: the step after it tells when this one was over.
        """
        if cached:
            _, stream = self._submit(cached, 1)
            await read_to_the_end(stream)
        _, stream = self._submit(cached + new, 2 if alone else 1)
        await read_to_the_end(stream)

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.choices(TOKEN_IDS, k=count))

    def _submit(self, prompt: tuple[int, ...], max_tokens: int) -> tuple[str, TokenStream]:
        self._count += 1
        name = f"profile-{self._count}"
        params = SamplingParams(max_tokens=max(1, max_tokens), seed=self._count)
        order = RequestOrder(name, prompt or (TOKEN_IDS[0],), params, self._clock.now_ns())
        return name, self._engine.submit(order)


async def read_to_the_end(stream: TokenStream) -> None:
    """Take what comes, as a door would; raises EngineUnavailable when the engine gives up."""
    while events := await stream.next_events():
        last = events[-1]
        if last.finish_reason in (FinishReason.FAILED, FinishReason.REJECTED):
            assert last.stats is not None
            raise EngineUnavailable(
                f"the engine gave up while it was measured: {last.stats.detail}"
            )
