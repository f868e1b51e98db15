"""Carries contexts between a GPU and pinned host memory beside its computing; it knows copies only.

UNMEASURED: no GPU was at hand; written and reviewed, and its tests skip without one.

One stream per direction. Blocks are gathered (and quantised) on the GPU into contiguous staging,
whose slices cross the link with one copy for each run of neighbouring host blocks: many small
copies would waste the link (FastSwitch, arXiv 2411.18424). What orders what:

* A direction's stream first waits for the compute stream as it is when the copy begins: what is
  read was written, and what is overwritten is read no more.
* Slices of one direction share one staging buffer; their stream is in order, so that is safe.
* A copy is reported only after its event. Whatever is launched later, on either side, comes later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.core.batch import Copy
from engine.model.block_packer import TorchPacker
from engine.model.host_cache import HostCache
from engine.model.kv_cache import KVCache
from engine.model.swap import NOTHING, Finished

STAGING_BYTES = 8 << 20
# Staging of both directions, and what packing one slice of it needs in float32 besides.
DEVICE_BYTES = 16 * STAGING_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """One copy under way, over when its event has come."""

    copy: Copy
    event: torch.cuda.Event
    order: int


class CudaSwap:
    """Two streams, two staging buffers, and the copies under way on each (see swap.SwapEngine)."""

    def __init__(self, cache: KVCache, host: HostCache) -> None:
        self._cache = cache
        self._host = host
        self._packer = TorchPacker(cache, host.form)
        self._out = torch.cuda.Stream(cache.device)  # type: ignore[no-untyped-call]
        self._in = torch.cuda.Stream(cache.device)  # type: ignore[no-untyped-call]
        self._per_slice = max(1, STAGING_BYTES // host.block_bytes)
        self._staging = torch.empty(
            (2, self._per_slice, host.block_bytes), dtype=torch.uint8, device=cache.device
        )
        self._parks: deque[_Flight] = deque()
        self._returns: deque[_Flight] = deque()
        self._lost: list[int] = []
        self._count = 0

    @torch.inference_mode()
    def begin(self, parks: Sequence[Copy], returns: Sequence[Copy]) -> None:
        """See SwapEngine."""
        compute = torch.cuda.current_stream(self._cache.device)
        if parks:
            self._out.wait_stream(compute)
            with torch.cuda.stream(self._out):
                self._parks.extend([self._park(copy) for copy in parks])
        if returns:
            self._in.wait_stream(compute)
            with torch.cuda.stream(self._in):
                for copy in returns:
                    if self._host.is_intact(copy.host_block_ids):
                        self._returns.append(self._return(copy))
                    else:
                        self._lost.append(copy.number)

    def poll(self, step_ns: int = 0) -> Finished:
        """See SwapEngine."""
        if not (self._parks or self._returns or self._lost):
            return NOTHING
        copied: list[int] = []
        lost, self._lost = self._lost, []
        while self._parks and _is_over(self._parks[0]):
            copy = self._parks.popleft().copy
            self._host.seal(copy.host_block_ids)
            (copied if self._is_sound(copy) else lost).append(copy.number)
        while self._returns and _is_over(self._returns[0]):
            copied.append(self._returns.popleft().copy.number)
        return Finished(tuple(copied), tuple(lost))

    def wait_any(self) -> Finished:
        """See SwapEngine."""
        finished = self.poll()
        if finished != NOTHING:
            return finished
        first = [flights[0] for flights in (self._parks, self._returns) if flights]
        assert first, "no copy is under way to wait for"
        min(first, key=lambda flight: flight.order).event.synchronize()
        return self.poll()

    def drain(self) -> None:
        """See SwapEngine."""
        self._out.synchronize()
        self._in.synchronize()
        self._parks.clear()
        self._returns.clear()
        self._lost.clear()

    def close(self) -> None:
        """See SwapEngine."""
        self.drain()

    def _park(self, copy: Copy) -> _Flight:
        """Launch a copy to the host on the stream that is current."""
        size, staging = self._host.block_size, self._staging[0]
        num_tokens = copy.num_tokens or len(copy.block_ids) * size
        for first, last in self._slices(copy):
            rows = staging[: last - first]
            used = min(max(0, num_tokens - first * size), (last - first) * size)
            self._packer.pack(self._on_device(copy.block_ids[first:last]), rows, used)
            for at, host_at, count in runs(copy.host_block_ids[first:last]):
                there = self._host.data[host_at : host_at + count]
                there.copy_(rows[at : at + count], non_blocking=True)
        return self._flight(copy, self._out)

    def _return(self, copy: Copy) -> _Flight:
        """Launch a copy back to the device on the stream that is current."""
        staging = self._staging[1]
        for first, last in self._slices(copy):
            rows = staging[: last - first]
            for at, host_at, count in runs(copy.host_block_ids[first:last]):
                here = self._host.data[host_at : host_at + count]
                rows[at : at + count].copy_(here, non_blocking=True)
            self._packer.unpack(rows, self._on_device(copy.block_ids[first:last]))
        return self._flight(copy, self._in)

    def _flight(self, copy: Copy, stream: torch.cuda.Stream) -> _Flight:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        self._count += 1
        return _Flight(copy, event, self._count)

    def _slices(self, copy: Copy) -> Iterator[tuple[int, int]]:
        count = len(copy.block_ids)
        for first in range(0, count, self._per_slice):
            yield first, min(first + self._per_slice, count)

    def _on_device(self, blocks: Sequence[int]) -> torch.Tensor:
        # From pinned memory, or the engine's thread would wait for the stream here.
        return torch.tensor(blocks).pin_memory().to(self._cache.device, non_blocking=True)

    def _is_sound(self, copy: Copy) -> bool:
        found = runs(copy.host_block_ids)
        return all(self._packer.is_sound(self._host.data[at : at + n]) for _, at, n in found)


def _is_over(flight: _Flight) -> bool:
    return bool(flight.event.query())  # type: ignore[no-untyped-call]


def runs(ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (place, id, length) of every longest run of ids that rise by one."""
    first = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[place - 1] + 1:
            yield first, ids[first], place - first
            first = place
