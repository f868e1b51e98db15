"""Draws the next token of every row of a mixed batch; it knows orders and histories, not the model.

How a row is drawn is defined in categorical.py, what changes its logits first in penalties.py and
grammar_masks.py, its random number in random_stream.py, what is reported of it in logprobs.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from engine.core.batch import Chunk, SampledToken
from engine.core.request import SamplingParams
from engine.model import categorical
from engine.model.logprobs import MAX_TOP_LOGPROBS, packed_logprobs, unpack_top
from engine.model.penalties import LogitChanges, changes_logits
from engine.model.random_stream import uniforms

GREEDY_BELOW = 1e-5  # temperatures under this are greedy: dividing by them would leave float32


class NativeKernels(Protocol):
    """What compiled CPU kernels do in place of torch; `engine.model.kernels` makes them.

    They take float32 and bfloat16 logits whose columns are contiguous.
    """

    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the lowest index of each row's maximum; [R, V] -> [R] int64."""
        ...


@runtime_checkable
class SamplingKernels(NativeKernels, Protocol):
    """Kernels that draw as well; they must follow the definition in categorical.py."""

    def sample_rows(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the drawn tokens [R] int64 and their logprobs at temperature 1, [R] float32.

        `temperature`, `top_p`, `min_p`: [R] float32; `top_k`: [R] int32, at least the row's width
        where off; `uniform`: [R] float64. The logprob of a row that cannot be computed is NaN.
        """
        ...


class Masks(Protocol):
    """Which tokens some rows of a pass may become; the others' logits are not touched."""

    @property
    def closing(self) -> Collection[str]:
        """Requests that may end before their `min_tokens`."""
        ...

    def apply(self, logits: torch.Tensor, rows: Sequence[Chunk]) -> None:
        """Set what is not allowed to -inf, in place."""
        ...


class MaskSource(Protocol):
    """Makes the masks of rows with a grammar; `engine.model.grammar_masks` does."""

    def masks(self, rows: Sequence[Chunk]) -> Masks:
        """Return the masks of a step's rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Which rows go which way; indices into the pass's rows."""

    greedy: list[int]  # plain argmax of the raw logits
    unfiltered: list[int]
    bounded: list[int]  # filtered, and top_k ends well inside the first candidates
    open: list[int]  # filtered otherwise
    reported: list[int]  # rows that want logprobs, of any of the kinds above

    @property
    def drawn(self) -> list[int]:
        """Rows that need a float32 copy, in the order in which it holds them."""
        return self.unfiltered + self.bounded + self.open


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A pass's results on the device, [R] each, and the reported rows' packed logprobs."""

    tokens: torch.Tensor  # int64
    finite: torch.Tensor  # bool: the row could be computed
    settled: torch.Tensor  # bool: the candidates sufficed


class Sampler:
    """Draws one token per row; every row's result depends on that row alone."""

    def __init__(
        self,
        vocab_size: int,
        native: NativeKernels | None = None,
        grammars: MaskSource | None = None,
    ) -> None:
        """Columns of the logits from `vocab_size` on are padding and never drawn.

        Without `grammars`, rows that have one give no token.
        """
        self._vocab_size = vocab_size
        self._native = native
        self._grammars = grammars
        self._changes = LogitChanges(vocab_size)

    def sample(self, logits: torch.Tensor, rows: Sequence[Chunk]) -> list[SampledToken]:
        """Return the drawn tokens in the order of `rows`.

        `logits`: [R, >= vocab_size], any float dtype, any device; not changed. `rows`: the R chunks
        that sample, each with its `sampling`. A row whose logits (after bias, bans and mask) hold
        NaN or +inf, or nothing but -inf, gives no token: it is left out, and the caller reports its
        request as failed.
        The host waits for the device once, and once more where the first candidates did not settle
        every row.
        """
        assert len(rows) == logits.shape[0], f"{len(rows)} chunks, logits {tuple(logits.shape)}"
        assert logits.shape[1] >= self._vocab_size
        logits = logits[:, : self._vocab_size]
        found: dict[int, SampledToken] = {}
        masks: Masks | None = None
        pending = list(range(len(rows)))
        held = [i for i in pending if _sampling(rows[i]).grammar]
        if held and self._grammars is None:
            pending = [i for i in pending if i not in held]
        elif held and self._grammars is not None:
            # Made while a GPU still computes the logits: only drawing waits for them.
            masks = self._grammars.masks(rows)
        for exhaustive in (False, True):
            if not pending:
                break
            chunks = [rows[i] for i in pending]
            tokens, unsettled = self._pass(_take(logits, pending), chunks, exhaustive, masks)
            found |= {pending[i]: token for i, token in tokens.items()}
            pending = [pending[i] for i in unsettled]
        assert not pending, "a full ranking settles every row"
        return [found[i] for i in sorted(found)]

    def _pass(
        self, logits: torch.Tensor, rows: Sequence[Chunk], exhaustive: bool, masks: Masks | None
    ) -> tuple[dict[int, SampledToken], list[int]]:
        """Draw every row; returns tokens by row, and the rows not settled yet."""
        plan = self._plan(rows)
        drawn = self._draw(logits, rows, plan, exhaustive, masks)
        parts = [torch.stack([drawn.tokens, drawn.finite, drawn.settled]).double().flatten()]
        wanted = [_sampling(chunk).logprobs for chunk in rows]
        if plan.reported:
            most = max(wanted[i] or 0 for i in plan.reported)
            at = _index(plan.reported, logits.device)
            num_top = min(most, MAX_TOP_LOGPROBS, self._vocab_size)
            packed = packed_logprobs(_take(logits, plan.reported), drawn.tokens[at], num_top)
            parts.append(packed.flatten())
        flat = torch.cat(parts).cpu()  # the one transfer
        num_rows = len(rows)
        token_ids, finite, settled = flat[: 3 * num_rows].view(3, num_rows).tolist()
        reports: dict[int, list[float]] = {}
        if plan.reported:
            table = flat[3 * num_rows :].view(len(plan.reported), -1).tolist()
            reports = dict(zip(plan.reported, table, strict=True))
        tokens: dict[int, SampledToken] = {}
        for i, chunk in enumerate(rows):
            if not finite[i] or not settled[i]:
                continue
            row = reports.get(i)
            tokens[i] = SampledToken(
                chunk.request_id,
                int(token_ids[i]),
                None if row is None else row[0],
                () if row is None else unpack_top(row, wanted[i] or 0),
            )
        return tokens, [i for i in range(num_rows) if finite[i] and not settled[i]]

    def _plan(self, rows: Sequence[Chunk]) -> _Plan:
        plan = _Plan([], [], [], [], [])
        for i, chunk in enumerate(rows):
            sampling = _sampling(chunk)
            if sampling.logprobs is not None:
                plan.reported.append(i)
            cuts = 0 < sampling.top_k < self._vocab_size
            if sampling.temperature < GREEDY_BELOW:
                # Changed logits are copied anyway, and there greedy is the draw with top_k 1.
                (plan.bounded if changes_logits(chunk) else plan.greedy).append(i)
            elif cuts and sampling.top_k <= categorical.NUM_CANDIDATES // 2:
                plan.bounded.append(i)
            elif cuts or sampling.top_p < 1.0 or sampling.min_p > 0.0:
                plan.open.append(i)
            else:
                plan.unfiltered.append(i)
        return plan

    def _draw(
        self,
        logits: torch.Tensor,
        rows: Sequence[Chunk],
        plan: _Plan,
        exhaustive: bool,
        masks: Masks | None,
    ) -> _Drawn:
        device = logits.device
        tokens = torch.zeros(len(rows), dtype=torch.int64, device=device)
        finite = torch.zeros(len(rows), dtype=torch.bool, device=device)
        settled = torch.ones(len(rows), dtype=torch.bool, device=device)
        if plan.greedy:
            part = _take(logits, plan.greedy)
            best = self._argmax(part)
            at = _index(plan.greedy, device)
            tokens[at] = best
            finite[at] = part.gather(1, best.unsqueeze(-1)).squeeze(-1).isfinite()
        if plan.drawn:
            if isinstance(self._native, SamplingKernels) and _native_takes(logits):
                drawn = _Drawn(tokens, finite, settled)
                self._draw_natively(self._native, logits, rows, plan.drawn, drawn, masks)
                return drawn
            chunks = [rows[i] for i in plan.drawn]
            scores = categorical.padded_float32(_take(logits, plan.drawn), self._vocab_size)
            self._change(scores, chunks, masks)
            at = _index(plan.drawn, device)
            finite[at] = scores.amax(-1).isfinite()
            params = _draw_params(chunks, self._vocab_size, device)
            first, last = len(plan.unfiltered), len(plan.drawn)
            middle = first + len(plan.bounded)
            if first:
                tokens[at[:first]] = categorical.draw_unfiltered(scores[:first], params[:first])
            if exhaustive and last > first:
                tokens[at[first:]] = categorical.draw_filtered_exhaustively(
                    scores[first:], params[first:]
                )
                return _Drawn(tokens, finite, settled)
            for start, stop, bounded in ((first, middle, True), (middle, last, False)):
                if start < stop:
                    tokens[at[start:stop]], settled[at[start:stop]] = categorical.draw_filtered(
                        scores[start:stop], params[start:stop], bounded=bounded
                    )
        return _Drawn(tokens, finite, settled)

    def _draw_natively(
        self,
        native: SamplingKernels,
        logits: torch.Tensor,
        rows: Sequence[Chunk],
        which: list[int],
        drawn: _Drawn,
        masks: Masks | None,
    ) -> None:
        """Draw the rows `which` with the kernel, raw logits where nothing changes them."""
        changed = [i for i in which if changes_logits(rows[i])]
        for group in (changed, [i for i in which if i not in changed]):
            if not group:
                continue
            chunks = [rows[i] for i in group]
            scores = _take(logits, group)
            if group is changed:
                scores = scores.to(torch.float32, copy=True)
                self._change(scores, chunks, masks)
            params = _draw_params(chunks, self._vocab_size, logits.device)
            at = _index(group, logits.device)
            drawn.tokens[at], logprobs = native.sample_rows(
                scores,
                params.temperature.float(),
                params.top_k.clamp(max=self._vocab_size).to(torch.int32),
                params.top_p.float(),
                params.min_p.float(),
                params.uniform.contiguous(),
            )
            drawn.finite[at] = logprobs.isfinite()

    def _change(self, scores: torch.Tensor, rows: Sequence[Chunk], masks: Masks | None) -> None:
        if masks is None:
            self._changes.apply(scores, rows)
            return
        masks.apply(scores, rows)
        self._changes.apply(scores, rows, masks.closing)

    def _argmax(self, logits: torch.Tensor) -> torch.Tensor:
        if self._native is not None and _native_takes(logits):
            return self._native.argmax_rows(logits)
        return categorical.argmax(logits)


def _sampling(chunk: Chunk) -> SamplingParams:
    assert chunk.sampling is not None, f"{chunk.request_id}: a row without sampling parameters"
    return chunk.sampling


def _native_takes(logits: torch.Tensor) -> bool:
    return (
        logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.bfloat16)
        and logits.stride(1) == 1
    )


def _index(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


def _take(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return the named rows, without a copy where that is all of them in order."""
    if rows == list(range(logits.shape[0])):
        return logits
    return logits.index_select(0, _index(rows, logits.device))


def _draw_params(
    rows: Sequence[Chunk], vocab_size: int, device: torch.device
) -> categorical.DrawParams:
    """Return the rows' parameters, sent to the device in one piece."""
    orders = [_sampling(chunk) for chunk in rows]
    greedy = [order.temperature < GREEDY_BELOW for order in orders]
    table = [
        [
            1.0 if is_greedy else order.temperature,
            1.0 if is_greedy else float(order.top_k if order.top_k > 0 else vocab_size),
            order.top_p,
            order.min_p,
        ]
        for order, is_greedy in zip(orders, greedy, strict=True)
    ]
    random = uniforms([order.seed for order in orders], [chunk.output_index for chunk in rows])
    columns = torch.cat(
        [torch.tensor(table, dtype=torch.float64).t(), torch.from_numpy(random).unsqueeze(0)]
    )
    temperature, top_k, top_p, min_p, uniform = columns.to(device, non_blocking=True)
    any_min_p = any(order.min_p > 0.0 for order in orders)
    return categorical.DrawParams(temperature, top_k, top_p, min_p, uniform, any_min_p)
