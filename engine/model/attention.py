"""Paged attention: its protocol and the plain torch reference, which runs on any device.

It reads and writes the KV pools where a step's block tables say; it knows neither the model around
it nor who owns a block. Stale keys and values in reused blocks are masked out of both products, so
that a NaN left behind by one request can never reach another.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from engine.model.kv_cache import KVCache
from engine.model.step_input import StepInput

if TYPE_CHECKING:
    from engine.model.kernels.native import NativeKernels

# Bounds for one gather and one mask of the reference; larger work is done in several pieces.
MAX_GATHERED_TOKENS = 1 << 16
MAX_MASK_ELEMENTS = 1 << 24


class PagedAttention(Protocol):
    """Attention over the paged pools of one model; `begin` once a step, then layer by layer.

    Within a layer `write` comes before `attend`: a token sees itself.
    """

    @property
    def name(self) -> str:
        """A short name for logs and reports."""
        ...

    @property
    def kv_cache(self) -> KVCache:
        """The pools it works on."""
        ...

    def begin(self, step: StepInput) -> None:
        """Take the step that the following calls belong to."""
        ...

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k, v [T, Hkv, D] of this step's tokens in the pools; strides are free but D's."""
        ...

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Return softmax(scale q K^T) V as [T, Hq, D], contiguous, for q [T, Hq, D].

        Row t sees the keys of its own sequence up to its own position; with `window` only the last
        `window` of them, itself included. With `softcap` scores become cap * tanh(score / cap).
        """
        ...


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """What a model asks of its attention; found by running it once, not read from its config."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]  # per layer
    softcap: float | None
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class _DecodeGroup:
    """Consecutive decodes whose gathered keys fit the bound; L = their longest table in tokens."""

    first: int
    last: int
    blocks: torch.Tensor  # [N * L / block_size] int64
    positions: torch.Tensor  # [1, L]
    context_lens: torch.Tensor  # [N, 1]


class TorchAttention:
    """The reference: gather whole blocks, then scaled-dot-product attention.

    Decodes are padded to the longest of their group, with the heads that share a KV head packed
    into the query axis; prompt chunks go one sequence at a time.
    """

    name = "torch"

    def __init__(self, kv_cache: KVCache) -> None:
        self._kv_cache = kv_cache
        self._step: StepInput | None = None
        self._decodes: list[_DecodeGroup] = []
        self._prompt_slots: list[torch.Tensor] = []
        self._decode_masks: dict[int | None, list[torch.Tensor]] = {}

    @property
    def kv_cache(self) -> KVCache:
        """The pools it works on."""
        return self._kv_cache

    def begin(self, step: StepInput) -> None:
        """Take the step that the following calls belong to, and plan its gathers."""
        self._step = step
        self._decode_masks = {}
        self._decodes = self._plan_decodes(step)
        size = step.block_size
        offsets = torch.arange(size, device=step.block_tables.device)
        self._prompt_slots = []
        for chunk in range(step.num_decodes, step.num_chunks):
            context = int(step.context_lens_host[chunk])
            blocks = step.block_tables[chunk, : -(-context // size)].long()
            slots = (blocks[:, None] * size + offsets).flatten()[:context]
            self._prompt_slots.append(slots)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k, v [T, Hkv, D] of this step's tokens in the pools."""
        assert self._step is not None, "begin() comes first"
        self._kv_cache.keys[layer].index_copy_(0, self._step.slot_mapping, k)
        self._kv_cache.values[layer].index_copy_(0, self._step.slot_mapping, v)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Return attention of q [T, Hq, D] over the pools as [T, Hq, D]."""
        step = self._step
        assert step is not None, "begin() comes first"
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._attend_decodes(layer, q, out, scale, window, softcap)
        keys, values = self._kv_cache.keys[layer], self._kv_cache.values[layer]
        for i, slots in enumerate(self._prompt_slots):
            chunk = step.num_decodes + i
            first, last = int(step.cu_q_host[chunk]), int(step.cu_q_host[chunk + 1])
            _attend_prompt(
                q[first:last], keys[slots], values[slots], out[first:last], scale, window, softcap
            )
        return out

    def _plan_decodes(self, step: StepInput) -> list[_DecodeGroup]:
        groups: list[_DecodeGroup] = []
        size, first = step.block_size, 0
        blocks_of = -(-step.context_lens_host[: step.num_decodes] // size)
        while first < step.num_decodes:
            last, longest = first, 0
            while last < step.num_decodes:
                widest = max(longest, int(blocks_of[last]))
                if last > first and widest * size * (last + 1 - first) > MAX_GATHERED_TOKENS:
                    break
                longest, last = widest, last + 1
            table = step.block_tables[first:last, :longest]
            groups.append(
                _DecodeGroup(
                    first=first,
                    last=last,
                    blocks=table.reshape(-1).long(),
                    positions=torch.arange(longest * size, device=table.device)[None],
                    context_lens=step.context_lens[first:last, None],
                )
            )
            first = last
        return groups

    def _attend_decodes(
        self,
        layer: int,
        q: torch.Tensor,
        out: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        shape = self._kv_cache.shape
        masks = self._masks(window)
        for group, mask in zip(self._decodes, masks, strict=True):
            count = group.last - group.first
            gathered = (count, -1, shape.num_kv_heads, shape.head_dim)
            keys = self._kv_cache.key_blocks(layer)[group.blocks].view(gathered)
            values = self._kv_cache.value_blocks(layer)[group.blocks].view(gathered)
            # The gathered copies are ours: whatever stale slots hold must not meet a zero weight.
            stale = ~mask[:, :, None, None]
            keys.masked_fill_(stale, 0)
            values.masked_fill_(stale, 0)
            packed = q[group.first : group.last].reshape(count, shape.num_kv_heads, -1, q.shape[-1])
            result = _masked_attention(
                packed,
                keys.transpose(1, 2),
                values.transpose(1, 2),
                mask[:, None, None, :],
                scale,
                softcap,
            )
            out[group.first : group.last] = result.reshape(count, -1, q.shape[-1])

    def _masks(self, window: int | None) -> list[torch.Tensor]:
        """Return per decode group which keys count, [N, L] bool; made once per step and window."""
        masks = self._decode_masks.get(window)
        if masks is None:
            masks = [
                _visible(group.positions, group.context_lens, window) for group in self._decodes
            ]
            self._decode_masks[window] = masks
        return masks


def _visible(
    key_positions: torch.Tensor, context_lens: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Return which key positions a query sees whose context, itself included, is so long."""
    visible = key_positions < context_lens
    if window is not None:
        visible &= key_positions >= context_lens - window
    return visible


def _masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of q [N, H, M, D] over k, v [N, H, L, D] where `mask` (bool, broadcast) is True."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def _attend_prompt(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """Write attention of one sequence's last M tokens, q [M, Hq, D], over its N keys into `out`."""
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = keys.shape
    k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    if num_queries == num_keys and window is None and softcap is None:
        result = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k,
            v,
            is_causal=True,
            scale=scale,
            enable_gqa=num_heads != num_kv_heads,
        )
        out.copy_(result[0].transpose(0, 1))
        return
    group = num_heads // num_kv_heads
    key_positions = torch.arange(num_keys, device=q.device)
    piece = max(1, MAX_MASK_ELEMENTS // (num_keys * group))
    for first in range(0, num_queries, piece):
        last = min(first + piece, num_queries)
        context = torch.arange(first, last, device=q.device) + (num_keys - num_queries + 1)
        # Query heads that share a KV head lie side by side in the query axis: [Hkv, M * group, D].
        packed = q[first:last].reshape(last - first, num_kv_heads, group, head_dim)
        packed = packed.transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim)
        mask = _visible(key_positions, context[:, None], window).repeat_interleave(group, dim=0)
        result = _masked_attention(packed, k, v, mask, scale, softcap)
        result = result.view(num_kv_heads, last - first, group, head_dim)
        out[first:last] = result.transpose(0, 1).reshape(last - first, num_heads, head_dim)


def select_attention(
    kv_cache: KVCache, needs: AttentionNeeds, native: NativeKernels | None = None
) -> PagedAttention:
    """Return the fastest attention that supports this device, dtype and head size.

    `native` are the compiled CPU kernels, None where there are none.
    """
    # The backends know this module, so they can only be imported here.
    if kv_cache.device.type == "cuda" and find_spec("triton") is not None:
        from engine.model.kernels.triton_attention import TritonAttention

        return TritonAttention(kv_cache)
    if kv_cache.device.type == "cpu" and native is not None:
        from engine.model.kernels.cpu_attention import CpuAttention, supports

        if supports(kv_cache, needs):
            return CpuAttention(kv_cache, native)
    return TorchAttention(kv_cache)
