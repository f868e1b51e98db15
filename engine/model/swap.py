"""Carries contexts between device and host while steps compute; it knows copies, and no request.

A copy is cut into slices of about a mebibyte, so that a long context holds nobody up. On a CPU both
sides are the machine's own memory: either a worker thread carries slices beside the compute, or,
where the compute uses every core, `poll` carries some after it: a tenth of the step's time, so that
nobody's tokens come much later for it. Whatever way, a copy reads what earlier steps wrote, and
neither side is touched any more once it was reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.core.batch import Copy
from engine.core.clock import Clock, MonotonicClock
from engine.model.block_packer import TorchPacker
from engine.model.host_cache import HostCache
from engine.model.kv_cache import KVCache

SLICE_BYTES = 1 << 20
STEP_SHARE = 0.1  # of a step's time may go into copies at its end


@dataclass(frozen=True, slots=True)
class Finished:
    """Numbers of the copies that are over, and of those that are over and worth nothing."""

    copied: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()


NOTHING = Finished()


class SwapEngine(Protocol):
    """Carries copies; called from the engine's thread only."""

    def begin(self, parks: Sequence[Copy], returns: Sequence[Copy]) -> None:
        """Take copies; what they read is already there, and nobody writes it until they end."""
        ...

    def poll(self, step_ns: int) -> Finished:
        """Return what has ended since the last call, after a step that took so long."""
        ...

    def wait_any(self) -> Finished:
        """The same, once there is something: at least one copy is under way."""
        ...

    def drain(self) -> None:
        """Bring everything to a standstill and forget it: no copy is under way afterwards."""
        ...

    def close(self) -> None:
        """Stop for good; may be called twice."""
        ...


class BlockMover(Protocol):
    """Moves a few blocks now."""

    def move_out(self, blocks: Sequence[int], host_blocks: Sequence[int], num_tokens: int) -> bool:
        """Copy device blocks, with `num_tokens` in use, to the host; False if they cannot be kept.

        That is the case for int8 and numbers that are not finite.
        """
        ...

    def move_back(self, host_blocks: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy host blocks into device blocks."""
        ...


class TorchMover:
    """Moves blocks with torch's operators, through a staging copy in the host's order."""

    def __init__(self, cache: KVCache, host: HostCache) -> None:
        self._host = host
        self._packer = TorchPacker(cache, host.form)

    @torch.inference_mode()
    def move_out(self, blocks: Sequence[int], host_blocks: Sequence[int], num_tokens: int) -> bool:
        """See BlockMover."""
        packed = torch.empty((len(blocks), self._host.block_bytes), dtype=torch.uint8)
        self._packer.pack(torch.tensor(blocks), packed, num_tokens)
        self._host.data[torch.tensor(host_blocks)] = packed
        return self._packer.is_sound(packed)

    @torch.inference_mode()
    def move_back(self, host_blocks: Sequence[int], blocks: Sequence[int]) -> None:
        """See BlockMover."""
        packed = self._host.data.index_select(0, torch.tensor(host_blocks))
        self._packer.unpack(packed, torch.tensor(blocks))


class _Job:
    """One copy under way and how far it has come."""

    __slots__ = (
        "_at",
        "_copy",
        "_host",
        "_is_park",
        "_mover",
        "_per_slice",
        "is_lost",
        "is_stopped",
    )

    def __init__(self, copy: Copy, is_park: bool, host: HostCache, mover: BlockMover) -> None:
        assert copy.block_ids, f"{copy.request_id}: an empty copy"
        assert len(copy.block_ids) == len(copy.host_block_ids), f"{copy.request_id}: two lengths"
        self._copy = copy
        self._is_park = is_park
        self._host = host
        self._mover = mover
        self._per_slice = max(1, SLICE_BYTES // host.block_bytes)
        self._at = 0
        self.is_lost = False
        self.is_stopped = False  # asked to end at the next slice

    @property
    def number(self) -> int:
        """The copy's number."""
        return self._copy.number

    def run(self) -> None:
        """Carry slices until the copy is over or stopped."""
        while not self.is_stopped and not self.advance():
            pass

    def advance(self) -> bool:
        """Carry one slice; True once the copy is over."""
        copy, first = self._copy, self._at
        last = min(first + self._per_slice, len(copy.block_ids))
        blocks, host_blocks = copy.block_ids[first:last], copy.host_block_ids[first:last]
        if self._is_park:
            size = self._host.block_size
            num_tokens = copy.num_tokens or len(copy.block_ids) * size
            here = min(max(0, num_tokens - first * size), len(blocks) * size)
            self.is_lost = not self._mover.move_out(blocks, host_blocks, here)
            self._host.seal(host_blocks)
        elif self._host.is_intact(host_blocks):
            self._mover.move_back(host_blocks, blocks)
        else:
            self.is_lost = True
        self._at = last
        return self.is_lost or last == len(copy.block_ids)


class InlineSwap:
    """Carries copies in the engine's own thread, at the end of a step and in the order given.

    A slice always, and more as long as that takes no more than STEP_SHARE of the step's own time;
    what is left goes on in the next.
    """

    def __init__(self, host: HostCache, mover: BlockMover, clock: Clock | None = None) -> None:
        self._host = host
        self._mover = mover
        self._clock = clock or MonotonicClock()
        self._jobs: deque[_Job] = deque()

    def begin(self, parks: Sequence[Copy], returns: Sequence[Copy]) -> None:
        """See SwapEngine."""
        self._jobs.extend([_Job(copy, True, self._host, self._mover) for copy in parks])
        self._jobs.extend([_Job(copy, False, self._host, self._mover) for copy in returns])

    def poll(self, step_ns: int) -> Finished:
        """See SwapEngine."""
        if not self._jobs:
            return NOTHING
        over: list[_Job] = []
        until_ns = self._clock.now_ns() + int(STEP_SHARE * step_ns)
        self._advance(over)
        while self._jobs and self._clock.now_ns() < until_ns:
            self._advance(over)
        return _finished(over)

    def wait_any(self) -> Finished:
        """See SwapEngine."""
        assert self._jobs, "no copy is under way to wait for"
        over: list[_Job] = []
        while not over:
            self._advance(over)
        return _finished(over)

    def drain(self) -> None:
        """See SwapEngine."""
        self._jobs.clear()

    def close(self) -> None:
        """See SwapEngine."""
        self._jobs.clear()

    def _advance(self, over: list[_Job]) -> None:
        if self._jobs[0].advance():
            over.append(self._jobs.popleft())


class ThreadedSwap:
    """Carries copies in a thread of its own, in the order given.

    There is never more to do than there are host blocks: a copy has one at least, and each is part
    of one copy only. What breaks the thread is raised by the call that would have reported it.
    """

    def __init__(self, host: HostCache, mover: BlockMover) -> None:
        self._host = host
        self._mover = mover
        self._under_way: deque[tuple[_Job, Future[None]]] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="swap")

    def begin(self, parks: Sequence[Copy], returns: Sequence[Copy]) -> None:
        """See SwapEngine."""
        jobs = [_Job(copy, True, self._host, self._mover) for copy in parks]
        jobs += [_Job(copy, False, self._host, self._mover) for copy in returns]
        self._under_way.extend([(job, self._worker.submit(job.run)) for job in jobs])
        assert len(self._under_way) <= self._host.num_blocks, "more copies than host blocks"

    def poll(self, step_ns: int = 0) -> Finished:
        """See SwapEngine."""
        if not (self._under_way and self._under_way[0][1].done()):
            return NOTHING
        over: list[_Job] = []
        while self._under_way and self._under_way[0][1].done():
            job, future = self._under_way.popleft()
            future.result()
            over.append(job)
        return _finished(over)

    def wait_any(self) -> Finished:
        """See SwapEngine."""
        assert self._under_way, "no copy is under way to wait for"
        wait([self._under_way[0][1]])
        return self.poll()

    def drain(self) -> None:
        """See SwapEngine."""
        for job, _ in self._under_way:
            job.is_stopped = True
        wait([future for _, future in self._under_way])
        self._under_way.clear()

    def close(self) -> None:
        """See SwapEngine."""
        self.drain()
        self._worker.shutdown()


def _finished(over: Sequence[_Job]) -> Finished:
    return Finished(
        tuple([job.number for job in over if not job.is_lost]),
        tuple([job.number for job in over if job.is_lost]),
    )
