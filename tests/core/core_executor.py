"""An executor with a memory on both sides of the link, that checks whatever it is told to touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core_fakes import Truth

from engine.core.batch import Batch, Chunk, Copy, SampledToken, StepResult
from engine.core.executor import Capacity

Slot = tuple[int, int]  # block, offset within it


@dataclass
class Carried:
    """A copy under way, whose it is, and how far it has come."""

    copy: Copy
    truth: Truth
    is_return: bool
    num_tokens: int
    num_moved: int  # blocks


class MemoryExecutor:
    """Writes into block slots what a real KV cache would hold there, and checks what it reads.

    A slot holds a digest of its whole context, salt included, so a wrong block table, a stale
    prefix, a block used by two requests or a tenant's block shown to another cannot go unseen.
    It is late: `dispatch` reads before the step, `complete` writes and reads after it, and copies
    are under way for as long as the world says. Of each some blocks are moved when it begins and
    the others when it is over, so that whatever happens to either side meanwhile is carried along.
    """

    def __init__(self, capacity: Capacity, num_computed: Callable[[str], int]) -> None:
        self.capacity = capacity
        self.under_way: dict[int, Carried] = {}
        self._num_computed = num_computed  # what the scheduler believes, to be checked here
        self._device: dict[Slot, int | None] = {}
        self._host: dict[Slot, int | None] = {}
        self._out: list[tuple[Chunk, Truth]] = []
        self._tables: dict[int, tuple[Truth, tuple[int, ...]]] = {}
        self._stored: dict[int, tuple[Truth, Copy, int]] = {}  # on the host, with its tokens
        self._numbers = set[int]()

    # A step

    def dispatch(self, batch: Batch, truths: dict[str, Truth]) -> None:
        self._out = [(chunk, truths[chunk.request_id]) for chunk in batch.chunks]
        for copy in batch.parks:
            self._begin(copy, truths[copy.request_id], is_return=False)
            # It gives its blocks up, and may get the same ones again.
            self.forget_table(truths[copy.request_id])
        for copy in batch.returns:
            self._begin(copy, truths[copy.request_id], is_return=True)
        written: set[Slot] = set()
        for chunk, truth in self._out:
            self._check_table(chunk, truth)
            history = truth.history
            assert chunk.token_ids == history[chunk.start : chunk.end], "wrong tokens"
            assert (chunk.sampling is not None) == (chunk.end == len(history)), "law L31"
            assert chunk.output_index == len(truth.output)
            if chunk.sampling is not None and chunk.sampling.needs_history:
                assert (*chunk.prompt_ids, *chunk.output_ids) == history
            self._check_before(chunk, truth)
            mine = {self._slot(chunk, position) for position in range(chunk.start, chunk.end)}
            assert not mine & written, "two requests write one slot"
            written |= mine
        self._check_copies(batch, {block for block, _ in written})

    def complete(
        self,
        batch: Batch,
        elapsed_ns: int,
        failed: tuple[str, ...] = (),
        copied: tuple[int, ...] = (),
        lost: tuple[int, ...] = (),
    ) -> StepResult:
        assert batch.chunks or copied or lost, "the world ends no copy, and waits for one"
        for chunk, truth in self._out:
            for position in range(chunk.start, chunk.end):
                self._device[self._slot(chunk, position)] = truth.contexts[position]
        for number in lost:
            self._spoil(self.under_way.pop(number))
        for number in copied:
            self._arrive(self.under_way.pop(number))
        tokens = []
        for chunk, truth in self._out:
            self._check_before(chunk, truth)
            if chunk.sampling is not None and chunk.request_id not in failed:
                token = truth.expected[len(truth.output)]
                tokens.append(SampledToken(chunk.request_id, token))
        return StepResult(batch.step, tuple(tokens), elapsed_ns, failed, copied, lost)

    def lose(self) -> list[Truth]:
        """The step fails half-way: whatever was being written, on either side, is garbage now.

        Returns who was computed or carried, gone or not.
        """
        for chunk, truth in self._out:
            self.forget_table(truth)
            for position in range(chunk.start, chunk.end):
                self._device[self._slot(chunk, position)] = -1
        carried = list(self.under_way.values())
        for entry in carried:
            self._spoil(entry)
        self.under_way.clear()
        return [*[truth for _, truth in self._out], *[entry.truth for entry in carried]]

    def stop(self) -> None:
        """The executor is gone, and whatever it was doing."""
        self.under_way.clear()

    def forget_table(self, truth: Truth) -> None:
        """The request gave its blocks back; it may get the same ones in a new table."""
        self._tables.pop(id(truth), None)

    # Copies

    def _begin(self, copy: Copy, truth: Truth, *, is_return: bool) -> None:
        assert copy.number > 0, "a copy without a number"
        assert copy.number not in self._numbers, "a number that was given before"
        self._numbers.add(copy.number)
        carried = [entry.truth for entry in self.under_way.values()]
        assert not any(other is truth for other in carried), "one request is carried twice"
        num_tokens, num_blocks = self._num_computed(copy.request_id), len(copy.block_ids)
        assert 0 < copy.num_tokens == num_tokens <= len(truth.history)
        assert num_blocks == len(copy.host_block_ids) == -(-num_tokens // self.capacity.block_size)
        entry = Carried(copy, truth, is_return, num_tokens, copy.number % (num_blocks + 1))
        self.under_way[copy.number] = entry
        if is_return:
            _, parked, stored = self._stored[id(truth)]
            assert copy.host_block_ids == parked.host_block_ids, "it comes back from elsewhere"
            assert num_tokens == stored
        memory, blocks = self._source(entry)
        self._check_context(memory, blocks, truth, num_tokens)
        self._move(entry, 0, entry.num_moved)

    def _check_copies(self, batch: Batch, written: set[int]) -> None:
        """Laws L3 and L5 as the executor sees them: every copy has both of its sides to itself.

        Blocks on their way out may be read by others who share the prefix; nobody writes them.
        """
        entries = list(self.under_way.values())
        assert not entries or self.capacity.num_host_blocks > 0
        computed = [truth for _, truth in self._out]
        assert not any(e.truth is truth for e in entries for truth in computed), "carried, computed"
        host = [block for entry in entries for block in entry.copy.host_block_ids]
        assert len(set(host)) == len(host), "two copies share a host block"
        assert all(1 <= block <= self.capacity.num_host_blocks for block in host)
        sources = {b for entry in entries if not entry.is_return for b in entry.copy.block_ids}
        targets = [b for entry in entries if entry.is_return for b in entry.copy.block_ids]
        assert len(set(targets)) == len(targets), "two copies write one block"
        assert not sources & written, "a chunk writes into a block on its way out"
        touched = {block for chunk in batch.chunks for block in chunk.block_ids}
        assert not set(targets) & (sources | touched), "a copy writes where others read"
        assert all(1 <= block <= self.capacity.num_blocks for block in (*sources, *targets))
        self._stored = {key: entry for key, entry in self._stored.items() if not entry[0].end}
        kept = {b for _, copy, _ in self._stored.values() for b in copy.host_block_ids}
        new = {block for copy in batch.parks for block in copy.host_block_ids}
        assert not new & kept, "a parked context is written over"

    def _source(self, entry: Carried) -> tuple[dict[Slot, int | None], Sequence[int]]:
        copy = entry.copy
        if entry.is_return:
            return self._host, copy.host_block_ids
        return self._device, copy.block_ids

    def _target(self, entry: Carried) -> tuple[dict[Slot, int | None], Sequence[int]]:
        copy = entry.copy
        if entry.is_return:
            return self._device, copy.block_ids
        return self._host, copy.host_block_ids

    def _arrive(self, entry: Carried) -> None:
        """The rest is carried now; of a live request the other side holds all, to the last token.

        What was carried in the beginning must be there still.
        """
        self._move(entry, entry.num_moved, len(entry.copy.block_ids))
        truth = entry.truth
        if entry.is_return:
            self.forget_table(truth)
            self._stored.pop(id(truth), None)
        elif truth.end is None:
            self._stored[id(truth)] = (truth, entry.copy, entry.num_tokens)
        if truth.end is None:
            assert entry.num_tokens == self._num_computed(entry.copy.request_id)
            self._check_context(*self._target(entry), truth, entry.num_tokens)

    def _check_context(
        self, memory: dict[Slot, int | None], blocks: Sequence[int], truth: Truth, count: int
    ) -> None:
        """Law L30: what lies there is the request's own context, to the last computed token."""
        size = self.capacity.block_size
        found = [memory.get((blocks[i // size], i % size)) for i in range(count)]
        assert found == truth.contexts[:count], f"{truth.order.id} was not carried whole"

    def _move(self, entry: Carried, start: int, stop: int) -> None:
        source, from_blocks = self._source(entry)
        target, to_blocks = self._target(entry)
        for a, b in zip(from_blocks[start:stop], to_blocks[start:stop], strict=True):
            for offset in range(self.capacity.block_size):
                target[b, offset] = source.get((a, offset))

    def _spoil(self, entry: Carried) -> None:
        """A copy failed: where it was to arrive lies nothing of worth."""
        if entry.is_return:
            self.forget_table(entry.truth)
            self._stored.pop(id(entry.truth), None)
        memory, blocks = self._target(entry)
        for block in blocks:
            for offset in range(self.capacity.block_size):
                memory[block, offset] = -1

    # Chunks

    def _slot(self, chunk: Chunk, position: int) -> Slot:
        block, offset = divmod(position, self.capacity.block_size)
        return chunk.block_ids[block], offset

    def _check_before(self, chunk: Chunk, truth: Truth) -> None:
        table, size = chunk.block_ids, self.capacity.block_size
        found = [self._device.get((table[i // size], i % size)) for i in range(chunk.start)]
        assert found == truth.contexts[: chunk.start], (
            f"{chunk.request_id} attends to a context that is not its own"
        )

    def _check_table(self, chunk: Chunk, truth: Truth) -> None:
        table = chunk.block_ids
        assert len(table) * self.capacity.block_size >= chunk.end
        assert len(set(table)) == len(table)
        assert all(1 <= block <= self.capacity.num_blocks for block in table)
        # The same table is the same object (executors cache by identity).
        known = self._tables.get(id(truth))
        assert known is None or known[1] is table or known[1] != table
        self._tables[id(truth)] = (truth, table)
