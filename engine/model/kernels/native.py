"""The compiled CPU kernels as Python functions over tensors; it knows shapes, not models.

Calls go through ctypes, which releases the GIL while a kernel runs. Types and contiguity are the
caller's duty where a docstring says so; sizes that would read past a tensor are asserted.
"""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from engine.model.kernels.build import KernelBuildError, built_library, default_cache_dir

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
MAX_HEAD_DIM = 256
BF16_ARITHMETIC = {1: "plain", 2: "avx512-bf16", 3: "amx"}
_I, _L, _P, _F = c_int, c_int64, c_void_p, c_float
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "tg_bf16_arithmetic": (_I, []),
    "tg_has_gemm": (_I, [_I]),
    "tg_rms_norm": (None, [_I, _P, _P, _L, _P, _P, _F, _L, _I, _I]),
    "tg_silu_mul": (None, [_I, _P, _P, _P, _L, _L, _I, _I]),
    "tg_rope_write": (None, [_I, _P, _L, _L, _I, _I, _I, _P, _P, _P, _P, _F, _P, _P, _P, _I]),
    "tg_write_kv": (None, [_I, _L, _I, _I, _P, _L, _L, _P, _L, _L, _P, _P, _P]),
    "tg_argmax_rows": (None, [_I, _P, _L, _L, _I, _P, _I]),
    "tg_pack_blocks": (_I, [_I, _P, _L, _I, _I, _I, _I, _I, _P, _P, _L, _P, _I, _I, _P, _P]),
    "tg_unpack_blocks": (None, [_I, _P, _L, _I, _I, _I, _I, _I, _P, _P, _L, _P, _I, _P]),
    "tg_draw_rows": (None, [_I, _P, _L, _L, _I, _P, _P, _P, _P, _P, _P, _P, _I]),
    "tg_paged_attention": (
        _I,
        [_I, _I, _P, _P, _L, _L, _I, _I, _I, _P, _P, _P, _L, _I, _P, _P, _I, _F, _F, _I, _I],
    ),
}
_GEMM_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "tg_gemm_packed_words": (_L, [_I, _I, _I]),
    "tg_gemm_pack": (None, [_I, _P, _I, _I, _I, _P, _I]),
    "tg_gemm": (_I, [_I, _P, _L, _I, _I, _P, _I, _P, _P, _L, _I, _I]),
    "tg_decode": (_I, [_P, _P, _I]),
}
_logger = logging.getLogger(__name__)


class NativeKernels:
    """The loaded library. `threads` is how many each call may use, torch's own number by default.

    `functions` are the raw C functions by name, for callers that count microseconds.
    """

    def __init__(self, library: ctypes.CDLL, threads: int | None = None) -> None:
        self.threads = threads or torch.get_num_threads()
        self.functions: dict[str, Callable[..., Any]] = {}
        for name, signature in _SIGNATURES.items():
            self._declare(library, name, signature)
        self._gemm_dtypes = frozenset(
            dtype for dtype, code in DTYPE_CODES.items() if self.functions["tg_has_gemm"](code)
        )
        if self._gemm_dtypes:
            for name, signature in _GEMM_SIGNATURES.items():
                self._declare(library, name, signature)

    def _declare(self, library: ctypes.CDLL, name: str, signature: tuple[Any, list[Any]]) -> None:
        function = getattr(library, name)
        function.restype, function.argtypes = signature
        self.functions[name] = function

    @property
    def bf16_arithmetic(self) -> str:
        """How bfloat16 attention is computed on this machine: "plain", "avx512-bf16" or "amx"."""
        return BF16_ARITHMETIC[self.functions["tg_bf16_arithmetic"]()]

    def has_gemm(self, dtype: torch.dtype) -> bool:
        """True if this library's own linear layers are the best ones here for `dtype`."""
        return dtype in self._gemm_dtypes

    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the lowest index of each row's maximum; [R, V] -> [R] int64.

        NaN counts as the maximum. float32 or bfloat16, columns contiguous.
        """
        rows, width = logits.shape
        assert logits.stride(1) == 1, "columns must be contiguous"
        out = torch.empty(rows, dtype=torch.int64)
        self.functions["tg_argmax_rows"](
            DTYPE_CODES[logits.dtype],
            logits.data_ptr(),
            logits.stride(0),
            rows,
            width,
            out.data_ptr(),
            self.threads,
        )
        return out

    def sample_rows(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one token per row as engine.model.categorical defines it: [R] int64, [R] float32.

        `logits`: [R, V], columns contiguous, float32 or bfloat16, unchanged. Parameters are [R]:
        temperature > 0, top_k >= 1 (V or more means off), top_p (1 means off), min_p (0 means off)
        and uniform in [0, 1). The second result is the natural log of the token's probability at
        temperature 1. A row with NaN or +inf, or nothing but -inf, gives token -1 and NaN.
        """
        rows, width = logits.shape
        assert logits.stride(1) == 1, "columns must be contiguous"
        assert all(p.shape == (rows,) for p in (temperature, top_k, top_p, min_p, uniform))
        temperature, top_p, min_p, uniform = (
            p.double().contiguous() for p in (temperature, top_p, min_p, uniform)
        )
        top_k = top_k.long().contiguous()
        tokens = torch.empty(rows, dtype=torch.int64)
        logprobs = torch.empty(rows, dtype=torch.float32)
        self.functions["tg_draw_rows"](
            DTYPE_CODES[logits.dtype],
            logits.data_ptr(),
            logits.stride(0),
            rows,
            width,
            temperature.data_ptr(),
            top_k.data_ptr(),
            top_p.data_ptr(),
            min_p.data_ptr(),
            uniform.data_ptr(),
            tokens.data_ptr(),
            logprobs.data_ptr(),
            self.threads,
        )
        return tokens, logprobs

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x / rms(x) * weight for x [T, H]; with `residual` [T, H] that becomes x + residual
        first, in place, and is what gets normalised.
        """
        rows, width = x.shape
        assert x.stride(1) == 1, "columns must be contiguous"
        assert weight.shape == (width,)
        assert weight.dtype == x.dtype
        assert residual is None or (residual.shape == x.shape and residual.is_contiguous())
        out = torch.empty((rows, width), dtype=x.dtype)
        self.functions["tg_rms_norm"](
            DTYPE_CODES[x.dtype],
            out.data_ptr(),
            x.data_ptr(),
            x.stride(0),
            residual.data_ptr() if residual is not None else None,
            weight.data_ptr(),
            eps,
            rows,
            width,
            self.threads,
        )
        return out

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up for two [T, I] tensors with equal strides (halves of one, say)."""
        rows, width = gate.shape
        assert gate.stride() == up.stride()
        assert gate.stride(1) == 1, "columns must be contiguous"
        out = torch.empty((rows, width), dtype=gate.dtype)
        self.functions["tg_silu_mul"](
            DTYPE_CODES[gate.dtype],
            out.data_ptr(),
            gate.data_ptr(),
            up.data_ptr(),
            gate.stride(0),
            rows,
            width,
            self.threads,
        )
        return out

    def rope_write(
        self,
        qkv: torch.Tensor,
        heads: tuple[int, int, int],
        angles: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> None:
        """Rotate q in place, and put rotated k and plain v at their slots of the pools.

        `qkv`: [T, (Hq + 2 Hkv) D] contiguous; `heads`: (Hq, Hkv, D); `angles`: [positions, D]
        float32, D/2 cosines then D/2 sines; `keys`, `values`: [slots, Hkv, D] contiguous; `norms`:
        RMSNorm weights of q and k heads [D] and their epsilon.
        """
        q_heads, kv_heads, dim = heads
        assert qkv.is_contiguous()
        assert qkv.shape[1] == (q_heads + 2 * kv_heads) * dim
        assert angles.shape[1] == dim
        assert angles.dtype == torch.float32
        q_norm, k_norm, eps = norms if norms is not None else (None, None, 0.0)
        self.functions["tg_rope_write"](
            DTYPE_CODES[qkv.dtype],
            qkv.data_ptr(),
            qkv.stride(0),
            qkv.shape[0],
            q_heads,
            kv_heads,
            dim,
            angles.data_ptr(),
            positions.data_ptr(),
            q_norm.data_ptr() if q_norm is not None else None,
            k_norm.data_ptr() if k_norm is not None else None,
            eps,
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            self.threads,
        )

    def write_kv(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Copy k, v [T, Hkv, D] (any strides but D's) to their slots of [slots, Hkv, D] pools."""
        rows, heads, dim = k.shape
        assert k.dtype == keys.dtype
        assert v.dtype == values.dtype
        assert k.stride(2) == 1 and v.stride(2) == 1, "head rows must be contiguous"  # noqa: PT018
        self.functions["tg_write_kv"](
            k.element_size(),
            rows,
            heads,
            dim,
            k.data_ptr(),
            k.stride(0),
            k.stride(1),
            v.data_ptr(),
            v.stride(0),
            v.stride(1),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
        )

    def paged_attention(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        block_tables: torch.Tensor,
        first_rows: torch.Tensor,
        context_lens: torch.Tensor,
        block_size: int,
        scale: float,
        *,
        window: int | None = None,
        softcap: float | None = None,
        arithmetic: int = 0,
    ) -> torch.Tensor:
        """Return softmax(scale q K^T) V as [T, Hq, D] for q [T, Hq, D] (any strides but D's).

        `keys`, `values`: [slots, Hkv, D] contiguous; `block_tables` [S, B], `first_rows` [S + 1],
        `context_lens` [S]: int32 (see engine.model.step_input). D is a multiple of 16, at most 256.
        `arithmetic` 0 is the machine's best for bfloat16; other codes (BF16_ARITHMETIC) are for
        tests, and ValueError says that this build lacks one.
        """
        _, q_heads, dim = q.shape
        assert q.stride(2) == 1, "head rows must be contiguous"
        assert keys.is_contiguous()
        assert values.is_contiguous()
        out = torch.empty(q.shape, dtype=q.dtype)
        error = self.functions["tg_paged_attention"](
            DTYPE_CODES[q.dtype],
            arithmetic,
            out.data_ptr(),
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            q_heads,
            keys.shape[1],
            dim,
            keys.data_ptr(),
            values.data_ptr(),
            block_tables.data_ptr(),
            block_tables.stride(0),
            block_size,
            first_rows.data_ptr(),
            context_lens.data_ptr(),
            context_lens.shape[0],
            scale,
            softcap or 0.0,
            window or 0,
            self.threads,
        )
        if error:
            raise ValueError(f"attention kernel: head size {dim}, arithmetic {arithmetic}")
        return out


class PackedGemm:
    """A linear layer's weights in the layout of `tg_gemm`; the originals are not kept.

    With `swiglu` the first half of the outputs are gates g, the second half u, and the result is
    silu(g) * u, half as wide.
    """

    def __init__(
        self,
        native: NativeKernels,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        swiglu: bool = False,
    ) -> None:
        assert native.has_gemm(weight.dtype), f"no product of {weight.dtype} here"
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        self.epilogue = int(swiglu)
        self.width = self.outputs // 2 if swiglu else self.outputs
        self.bias = bias.detach().contiguous().clone() if bias is not None else None
        assert self.bias is None or self.bias.dtype == weight.dtype
        self._native = native
        code = DTYPE_CODES[weight.dtype]
        words = native.functions["tg_gemm_packed_words"](code, self.outputs, self.inputs)
        self._memory = torch.empty(words + 16, dtype=torch.int32)
        # The kernel loads whole cache lines.
        self.address = -(-self._memory.data_ptr() // 64) * 64
        weight = weight.detach().contiguous()
        native.functions["tg_gemm_pack"](
            code,
            weight.data_ptr(),
            self.outputs,
            self.inputs,
            self.epilogue,
            self.address,
            native.threads,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias as [T, width] for x [T, inputs] of the weights' type."""
        rows, inputs = x.shape
        assert inputs == self.inputs, f"{inputs} inputs, not {self.inputs}"
        assert x.dtype == self.dtype
        if x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty((rows, self.width), dtype=self.dtype)
        error = self._native.functions["tg_gemm"](
            DTYPE_CODES[self.dtype],
            x.data_ptr(),
            x.stride(0),
            rows,
            inputs,
            self.address,
            self.outputs,
            self.bias.data_ptr() if self.bias is not None else None,
            out.data_ptr(),
            self.width,
            self.epilogue,
            self._native.threads,
        )
        if error:
            raise MemoryError(f"no memory for {rows} packed rows")
        return out


def load_native(cache_dir: Path | None = None, threads: int | None = None) -> NativeKernels | None:
    """Compile (about five seconds, once per machine) and load the kernels.

    None where that is not possible; the reason is logged and torch computes instead.
    """
    try:
        with built_library(cache_dir or default_cache_dir()) as path:
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                path.unlink(missing_ok=True)  # damaged: the next start makes it anew
                raise
        return NativeKernels(library, threads)
    except (KernelBuildError, OSError, RuntimeError) as error:
        _logger.warning("no CPU kernels on %s, torch computes: %s", platform.machine(), error)
        return None
