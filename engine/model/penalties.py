"""Changes to logits that depend on one request's order and history; it draws nothing.

Order of operations on each row, all in float32 (the order of vLLM's V1 sampler): logit bias, bans
of end tokens before `min_tokens`, repetition penalty, frequency penalty, presence penalty.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.core.batch import Chunk
from engine.core.request import SamplingParams

_BANNED = float("-inf")


def changes_logits(chunk: Chunk) -> bool:
    """True where `LogitChanges.apply` or a grammar's mask would alter the chunk's row."""
    sampling = chunk.sampling
    assert sampling is not None, f"{chunk.request_id}: a row to draw without sampling parameters"
    return sampling.needs_history or bool(sampling.logit_bias) or bans_end(sampling, chunk)


def bans_end(sampling: SamplingParams, chunk: Chunk) -> bool:
    """True while the row's `min_tokens` forbids the tokens that would end it."""
    return chunk.output_index < sampling.min_tokens and bool(sampling.stop_token_ids)


class LogitChanges:
    """Applies bias, bans and penalties in place; remembers the prompts' distinct tokens.

    A prompt does not change while its request lives, so its set of tokens is computed once and kept
    for at most `max_prompts` requests; a stale entry is noticed because the prompt's tuple is
    another object. Token ids outside the vocabulary are ignored.
    """

    def __init__(self, vocab_size: int, max_prompts: int = 128) -> None:
        self._vocab_size = vocab_size
        self._max_prompts = max_prompts
        self._prompts: OrderedDict[str, tuple[tuple[int, ...], NDArray[np.int64]]] = OrderedDict()

    def apply(
        self, logits: torch.Tensor, rows: Sequence[Chunk], closing: Collection[str] = ()
    ) -> None:
        """Change `logits` ([R, >=V] float32) in place, row r by the sampling of `rows[r]`.

        Repetition (Keskar et al. 2019, section 4.1, https://arxiv.org/abs/1909.05858) counts prompt
        and output, and divides positive logits but multiplies negative ones; frequency and presence
        count the output only, as the OpenAI API documents them. The requests `closing` may end
        before their `min_tokens`.
        """
        self._bias_and_ban(logits, rows, closing)
        self._repetition(logits, rows)
        self._frequency_and_presence(logits, rows)

    def _bias_and_ban(
        self, logits: torch.Tensor, rows: Sequence[Chunk], closing: Collection[str]
    ) -> None:
        added, banned = _Entries(), _Entries()
        for row, chunk in enumerate(rows):
            sampling = chunk.sampling
            assert sampling is not None
            if sampling.logit_bias:
                ids, values = zip(*sampling.logit_bias, strict=True)
                added.add(row, *self._known(np.array(ids, np.int64), np.array(values, np.float32)))
            if bans_end(sampling, chunk) and chunk.request_id not in closing:
                ends = np.array(sampling.stop_token_ids, np.int64)
                banned.add(row, *self._known(ends, np.full(len(ends), _BANNED, np.float32)))
        if added:
            at, value = added.tensors(logits.device)
            logits.index_put_(at, value, accumulate=True)
        if banned:
            at, value = banned.tensors(logits.device)
            logits.index_put_(at, value)

    def _repetition(self, logits: torch.Tensor, rows: Sequence[Chunk]) -> None:
        entries = _Entries()
        for row, chunk in enumerate(rows):
            if chunk.sampling is not None and chunk.sampling.repetition_penalty != 1.0:
                seen = np.union1d(self._prompt_tokens(chunk), np.array(chunk.output_ids, np.int64))
                penalty = np.full(len(seen), chunk.sampling.repetition_penalty, np.float32)
                entries.add(row, *self._known(seen, penalty))
        if entries:
            at, penalty_at = entries.tensors(logits.device)
            old = logits[at]
            logits.index_put_(at, torch.where(old > 0, old / penalty_at, old * penalty_at))

    def _frequency_and_presence(self, logits: torch.Tensor, rows: Sequence[Chunk]) -> None:
        entries = _Entries()
        for row, chunk in enumerate(rows):
            sampling = chunk.sampling
            if sampling is None or not chunk.output_ids:
                continue
            if sampling.frequency_penalty == 0.0 and sampling.presence_penalty == 0.0:
                continue
            ids, counts = np.unique(np.array(chunk.output_ids, np.int64), return_counts=True)
            minus = -(sampling.frequency_penalty * counts + sampling.presence_penalty)
            entries.add(row, *self._known(ids, minus.astype(np.float32)))
        if entries:
            at, minus_at = entries.tensors(logits.device)
            logits.index_put_(at, minus_at, accumulate=True)

    def _known(
        self, ids: NDArray[np.int64], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Drop ids outside the vocabulary: on CUDA one of them would end the process."""
        inside = (ids >= 0) & (ids < self._vocab_size)
        return (ids, values) if inside.all() else (ids[inside], values[inside])

    def _prompt_tokens(self, chunk: Chunk) -> NDArray[np.int64]:
        entry = self._prompts.get(chunk.request_id)
        if entry is None or entry[0] is not chunk.prompt_ids:
            entry = (chunk.prompt_ids, np.unique(np.array(chunk.prompt_ids, np.int64)))
            self._prompts[chunk.request_id] = entry
            if len(self._prompts) > self._max_prompts:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(chunk.request_id)
        return entry[1]


class _Entries:
    """(row, token, value) triples of many rows, sent to the device as one index and one vector."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._ids: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, row: int, ids: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        self._rows.append(np.full(len(ids), row, np.int64))
        self._ids.append(ids)
        self._values.append(values)

    def tensors(
        self, device: torch.device
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        index = torch.from_numpy(np.stack((np.concatenate(self._rows), np.concatenate(self._ids))))
        at = index.to(device, non_blocking=True)
        values = torch.from_numpy(np.concatenate(self._values))
        return (at[0], at[1]), values.to(device, non_blocking=True)
