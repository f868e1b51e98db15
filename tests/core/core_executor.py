"""An executor with a memory on both sides of the link, that checks whatever it is told to touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core_fakes import Truth

from engine.core.batch import Batch, Chunk, Copy, SampledToken, StepResult
from engine.core.executor import Capacity

Slot = tuple[int, int]  # block, offset within it


class MemoryExecutor:
    """Writes into block slots what a real KV cache would hold there, and checks what it reads.

    A slot holds a digest of its whole context, salt included, so a wrong block table, a stale
    prefix, a block used by two requests or a tenant's block shown to another cannot go unseen.
    It is late: `dispatch` reads before the step, `complete` writes and reads after it, and the
    copies are made last of all, so that whatever the step did to their blocks is carried along.
    """

    def __init__(self, capacity: Capacity, num_computed: Callable[[str], int]) -> None:
        self.capacity = capacity
        self._num_computed = num_computed  # what the scheduler believes, to be checked here
        self._device: dict[Slot, int | None] = {}
        self._host: dict[Slot, int | None] = {}
        self._out: list[tuple[Chunk, Truth]] = []
        self._parks: list[tuple[Copy, Truth]] = []
        self._returns: list[tuple[Copy, Truth]] = []
        self._tables: dict[int, tuple[Truth, tuple[int, ...]]] = {}
        self._stored: dict[int, tuple[Truth, Copy, int]] = {}  # on the host, with its tokens

    # A step

    def dispatch(self, batch: Batch, truths: dict[str, Truth]) -> None:
        self._out = [(chunk, truths[chunk.request_id]) for chunk in batch.chunks]
        self._parks = [(copy, truths[copy.request_id]) for copy in batch.parks]
        self._returns = [(copy, truths[copy.request_id]) for copy in batch.returns]
        for truth in [truth for _, truth in self._parks]:
            self.forget_table(truth)  # it gives its blocks up, and may get the same ones again
        written: set[Slot] = set()
        for chunk, truth in self._out:
            self._check_table(chunk, truth)
            history = truth.history
            assert chunk.token_ids == history[chunk.start : chunk.end], "wrong tokens"
            assert (chunk.sampling is not None) == (chunk.end == len(history)), "law L31"
            assert chunk.output_index == len(truth.output)
            if chunk.sampling is not None and chunk.sampling.has_penalties:
                assert (*chunk.prompt_ids, *chunk.output_ids) == history
            self._check_before(chunk, truth)
            mine = {self._slot(chunk, position) for position in range(chunk.start, chunk.end)}
            assert not mine & written, "two requests write one slot"
            written |= mine
        self._check_copies(batch, {block for block, _ in written})

    def complete(self, batch: Batch, elapsed_ns: int, failed: tuple[str, ...] = ()) -> StepResult:
        for chunk, truth in self._out:
            for position in range(chunk.start, chunk.end):
                self._device[self._slot(chunk, position)] = truth.contexts[position]
        self._carry_out()
        self._carry_in()
        tokens = []
        for chunk, truth in self._out:
            self._check_before(chunk, truth)
            if chunk.sampling is not None and chunk.request_id not in failed:
                token = truth.expected[len(truth.output)]
                tokens.append(SampledToken(chunk.request_id, token))
        return StepResult(batch.step, tuple(tokens), elapsed_ns, failed)

    def lose(self) -> list[Truth]:
        """The step fails half-way: whatever it was writing, on either side, is garbage now.

        Returns who was in it, gone or not.
        """
        for chunk, truth in self._out:
            self.forget_table(truth)
            for position in range(chunk.start, chunk.end):
                self._device[self._slot(chunk, position)] = -1
        for copy, _ in self._parks:
            for host_block in copy.host_block_ids:
                self._spoil(self._host, host_block)
        for copy, truth in self._returns:
            self.forget_table(truth)
            self._stored.pop(id(truth), None)
            for block in copy.block_ids:
                self._spoil(self._device, block)
        return [truth for _, truth in (*self._out, *self._parks, *self._returns)]

    def forget_table(self, truth: Truth) -> None:
        """The request gave its blocks back; it may get the same ones in a new table."""
        self._tables.pop(id(truth), None)

    # Copies

    def _check_copies(self, batch: Batch, written: set[int]) -> None:
        """Laws L3 and L5 as the executor sees them: every copy has both of its sides to itself.

        Blocks on their way out may be read by others who share the prefix; nobody writes them.
        """
        copies = (*batch.parks, *batch.returns)
        assert not copies or self.capacity.num_host_blocks > 0
        names = [copy.request_id for copy in copies]
        assert len(set(names)) == len(names), "one request is carried twice"
        assert not set(names) & {chunk.request_id for chunk in batch.chunks}, "carried and computed"
        host = [block for copy in copies for block in copy.host_block_ids]
        assert len(set(host)) == len(host), "two copies share a host block"
        assert all(1 <= block <= self.capacity.num_host_blocks for block in host)
        sources = {block for copy in batch.parks for block in copy.block_ids}
        targets = [block for copy in batch.returns for block in copy.block_ids]
        assert len(set(targets)) == len(targets), "two copies write one block"
        assert not sources & written, "a chunk writes into a block on its way out"
        touched = {block for chunk in batch.chunks for block in chunk.block_ids}
        assert not set(targets) & (sources | touched), "a copy writes where others read"
        assert all(1 <= block <= self.capacity.num_blocks for block in (*sources, *targets))
        for copy, truth in (*self._parks, *self._returns):
            num_tokens = self._num_computed(copy.request_id)
            assert 0 < num_tokens <= len(truth.history)
            num_blocks = -(-num_tokens // self.capacity.block_size)
            assert len(copy.block_ids) == len(copy.host_block_ids) == num_blocks
        for copy, truth in self._parks:
            self._check_context(self._device, copy.block_ids, truth, copy.request_id)
        for copy, truth in self._returns:
            _, parked, num_tokens = self._stored[id(truth)]
            assert copy.host_block_ids == parked.host_block_ids, "it comes back from elsewhere"
            assert num_tokens == self._num_computed(copy.request_id)
            self._check_context(self._host, copy.host_block_ids, truth, copy.request_id)
        self._stored = {key: entry for key, entry in self._stored.items() if not entry[0].end}
        kept = {b for _, copy, _ in self._stored.values() for b in copy.host_block_ids}
        new = {block for copy in batch.parks for block in copy.host_block_ids}
        assert not new & kept, "a parked context is written over"

    def _carry_out(self) -> None:
        for copy, truth in self._parks:
            self._copy(self._device, copy.block_ids, self._host, copy.host_block_ids)
            if truth.end is None:
                num_tokens = self._num_computed(copy.request_id)
                self._stored[id(truth)] = (truth, copy, num_tokens)
                self._check_context(self._host, copy.host_block_ids, truth, copy.request_id)

    def _carry_in(self) -> None:
        for copy, truth in self._returns:
            self._copy(self._host, copy.host_block_ids, self._device, copy.block_ids)
            self.forget_table(truth)
            self._stored.pop(id(truth), None)
            if truth.end is None:
                self._check_context(self._device, copy.block_ids, truth, copy.request_id)

    def _check_context(
        self, memory: dict[Slot, int | None], blocks: Sequence[int], truth: Truth, name: str
    ) -> None:
        """Law L30: what lies there is the request's own context, to the last computed token."""
        size, count = self.capacity.block_size, self._num_computed(name)
        found = [memory.get((blocks[i // size], i % size)) for i in range(count)]
        assert found == truth.contexts[:count], f"{name} was not carried whole"

    def _copy(
        self,
        source: dict[Slot, int | None],
        from_blocks: Sequence[int],
        target: dict[Slot, int | None],
        to_blocks: Sequence[int],
    ) -> None:
        for a, b in zip(from_blocks, to_blocks, strict=True):
            for offset in range(self.capacity.block_size):
                target[b, offset] = source.get((a, offset))

    def _spoil(self, memory: dict[Slot, int | None], block: int) -> None:
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
