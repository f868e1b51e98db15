"""An executor with a memory: what it answers is a function of what it finds in its blocks.

Every position of a block holds a number that stands for all that its keys and values depend on, and
a token is drawn from all of a context's numbers. So a block given away too early, a copy that read
or arrived too late, a stale prefix or a lost token show in the answer, without anybody looking on.
It knows no latency model; when copies end, and how, is drawn from the dice it is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.batch import Batch, Chunk, Copy, SampledToken, StepResult
from engine.core.executor import Capacity
from engine.core.request import RequestOrder
from engine.sim.executor import SimulatedFault

VOCABULARY = 50_000
_ROOT = 1
_GARBAGE = 3
_MOST_ELAPSED_NS = 3


@dataclass(frozen=True, slots=True)
class CopierDice:
    """How copies end: each step each of them with probability `haste`, lost with `lost_share`.

    `fault_share` of the steps end in a fault, and every copy with them.
    """

    haste: float = 1.0
    lost_share: float = 0.0
    fault_share: float = 0.0


def right_answer(order: RequestOrder) -> list[int]:
    """Return the tokens that a request must get, whatever happens to it on the way."""
    value, values = _ROOT, []
    for token in order.prompt:
        value = hash((value, token))
        values.append(value)
    answer: list[int] = []
    while len(answer) < order.sampling.max_tokens:
        token = hash(tuple(values)) % VOCABULARY
        answer.append(token)
        value = hash((value, token))
        values.append(value)
    return answer


class _Carried:
    """A copy under way: its first blocks were moved when it began."""

    __slots__ = ("copy", "is_return", "num_moved")

    def __init__(self, copy: Copy, num_moved: int, *, is_return: bool) -> None:
        self.copy = copy
        self.num_moved = num_moved
        self.is_return = is_return


class ContentExecutor:
    """Blocks of numbers on both sides of a link whose copies are late, out of order or lost."""

    __slots__ = ("_capacity", "_device", "_dice", "_host", "_rng", "_under_way")

    def __init__(self, capacity: Capacity, rng: random.Random, dice: CopierDice) -> None:
        size = capacity.block_size
        self._capacity = capacity
        self._rng = rng
        self._dice = dice
        self._device = [_GARBAGE] * ((capacity.num_blocks + 1) * size)
        self._host = [_GARBAGE] * ((capacity.num_host_blocks + 1) * size)
        self._under_way: dict[int, _Carried] = {}

    @property
    def capacity(self) -> Capacity:
        """What its memory can hold."""
        return self._capacity

    @property
    def num_copies(self) -> int:
        """Copies under way."""
        return len(self._under_way)

    def execute(self, batch: Batch) -> StepResult:
        """Compute a step from what the blocks hold; raises SimulatedFault by the dice."""
        rng = self._rng
        for copy in batch.parks:
            self._begin(copy, is_return=False)
        for copy in batch.returns:
            self._begin(copy, is_return=True)
        elapsed_ns = rng.randrange(1, _MOST_ELAPSED_NS + 1)
        if self._dice.fault_share and rng.random() < self._dice.fault_share:
            self._lose_everything(batch)
            raise SimulatedFault(elapsed_ns)
        tokens = []
        for chunk in batch.chunks:
            values = self._compute(chunk)
            if chunk.sampling is not None:
                tokens.append(SampledToken(chunk.request_id, hash(values) % VOCABULARY))
        copied: tuple[int, ...] = ()
        lost: tuple[int, ...] = ()
        if self._under_way:
            copied, lost = self._end_some(must_end=not batch.chunks)
        else:
            assert batch.chunks, "it was told to wait, and there is nothing to wait for"
        return StepResult(batch.step, tuple(tokens), elapsed_ns, (), copied, lost)

    def _compute(self, chunk: Chunk) -> tuple[int, ...]:
        """Write the chunk's numbers into its blocks; return those of its whole context."""
        device, size, blocks = self._device, self._capacity.block_size, chunk.block_ids
        values: list[int] = []
        for index in range(-(-chunk.start // size)):
            at = blocks[index] * size
            values += device[at : at + size]
        del values[chunk.start :]
        value = values[-1] if values else _ROOT
        for position, token in enumerate(chunk.token_ids, chunk.start):
            value = hash((value, token))
            device[blocks[position // size] * size + position % size] = value
            values.append(value)
        return tuple(values)

    # Copies

    def _begin(self, copy: Copy, *, is_return: bool) -> None:
        num_blocks = len(copy.block_ids)
        entry = _Carried(copy, self._rng.randrange(num_blocks + 1), is_return=is_return)
        self._under_way[copy.number] = entry
        self._move(entry, 0, entry.num_moved)

    def _end_some(self, *, must_end: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """End copies by the dice, in any order, at least one where the step waits for one."""
        rng, haste, lost_share = self._rng, self._dice.haste, self._dice.lost_share
        ended = [number for number in self._under_way if rng.random() < haste]
        if must_end and not ended:
            ended = [rng.choice(list(self._under_way))]
        if len(ended) > 1:
            rng.shuffle(ended)
        lost = [number for number in ended if lost_share and rng.random() < lost_share]
        for number in ended:
            entry = self._under_way.pop(number)
            if number in lost:
                self._spoil(entry)
            else:
                self._move(entry, entry.num_moved, len(entry.copy.block_ids))
        return tuple([number for number in ended if number not in lost]), tuple(lost)

    def _sides(self, entry: _Carried) -> tuple[list[int], Sequence[int], list[int], Sequence[int]]:
        copy = entry.copy
        if entry.is_return:
            return self._host, copy.host_block_ids, self._device, copy.block_ids
        return self._device, copy.block_ids, self._host, copy.host_block_ids

    def _move(self, entry: _Carried, start: int, stop: int) -> None:
        """Carry these blocks; what an inexact host gives back is not what it was given."""
        source, from_blocks, target, to_blocks = self._sides(entry)
        size = self._capacity.block_size
        is_changed = entry.is_return and not self._capacity.host_is_exact
        for index in range(start, stop):
            a, b = from_blocks[index] * size, to_blocks[index] * size
            values = source[a : a + size]
            target[b : b + size] = [value ^ 1 for value in values] if is_changed else values

    def _spoil(self, entry: _Carried) -> None:
        _, _, target, blocks = self._sides(entry)
        size = self._capacity.block_size
        for block in blocks:
            target[block * size : (block + 1) * size] = [_GARBAGE] * size

    def _lose_everything(self, batch: Batch) -> None:
        """Whatever was being written is garbage, and no copy is under way any more."""
        size = self._capacity.block_size
        for chunk in batch.chunks:
            for position in range(chunk.start, chunk.end):
                at = chunk.block_ids[position // size] * size + position % size
                self._device[at] = _GARBAGE
        for entry in self._under_way.values():
            self._spoil(entry)
        self._under_way.clear()
