"""The laws of scheduler and memory, asserted from outside after every simulated step.

The core checks its own books when asked (`check_integrity`: laws L2 to L6 and L10). This file
looks at what crosses the seam and believes none of it: everyone offered is accounted for (L1), a
step reads only what was written there before, across parks and returns too (L3, L5, L30, L31), no
block of a copy under way is used otherwise (L5), no batch is empty or out of bounds (L10, L11),
tokens keep coming (L12), preemptions are bounded (L16), time runs forward (L36), and at the end
nothing is held (L7).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from engine.core.batch import Batch, Chunk, Copy, StepResult
from engine.core.engine_core import EngineCore
from engine.core.executor import Capacity
from engine.core.memory_moves import MAX_PREEMPTIONS
from engine.core.stats import RequestStats, Snapshot, TokenEvent
from engine.sim.executor import SimulatedFault
from engine.sim.records import Journal


class LawWatch:
    """Asserts the laws after each half of a step; AssertionError says which one broke."""

    def __init__(self, core: EngineCore, journal: Journal, *, has_prefixes: bool = False) -> None:
        self._core = core
        self._journal = journal
        # Blocks shared by prefix are written by others; the core's own tests cover those.
        self._memory = None if has_prefixes else ShadowMemory(core.capacity)
        self._pool_tokens = core.capacity.num_blocks * core.capacity.block_size
        self._quiet_tokens = 0  # computed since something was seen outside
        self._copy_steps = 0  # in a row that waited for copies and computed nothing
        self._most_copies = 0  # that were under way during those
        self._moves = (0, 0, 0)
        self._now_ns = 0

    def after_start(self, batch: Batch, now_ns: int) -> None:
        """A batch is out."""
        self._move_to(now_ns)
        self._core.check_integrity()
        capacity = self._core.capacity
        snapshot = self._core.snapshot(now_ns)
        num_copies = snapshot.leaving + snapshot.returning
        assert batch.chunks or num_copies, "an empty batch, and nothing to wait for (law L11)"
        assert len(batch.chunks) <= capacity.max_batch_requests, "too many rows (law L10)"
        assert batch.num_tokens <= capacity.max_batch_tokens, "too many tokens (law L10)"
        ids = [chunk.request_id for chunk in batch.chunks]
        ids += [copy.request_id for copy in (*batch.parks, *batch.returns)]
        assert len(ids) == len(set(ids)), "a request stands in a batch twice (law L9)"
        if self._memory is not None:
            self._memory.dispatch(batch)
            assert self._memory.num_copies == num_copies, "copies unaccounted for (law L5)"
        self._count(snapshot)
        self._expect_progress(batch, snapshot)

    def after_step(
        self,
        batch: Batch,
        answer: StepResult | SimulatedFault,
        events: Sequence[TokenEvent],
        now_ns: int,
    ) -> None:
        """Its answer was taken in."""
        self._move_to(now_ns)
        if isinstance(answer, StepResult):
            is_over = answer.copied or answer.lost_copies
            assert batch.chunks or is_over, "a step waited for nothing (law L12)"
        if self._memory is not None:
            self._memory.complete(batch, answer)
        self._core.check_integrity()
        self._count(self._core.snapshot(now_ns))
        if events or isinstance(answer, SimulatedFault):
            self._quiet_tokens = 0
        for event in events:
            assert event.at_ns == now_ns, "an event out of its time (law L36)"
            if event.stats is not None:
                check_story(event.stats)

    def at_end(self, now_ns: int, *, is_complete: bool) -> None:
        """The run is over; `is_complete` where no horizon cut it short."""
        snapshot = self._core.snapshot(now_ns)
        self._count(snapshot)
        if is_complete:
            assert not self._core.has_work, "unfinished (law L12)"
            assert snapshot.leaving == snapshot.returning == 0, "a copy for nobody (law L5)"
            assert snapshot.free_blocks == snapshot.num_blocks, "blocks were lost (law L3)"
            assert snapshot.free_host_blocks == snapshot.num_host_blocks, "host blocks lost (L3)"

    def _move_to(self, now_ns: int) -> None:
        assert now_ns >= self._now_ns, "time ran back (law L36)"
        self._now_ns = now_ns

    def _count(self, snapshot: Snapshot) -> None:
        """Law L1: whoever was taken has ended or stands somewhere, tier by tier."""
        standing = snapshot.waiting + snapshot.running + snapshot.parked
        assert snapshot.submitted_total == snapshot.finished_total + standing, "law L1"
        assert self._journal.num_live == standing, "someone vanished, or came twice (law L1)"
        live = Counter(request.tier.name for request in self._journal.live)
        told = Counter(dict(snapshot.waiting_by_tier)) + Counter(dict(snapshot.running_by_tier))
        assert not told - live, "a tier has more standing than came (law L1)"
        assert sum((live - told).values()) == snapshot.parked, "a tier lost someone (law L1)"

    def _expect_progress(self, batch: Batch, snapshot: Snapshot) -> None:
        """Law L12, with a bound.

        What is computed without a token, an end, a preemption, a fault, a park or a lost copy stays
        in the pool; so between two of those no more is computed than the pool can hold. Each step
        that only waits ends a copy, and each live request is carried there and back at most.
        """
        totals = (snapshot.preemptions_total, snapshot.parks_total)
        moves = (*totals, snapshot.lost_copies_total)
        if moves != self._moves:
            self._moves = moves
            self._quiet_tokens = 0
        self._quiet_tokens += batch.num_tokens
        num_copies = snapshot.leaving + snapshot.returning
        if batch.chunks:
            self._copy_steps = self._most_copies = 0
        else:
            self._copy_steps += 1
            self._most_copies = max(self._most_copies, num_copies)
        limit = self._pool_tokens + batch.num_tokens
        assert self._quiet_tokens <= limit, "a pool of tokens was computed for nobody (law L12)"
        most = 2 * self._journal.num_live + self._most_copies
        assert self._copy_steps <= most, "only copies go round (law L12)"


def check_story(stats: RequestStats) -> None:
    """Assert laws L16 and L36 of a request that has ended."""
    assert stats.preemptions <= MAX_PREEMPTIONS, f"{stats.request_id}: law L16"
    times = [stats.arrival_ns, stats.first_scheduled_ns, stats.first_token_ns, stats.finished_ns]
    known = [at_ns for at_ns in times if at_ns is not None]
    assert known == sorted(known), f"{stats.request_id}: times out of order (law L36)"
    assert stats.first_token_ns is None or stats.first_scheduled_ns is not None


_Content: TypeAlias = tuple[str, int, int]  # whose context, which part of it, how much is there


class _ShadowCopy(NamedTuple):
    """A copy under way: what it reads, where it writes, and what it is to carry."""

    copy: Copy
    source_ids: tuple[int, ...]
    source: dict[int, _Content]
    target_ids: tuple[int, ...]
    target: dict[int, _Content]
    contents: list[_Content]


class ShadowMemory:
    """What a device and its host would hold: per block whose context, which part, how much of it.

    It is late as a device is: steps read when they begin and write when they end. A copy may read
    at any time until it is over, and what it writes is garbage until then.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._device: dict[int, _Content] = {}
        self._host: dict[int, _Content] = {}
        self._copies: dict[int, _ShadowCopy] = {}

    @property
    def num_copies(self) -> int:
        """Copies under way."""
        return len(self._copies)

    def dispatch(self, batch: Batch) -> None:
        """Check what the step reads, and that no two parts of it touch the same block.

        Copies under way are parts of every step until they are over.
        """
        device, host = list[int](), list[int]()
        for chunk in batch.chunks:
            self._check_reads(chunk.request_id, chunk.block_ids, chunk.start, self._device)
            device += chunk.block_ids
        for park in batch.parks:
            sides = (park.block_ids, self._device, park.host_block_ids, self._host)
            self._begin(park, *sides)
        for back in batch.returns:
            sides = (back.host_block_ids, self._host, back.block_ids, self._device)
            self._begin(back, *sides)
        for entry in self._copies.values():
            device += entry.copy.block_ids
            host += entry.copy.host_block_ids
        for ids, count in (
            (device, self._capacity.num_blocks),
            (host, self._capacity.num_host_blocks),
        ):
            assert len(ids) == len(set(ids)), "one block in two places of a step (laws L3, L5)"
            assert not ids or (min(ids) >= 1 and max(ids) <= count), "no such block"

    def complete(self, batch: Batch, answer: StepResult | SimulatedFault) -> None:
        """The step is over: its writes stand, or are garbage; and so are some copies, or all."""
        has_failed = isinstance(answer, SimulatedFault)
        for chunk in batch.chunks:
            self._write(chunk, has_failed=has_failed)
        if isinstance(answer, SimulatedFault):
            self._copies.clear()
            return
        for number in answer.copied:
            entry = self._copies.pop(number)
            found = [entry.source.get(block) for block in entry.source_ids]
            assert found == entry.contents, "somebody wrote what was being copied (law L5)"
            entry.target.update(zip(entry.target_ids, entry.contents, strict=True))
        for number in answer.lost_copies:
            del self._copies[number]

    def _begin(
        self,
        copy: Copy,
        source_ids: tuple[int, ...],
        source: dict[int, _Content],
        target_ids: tuple[int, ...],
        target: dict[int, _Content],
    ) -> None:
        assert len(source_ids) == len(target_ids), "a copy of unequal sides"
        assert copy.number not in self._copies, "a number given twice"
        size = self._capacity.block_size
        at_least = (len(source_ids) - 1) * size + 1
        self._check_reads(copy.request_id, source_ids, at_least, source)
        contents = [source[block] for block in source_ids]
        for block in target_ids:
            target.pop(block, None)
        entry = _ShadowCopy(copy, source_ids, source, target_ids, target, contents)
        self._copies[copy.number] = entry

    def _check_reads(
        self, owner: str, ids: Sequence[int], end: int, place: dict[int, _Content]
    ) -> None:
        size = self._capacity.block_size
        for index in range(-(-end // size)):
            name, part, filled = place.get(ids[index], ("nobody", 0, 0))
            needed = min(size, end - index * size)
            assert (name, part) == (owner, index), f"{owner} reads a block of {name} (law L5)"
            assert filled >= needed, f"{owner} reads what was not computed (law L31)"

    def _write(self, chunk: Chunk, *, has_failed: bool) -> None:
        size = self._capacity.block_size
        assert len(chunk.block_ids) * size >= chunk.end, "a table too short for its chunk"
        for index in range(chunk.start // size, -(-chunk.end // size)):
            block = chunk.block_ids[index]
            if has_failed:
                self._device.pop(block, None)
            else:
                filled = min(size, chunk.end - index * size)
                self._device[block] = (chunk.request_id, index, filled)
