"""Which tokens may follow in each row, by the row's grammar; it knows histories, and draws nothing.

A row's state follows from its chunk alone: the grammar and the tokens generated so far. Matchers
are remembered between steps, so that the usual step consumes one token; a row whose matcher is
gone, or stands elsewhere (a preempted request, another engine, a request of the same name), is
matched from its first token again, with the same result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import llguidance
import numpy as np
import torch
from numpy.typing import NDArray

from engine.core.batch import Chunk
from engine.core.grammar import GrammarError
from engine.core.request import SamplingParams
from engine.model.grammar import GrammarCompiler
from engine.model.penalties import bans_end

_BITS = 8


@dataclass(frozen=True, slots=True, eq=False)
class RowMasks:
    """Masks of some rows of a batch, by request: bit i of `bits` (little-endian) allows token i.

    `closing` are the requests that may only end: nothing is allowed but what would end them, though
    their `min_tokens` bans that. There the grammar has its way.
    """

    bits: dict[str, NDArray[np.uint8]]  # each [ceil(V / 8)]
    closing: frozenset[str]

    def apply(self, logits: torch.Tensor, rows: Sequence[Chunk]) -> None:
        """Set what is not allowed to -inf, in place; `logits` is [R, V], row r is of `rows[r]`."""
        at = [row for row, chunk in enumerate(rows) if chunk.request_id in self.bits]
        if not at:
            return
        table = np.stack([self.bits[rows[row].request_id] for row in at])
        packed = torch.from_numpy(table).to(logits.device, non_blocking=True)
        penalty = mask_penalties(packed)[:, : logits.shape[1]]
        if len(at) == len(rows):
            logits += penalty
            return
        index = torch.tensor(at, dtype=torch.int64).to(logits.device, non_blocking=True)
        logits.index_add_(0, index, penalty)


def mask_penalties(packed: torch.Tensor) -> torch.Tensor:
    """Return 0 for every set bit, little-endian, and -inf for others: [R, B] uint8 -> [R, 8 B].

    Eight numbers are looked up for each byte: filling by a mask of bools takes ten times as long.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    table = torch.from_numpy(np.where(bits, np.float32(0.0), np.float32(-np.inf)))
    found = torch.nn.functional.embedding(packed.int(), table.to(packed.device))
    return found.view(len(packed), -1)


NO_MASKS = RowMasks({}, frozenset())


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """A matcher that has consumed `ids`; it moves on by being replaced."""

    grammar: str
    ids: tuple[int, ...]
    matcher: llguidance.LLMatcher


class GrammarMasks:
    """The masks of a model's rows; at most `max_states` matchers are remembered."""

    def __init__(
        self,
        compiler: GrammarCompiler,
        vocab_size: int,
        max_states: int = 1024,
    ) -> None:
        """`vocab_size`: the logits' columns; tokens that the tokenizer lacks are never allowed."""
        self._compiler = compiler
        self._num_bytes = -(-vocab_size // _BITS)
        self._max_states = max_states
        self._states: OrderedDict[str, _State] = OrderedDict()

    @property
    def num_states(self) -> int:
        """Matchers remembered now."""
        return len(self._states)

    def masks(self, rows: Sequence[Chunk]) -> RowMasks:
        """Return the masks of those rows that have a grammar.

        Nothing is allowed where the grammar cannot be followed any further (it is none, a bound of
        the library is met, or the tokens so far do not fit): the caller finds no token there.
        """
        bits: dict[str, NDArray[np.uint8]] = {}
        closing: list[str] = []
        for chunk in rows:
            sampling = chunk.sampling
            if sampling is None or not sampling.grammar:
                continue
            mask = bits[chunk.request_id] = self._mask(chunk, sampling.grammar)
            if bans_end(sampling, chunk) and not self._allows_more(mask, sampling):
                closing.append(chunk.request_id)
        return RowMasks(bits, frozenset(closing)) if bits else NO_MASKS

    def _allows_more(self, mask: NDArray[np.uint8], sampling: SamplingParams) -> bool:
        rest = mask.copy()
        for token_id in sampling.stop_token_ids:
            if token_id < len(rest) * _BITS:
                rest[token_id // _BITS] &= 0xFF ^ (1 << token_id % _BITS)
        return bool(rest.any())

    def _mask(self, chunk: Chunk, grammar: str) -> NDArray[np.uint8]:
        mask = np.zeros(self._num_bytes, np.uint8)
        try:
            matcher = self._matcher(chunk, grammar)
        except GrammarError:
            return mask
        found = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if not matcher.is_error():
            mask[: len(found)] = found[: len(mask)]
        return mask

    def _matcher(self, chunk: Chunk, grammar: str) -> llguidance.LLMatcher:
        """Return the row's matcher behind the tokens generated so far."""
        ids = chunk.output_ids
        assert len(ids) == chunk.output_index, f"{chunk.request_id}: a grammar without the history"
        state = self._states.get(chunk.request_id)
        if state is None or state.grammar != grammar or ids[: len(state.ids)] != state.ids:
            state = _State(grammar, (), self._compiler.matcher(grammar))
        new = ids[len(state.ids) :]
        if new:
            state.matcher.consume_tokens(list(new))
        self._states[chunk.request_id] = _State(grammar, ids, state.matcher)
        self._states.move_to_end(chunk.request_id)
        if len(self._states) > self._max_states:
            self._states.popitem(last=False)
        return state.matcher
