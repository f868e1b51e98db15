"""Paged attention on the compiled CPU kernels; it knows a step and the pools, and no model."""

from __future__ import annotations

import torch

from engine.model.attention import AttentionNeeds
from engine.model.kernels.native import DTYPE_CODES, MAX_HEAD_DIM, NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.step_input import StepInput


def supports(cache: KVCache, needs: AttentionNeeds) -> bool:
    """True if the kernels compute this device, type and head size."""
    return (
        cache.device.type == "cpu"
        and needs.dtype in DTYPE_CODES
        and needs.head_dim % 16 == 0
        and needs.head_dim <= MAX_HEAD_DIM
        and needs.num_heads % needs.num_kv_heads == 0
    )


class CpuAttention:
    """One kernel for prompt chunks and decodes (see engine.model.attention.PagedAttention)."""

    def __init__(self, kv_cache: KVCache, native: NativeKernels) -> None:
        self._kv_cache = kv_cache
        self._native = native
        self._step: StepInput | None = None

    @property
    def name(self) -> str:
        """A short name for logs and reports."""
        if self._kv_cache.shape.dtype is torch.bfloat16:
            return f"cpu-{self._native.bf16_arithmetic}"
        return "cpu"

    @property
    def kv_cache(self) -> KVCache:
        """The pools it works on."""
        return self._kv_cache

    @property
    def native(self) -> NativeKernels:
        """The kernels it computes with."""
        return self._native

    def begin(self, step: StepInput) -> None:
        """Take the step that the following calls belong to."""
        self._step = step

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k, v [T, Hkv, D] of this step's tokens in the pools."""
        assert self._step is not None, "begin() comes first"
        cache = self._kv_cache
        self._native.write_kv(
            _contiguous_rows(k),
            _contiguous_rows(v),
            cache.keys[layer],
            cache.values[layer],
            self._step.slot_mapping,
        )

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
        return self._native.paged_attention(
            _contiguous_rows(q),
            self._kv_cache.keys[layer],
            self._kv_cache.values[layer],
            step.block_tables,
            step.cu_q,
            step.context_lens,
            step.block_size,
            scale,
            window=window,
            softcap=softcap,
        )


def _contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 else x.contiguous()
