"""Stand-ins for what the core talks to: an executor with a memory, a hostile policy, a recorder."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core.batch import Batch, Chunk, SampledToken, StepResult
from engine.core.executor import Capacity
from engine.core.policy import Rank, Room, StepLimits, View
from engine.core.request import Request, RequestOrder
from engine.core.stats import RequestStats, StepStats

VOCABULARY = 6  # small, so that stop tokens and equal prefixes happen by themselves


def next_token(history: Sequence[int], order: RequestOrder) -> int:
    """The fake model with its sampler: a pure function of the history."""
    sampling = order.sampling
    draw = zlib.crc32(repr((sampling.seed, tuple(history))).encode())
    banned = set()
    if len(history) - len(order.prompt) < sampling.min_tokens:
        banned = set(sampling.stop_token_ids)
    allowed = [token for token in range(VOCABULARY) if token not in banned]
    return allowed[draw % len(allowed)]


def expected_output(order: RequestOrder) -> tuple[int, ...]:
    """What a request must answer, whatever happens to it on the way."""
    history = list(order.prompt)
    while True:
        token = next_token(history, order)
        history.append(token)
        count = len(history) - len(order.prompt)
        stopped = token in order.sampling.stop_token_ids and count > order.sampling.min_tokens
        if stopped or count == order.sampling.max_tokens:
            return tuple(history[len(order.prompt) :])


@dataclass
class Truth:
    """One submitted request as the outside knows it."""

    order: RequestOrder
    output: list[int] = field(default_factory=list)
    token_times: list[int] = field(default_factory=list)
    end: RequestStats | None = None

    @property
    def history(self) -> tuple[int, ...]:
        return (*self.order.prompt, *self.output)


def contexts(salt: str, tokens: Sequence[int]) -> list[int]:
    """One value per position that stands for everything the KV of that position depends on."""
    value = hash(("salt", salt))
    values = []
    for token in tokens:
        value = hash((value, token))
        values.append(value)
    return values


class MemoryExecutor:
    """Writes into block slots what a real KV cache would hold there, and checks what it reads.

    A slot holds a digest of its whole context, salt included, so a wrong block table, a stale
    prefix, a block used by two requests or a tenant's block shown to another cannot go unseen.
    It is late: `dispatch` reads before the step, `complete` writes and reads after it.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._slots: dict[tuple[int, int], int] = {}
        self._out: list[tuple[Chunk, Truth]] = []
        self._tables: dict[int, tuple[Truth, tuple[int, ...]]] = {}

    def dispatch(self, batch: Batch, truths: dict[str, Truth]) -> None:
        self._out = [(chunk, truths[chunk.request_id]) for chunk in batch.chunks]
        written: set[tuple[int, int]] = set()
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

    def complete(self, batch: Batch, elapsed_ns: int, failed: tuple[str, ...] = ()) -> StepResult:
        for chunk, truth in self._out:
            values = contexts(truth.order.cache_salt, truth.history)
            for position in range(chunk.start, chunk.end):
                self._slots[self._slot(chunk, position)] = values[position]
        tokens = []
        for chunk, truth in self._out:
            self._check_before(chunk, truth)
            if chunk.sampling is not None and chunk.request_id not in failed:
                tokens.append(
                    SampledToken(chunk.request_id, next_token(truth.history, truth.order))
                )
        return StepResult(batch.step, tuple(tokens), elapsed_ns, failed)

    def lose(self, batch: Batch) -> None:
        """The step fails half-way: whatever it was writing is garbage now."""
        for chunk, truth in self._out:
            self.forget_table(truth)
            for position in range(chunk.start, chunk.end):
                self._slots[self._slot(chunk, position)] = -1

    def _slot(self, chunk: Chunk, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self.capacity.block_size)
        return chunk.block_ids[block], offset

    def _check_before(self, chunk: Chunk, truth: Truth) -> None:
        values = contexts(truth.order.cache_salt, truth.history[: chunk.start])
        found = [self._slots.get(self._slot(chunk, position)) for position in range(chunk.start)]
        assert found == values, f"{chunk.request_id} attends to a context that is not its own"

    def _check_table(self, chunk: Chunk, truth: Truth) -> None:
        table = chunk.block_ids
        assert len(table) * self.capacity.block_size >= chunk.end
        assert len(set(table)) == len(table)
        assert all(1 <= block <= self.capacity.num_blocks for block in table)
        # The same table is the same object (executors cache by identity).
        known = self._tables.get(id(truth))
        assert known is None or known[1] is table or known[1] != table
        self._tables[id(truth)] = (truth, table)

    def forget_table(self, truth: Truth) -> None:
        """The request gave its blocks back; it may get the same ones in a new table."""
        self._tables.pop(id(truth), None)


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.finished: list[RequestStats] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def on_finish(self, stats: RequestStats) -> None:
        self.finished.append(stats)


def digest(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


class HostilePolicy:
    """Answers everything by dice (repeatable ones): no law may depend on a policy's good will."""

    name = "hostile"
    ranks_move = True

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def limits(self, view: View) -> StepLimits:
        roll = digest(self._seed, "limits", view.now_ns)
        return StepLimits(
            max_tokens=(0, 1, 3, 64)[roll % 4],
            max_decodes=(0, 1, 2, 64)[roll // 4 % 4],
            max_prefills=(0, 1, 2, 64)[roll // 16 % 4],
            max_running=(0, 1, 3, 64)[roll // 64 % 4],
            whole_prompts=bool(roll // 256 % 2),
        )

    def due(self, request: Request, view: View) -> bool:
        return bool(digest(self._seed, "due", request.id, view.now_ns) % 2)

    def prefill_rank(self, request: Request, view: View) -> Rank:
        roll = digest(self._seed, "prefill", request.id, view.now_ns // 50) % 4
        return (roll, request.order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        roll = digest(self._seed, "keep", request.id, view.now_ns // 50) % 4
        return (roll, request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        roll = digest(self._seed, "room", request.id)
        return Room(claim_tokens=(0, 5, 10**6)[roll % 3], spare_blocks=(0, 1, 10**6)[roll // 3 % 3])

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        for request in requests:
            request.note = (elapsed_ns,)
