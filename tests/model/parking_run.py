"""Parks requests of a real engine whenever it pleases, and loses copies when told to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.core.batch import Batch, Copy
from engine.core.engine_core import EngineCore
from engine.core.policies.fcfs import Fcfs
from engine.core.policy import StepLimits, Traffic, View
from engine.core.request import Request, RequestOrder, SamplingParams
from engine.core.stats import Snapshot
from engine.model.host_cache import HostCache, HostFormat
from engine.model.host_side import make_swap
from engine.model.kernels.native import NativeKernels
from engine.model.model_runner import ModelRunner
from engine.model.swap import Finished, SwapEngine

Work = Sequence[tuple[tuple[int, ...], int]]


class ForcedParks(Fcfs):
    """First come, first served; who has got on by `every` tokens since its last park is parked.

    `ids` are those it may park, None: all of them; only those that decode unless `prompts`. Who is
    parked comes back when a coin says so.
    """

    def __init__(
        self,
        draw: random.Random,
        most: int,
        every: int,
        ids: frozenset[str] | None = None,
        *,
        prompts: bool = True,
    ) -> None:
        super().__init__()
        self._draw = draw
        self._most = most
        self._every = every
        self._ids = ids
        self._prompts = prompts

    @property
    def swaps(self) -> bool:
        return True

    def limits(self, view: View) -> StepLimits:
        return StepLimits(max_tokens=self._draw.randint(1, self._most))

    def traffic(self, view: View) -> Traffic:
        running = (*view.decoding, *view.prefilling) if self._prompts else view.decoding
        return Traffic(
            park=[r for r in running if self._is_due(r)],
            back=[r for r in view.parked if self._draw.random() < 0.4],
        )

    def _is_due(self, request: Request) -> bool:
        is_meant = self._ids is None or request.id in self._ids
        return is_meant and request.num_computed - request.parked_at >= self._every


class LossySwap:
    """Another engine's copies, some of which are said to have failed."""

    def __init__(self, inner: SwapEngine, draw: random.Random, share: float) -> None:
        self._inner = inner
        self._draw = draw
        self._share = share

    def begin(self, parks: Sequence[Copy], returns: Sequence[Copy]) -> None:
        self._inner.begin(parks, returns)

    def poll(self, step_ns: int) -> Finished:
        return self._lose(self._inner.poll(step_ns))

    def wait_any(self) -> Finished:
        return self._lose(self._inner.wait_any())

    def drain(self) -> None:
        self._inner.drain()

    def close(self) -> None:
        self._inner.close()

    def _lose(self, found: Finished) -> Finished:
        lost = [number for number in found.copied if self._draw.random() < self._share]
        kept = tuple(number for number in found.copied if number not in lost)
        return Finished(kept, (*found.lost, *lost))


class Hurried:
    """A clock on which everything takes a second, so that every step carries just one slice."""

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        self._now_ns += 1_000_000_000
        return self._now_ns


def with_host(
    runner: ModelRunner,
    num_host_blocks: int,
    form: HostFormat,
    native: NativeKernels | None,
    *,
    spare_core: bool = False,
    checksums: bool = False,
    lossy: tuple[random.Random, float] | None = None,
) -> ModelRunner:
    """The same runner with a host pool; `lossy` is who draws, and the share of lost copies."""
    cache = runner.attention.kv_cache
    host = HostCache(cache.shape, num_host_blocks, cache.block_size, form, checksums=checksums)
    host.data.fill_(0xFF)  # NaN: a block that is read before it is written must show
    swap = make_swap(cache, host, native, spare_core=spare_core, clock=Hurried())
    if lossy is not None:
        swap = LossySwap(swap, *lossy)
    capacity = replace(
        runner.capacity, num_host_blocks=num_host_blocks, host_is_exact=form.is_exact
    )
    return ModelRunner(
        runner.model,
        runner.attention,
        runner._sampler,
        capacity,
        runner.info,
        step=runner._step,
        swap=swap,
    )


def run_parked(
    runner: ModelRunner,
    work: Work,
    policy: Fcfs,
    seed: int,
    before_step: Callable[[], None] | None = None,
) -> tuple[list[list[int]], Snapshot]:
    """Return each order's greedy tokens and the core's last snapshot; time is a counter."""
    draw = random.Random(seed)
    core = EngineCore(runner.capacity, policy)
    waiting = list(enumerate(work))
    answers: list[list[int]] = [[] for _ in work]
    now = 0
    while waiting or core.has_work:
        now += 1
        for _ in range(min(len(waiting), draw.randint(0, 6) if core.has_work else 6)):
            number, (prompt, max_new) = waiting.pop(0)
            sampling = SamplingParams(max_tokens=max_new, temperature=0.0)
            core.submit(RequestOrder(str(number), prompt, sampling, now), now)
        batch = core.start_step(now)
        if batch is None:
            continue
        if before_step is not None:
            before_step()
        result = runner.execute(batch)
        assert result.failed == ()
        _check(batch)
        now += 1
        for event in core.finish_step(batch, result, now):
            if event.token_id is not None:
                answers[int(event.request_id)].append(event.token_id)
    core.check_integrity()
    runner.close()
    return answers, core.snapshot(now)


def _check(batch: Batch) -> None:
    """A copy's blocks are all used: what lies behind the last token is not carried."""
    for copy in (*batch.parks, *batch.returns):
        assert copy.num_tokens > 0
        assert len(copy.block_ids) == len(copy.host_block_ids)
