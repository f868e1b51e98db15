"""Paged attention for CUDA in Triton: one kernel for prompt chunks and decodes; it moves no KV.

One program computes a tile of `BLOCK_Q` query tokens of one sequence for all query heads that
share one KV head, so that each key is read once per group (grouped-query attention). Keys are
walked in steps of `BLOCK_N` with the running maximum and sum of online softmax (Milakov and
Gimelshein 2018, https://arxiv.org/abs/1805.02867), as FlashAttention does
(https://arxiv.org/abs/2205.14135). Block tables may have any block size: each key's slot is looked
up by itself. Slots at or beyond the context are never read, so what a block held before cannot
leak. With TRITON_INTERPRET=1 the same kernel runs on a CPU, which is how it is tested there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from engine.model.kv_cache import KVCache
from engine.model.step_input import StepInput

MIN_ROWS = 16  # the smallest tile of the tensor cores
DECODE_ROWS = 16
PREFILL_ROWS = 64
KEYS_PER_STEP = 64


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """N query tiles of one step: tile n covers `block_q` tokens of sequence `sequence[n]`."""

    sequence: torch.Tensor  # [N] int32
    start: torch.Tensor  # [N] int32: first query token, counted within the chunk
    block_q: int

    @classmethod
    def of(cls, inp: StepInput, group: int) -> Tiles:
        """Cut the chunks of `inp` into tiles; decode-only steps need no host arithmetic."""
        device = inp.token_ids.device
        if inp.num_decodes == inp.num_chunks:
            sequence = torch.arange(inp.num_chunks, dtype=torch.int32, device=device)
            block_q = max(1, DECODE_ROWS // group)
            return cls(sequence, torch.zeros_like(sequence), block_q)
        block_q = max(1, PREFILL_ROWS // group)
        lengths = np.diff(inp.cu_q_host)
        counts = -(-lengths // block_q)
        sequence_host = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        start_host = ((np.arange(len(sequence_host)) - first) * block_q).astype(np.int32)
        return cls(
            torch.from_numpy(sequence_host).to(device),
            torch.from_numpy(start_host).to(device),
            block_q,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _take_keys(q, k, v, seen, acc, total, maximum, scale, SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """One step of online softmax: fold the keys k and values v into acc, total and maximum."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFTCAP > 0.0:
        scores = SOFTCAP * (1.0 - 2.0 / (tl.exp(2.0 * scores / SOFTCAP) + 1.0))
    scores = scores * 1.4426950408889634  # log2(e): exp2 is the hardware's own
    scores = tl.where(seen, scores, -1.0e30)
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
    weights = tl.where(seen, tl.exp2(scores - new_maximum[:, None]), 0.0)
    correction = tl.exp2(maximum - new_maximum)
    acc = acc * correction[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return acc, total * correction + tl.sum(weights, axis=1), new_maximum


@triton.jit  # type: ignore[untyped-decorator]
def _paged_attention_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    block_tables_ptr,
    cu_q_ptr,
    context_lens_ptr,
    tile_sequence_ptr,
    tile_start_ptr,
    scale,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    kv_slot_stride,
    kv_head_stride,
    block_table_stride,
    block_size,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.load(tile_sequence_ptr + tile)
    start = tl.load(tile_start_ptr + tile)
    q_begin = tl.load(cu_q_ptr + sequence)
    q_len = tl.load(cu_q_ptr + sequence + 1) - q_begin
    context = tl.load(context_lens_ptr + sequence)

    # Row m of the tile is query token m // GROUP under query head m % GROUP of this KV head.
    rows = tl.arange(0, BLOCK_M)
    token = start + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    row_ok = (rows < BLOCK_Q * GROUP) & (token < q_len)
    position = context - q_len + token
    dims = tl.arange(0, HEAD_DIM_PADDED)
    dim_ok = dims < HEAD_DIM
    q_offset = (q_begin + token).to(tl.int64) * q_token_stride + head * q_head_stride
    q = tl.load(
        q_ptr + q_offset[:, None] + dims[None, :],
        mask=row_ok[:, None] & dim_ok[None, :],
        other=0.0,
    )

    first_position = context - q_len + start
    last_position = tl.minimum(first_position + BLOCK_Q, context) - 1
    low = 0
    if WINDOW > 0:
        low = (tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N) * BLOCK_N
    high = last_position + 1

    maximum = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM_PADDED], tl.float32)
    for key_begin in range(low, high, BLOCK_N):
        keys = key_begin + tl.arange(0, BLOCK_N)
        key_ok = keys < high
        block = tl.load(
            block_tables_ptr + sequence * block_table_stride + keys // block_size,
            mask=key_ok,
            other=0,
        )
        slot = block.to(tl.int64) * block_size + keys % block_size
        kv_offset = slot * kv_slot_stride + kv_head * kv_head_stride
        kv_mask = key_ok[:, None] & dim_ok[None, :]
        k = tl.load(k_ptr + kv_offset[:, None] + dims[None, :], mask=kv_mask, other=0.0)
        v = tl.load(v_ptr + kv_offset[:, None] + dims[None, :], mask=kv_mask, other=0.0)
        seen = row_ok[:, None] & key_ok[None, :] & (keys[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (keys[None, :] > position[:, None] - WINDOW)
        acc, total, maximum = _take_keys(q, k, v, seen, acc, total, maximum, scale, SOFTCAP)

    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out_offset = (q_begin + token).to(tl.int64) * out_token_stride + head * out_head_stride
    tl.store(
        out_ptr + out_offset[:, None] + dims[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=row_ok[:, None] & dim_ok[None, :],
    )


def paged_attention(
    query: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    inp: StepInput,
    tiles: Tiles,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Attend every query of the step to its own sequence.

    query [T, Hq, D], last dimension contiguous; pools [slots, Hkv, D], alike in their strides;
    `window` > 0 lets a token see itself and the window - 1 before it; with `softcap` > 0 scores
    become cap * tanh(score / cap). Returns [T, Hq, D].
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key_pool.shape[1]
    group = num_heads // num_kv_heads
    assert query.stride(2) == 1
    assert key_pool.stride(2) == 1
    assert key_pool.stride() == value_pool.stride()
    out = torch.empty(num_tokens, num_heads, head_dim, dtype=query.dtype, device=query.device)
    block_m = max(MIN_ROWS, triton.next_power_of_2(tiles.block_q * group))
    _paged_attention_kernel[(len(tiles.sequence), num_kv_heads)](
        out,
        query,
        key_pool,
        value_pool,
        inp.block_tables,
        inp.cu_q,
        inp.context_lens,
        tiles.sequence,
        tiles.start,
        scale,
        query.stride(0),
        query.stride(1),
        out.stride(0),
        out.stride(1),
        key_pool.stride(0),
        key_pool.stride(1),
        inp.block_tables.stride(0),
        inp.block_size,
        WINDOW=window,
        SOFTCAP=softcap,
        GROUP=group,
        BLOCK_Q=tiles.block_q,
        BLOCK_M=block_m,
        BLOCK_N=KEYS_PER_STEP,
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=max(16, triton.next_power_of_2(head_dim)),
    )
    return out


class TritonAttention:
    """The CUDA backend of engine/model/attention.py's `PagedAttention`."""

    name = "triton"

    def __init__(self, kv_cache: KVCache) -> None:
        self._kv_cache = kv_cache
        self._step: StepInput | None = None
        self._tiles: dict[int, Tiles] = {}  # by group size: Gemma 3 and others mix layers

    @property
    def kv_cache(self) -> KVCache:
        """The pools it works on."""
        return self._kv_cache

    def begin(self, step: StepInput) -> None:
        """Take the step that the following calls belong to."""
        self._step = step
        self._tiles = {}

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k, v [T, Hkv, D] of this step's tokens in the pools."""
        assert self._step is not None
        slots = self._step.slot_mapping
        self._kv_cache.keys[layer].index_copy_(0, slots, k)
        self._kv_cache.values[layer].index_copy_(0, slots, v)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Return the attention of q [T, Hq, D] as [T, Hq, D], contiguous."""
        assert self._step is not None
        keys, values = self._kv_cache.keys[layer], self._kv_cache.values[layer]
        group = q.shape[1] // keys.shape[1]
        tiles = self._tiles.get(group)
        if tiles is None:
            tiles = self._tiles[group] = Tiles.of(self._step, group)
        return paged_attention(
            q,
            keys,
            values,
            self._step,
            tiles,
            scale=scale,
            window=window or 0,
            softcap=softcap or 0.0,
        )
