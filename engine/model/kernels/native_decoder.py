"""A stack of decoder layers as one call into the CPU kernels; it knows addresses, not families.

The structures mirror those of decoder.cpp, field by field.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch

from engine.model.kernels.native import DTYPE_CODES, NativeKernels, PackedGemm
from engine.model.kv_cache import KVCache
from engine.model.step_input import StepInput


class _Product(ctypes.Structure):
    _fields_ = (("packed", c_void_p), ("bias", c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", _Product),
        ("output", _Product),
        ("gate_up", _Product),
        ("down", _Product),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", c_void_p),
        ("angles", c_void_p),
        ("final_norm", c_void_p),
        *((name, c_int32) for name in ("count", "dtype", "hidden", "intermediate")),
        *((name, c_int32) for name in ("q_heads", "kv_heads", "dim")),
        *((name, c_float) for name in ("eps", "qk_eps", "scale")),
    )


class _View(ctypes.Structure):
    _fields_ = (
        ("tables", c_void_p),
        ("first_row", c_void_p),
        ("contexts", c_void_p),
        ("table_stride", c_int64),
        ("sequences", c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("sampled", c_void_p),
        ("every", _View),
        ("alone", _View),
        ("rows", c_int64),
        ("num_sampled", c_int64),
        ("block_size", c_int64),
        *((name, c_void_p) for name in ("residual", "h", "qkv", "mixed", "gated", "x")),
    )


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Whose keys each row of the attention sees; shapes as in StepInput."""

    block_tables: torch.Tensor
    first_rows: torch.Tensor
    context_lens: torch.Tensor

    def address(self) -> _View:
        """Return it as the kernels take it; this object has to live as long."""
        return _View(
            self.block_tables.data_ptr(),
            self.first_rows.data_ptr(),
            self.context_lens.data_ptr(),
            self.block_tables.stride(0),
            len(self.context_lens),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer; norms are weights [hidden] or, for q and k, [dim]; `gate_up` is a SwiGLU."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    qk_norms: tuple[torch.Tensor, torch.Tensor] | None
    qkv: PackedGemm
    output: PackedGemm
    gate_up: PackedGemm
    down: PackedGemm
    window: int | None


@dataclass(frozen=True, slots=True, eq=False)
class StackShape:
    """What all layers have in common: (Hq, Hkv, D), angles [positions, D], epsilons."""

    heads: tuple[int, int, int]
    angles: torch.Tensor
    final_norm: torch.Tensor
    eps: float
    qk_eps: float


class NativeDecoder:
    """The layers of one model, bound to the pools of one cache; keeps its buffers."""

    def __init__(
        self,
        native: NativeKernels,
        shape: StackShape,
        layers: list[LayerWeights],
        cache: KVCache,
    ) -> None:
        self._native = native
        self._cache = cache
        self._kept = (shape, layers)  # the structures hold bare addresses of these
        self._dtype = layers[0].input_norm.dtype
        q_heads, kv_heads, dim = shape.heads
        hidden, intermediate = layers[0].output.width, layers[0].gate_up.width
        self._widths = {
            "residual": hidden,
            "h": hidden,
            "qkv": (q_heads + 2 * kv_heads) * dim,
            "mixed": q_heads * dim,
            "gated": intermediate,
            "x": hidden,
        }
        self._buffers: dict[str, torch.Tensor] = {}
        self._array = (_Layer * len(layers))(
            *(_layer(layer, cache, number) for number, layer in enumerate(layers))
        )
        self._model = _Model(
            ctypes.addressof(self._array),
            shape.angles.data_ptr(),
            shape.final_norm.data_ptr(),
            len(layers),
            DTYPE_CODES[self._dtype],
            hidden,
            intermediate,
            q_heads,
            kv_heads,
            dim,
            shape.eps,
            shape.qk_eps,
            dim**-0.5,
        )

    def run(self, inp: StepInput, embedding: torch.Tensor, alone: View | None) -> torch.Tensor:
        """Return the normalised output rows [R, hidden], valid until the next call.

        `embedding`: [vocab, hidden]. With `alone` the rows are `inp.sample_rows`, which must be
        ascending, and `alone` is how they see their keys; without, they are all T rows.
        """
        rows = inp.num_tokens
        buffers = self._buffers_for(rows)
        torch.index_select(embedding, 0, inp.token_ids, out=buffers["residual"][:rows])
        every = View(inp.block_tables, inp.cu_q, inp.context_lens)
        sampled = inp.sample_rows if alone is not None else None
        step = _Step(
            inp.positions.data_ptr(),
            inp.slot_mapping.data_ptr(),
            sampled.data_ptr() if sampled is not None else None,
            every.address(),
            (alone or every).address(),
            rows,
            len(sampled) if sampled is not None else rows,
            inp.block_size,
            *(buffers[name].data_ptr() for name in self._widths),
        )
        error = self._native.functions["tg_decode"](
            ctypes.addressof(self._model), ctypes.addressof(step), self._native.threads
        )
        if error:
            raise MemoryError(f"no memory for {rows} packed rows")
        return buffers["h"][: len(sampled) if sampled is not None else rows]

    def _buffers_for(self, rows: int) -> dict[str, torch.Tensor]:
        if not self._buffers or self._buffers["h"].shape[0] < rows:
            self._buffers = {
                name: torch.empty((rows, width), dtype=self._dtype)
                for name, width in self._widths.items()
            }
        return self._buffers


def _layer(layer: LayerWeights, cache: KVCache, number: int) -> _Layer:
    q_norm, k_norm = layer.qk_norms if layer.qk_norms is not None else (None, None)
    return _Layer(
        layer.input_norm.data_ptr(),
        layer.post_norm.data_ptr(),
        q_norm.data_ptr() if q_norm is not None else None,
        k_norm.data_ptr() if k_norm is not None else None,
        *(_product(p) for p in (layer.qkv, layer.output, layer.gate_up, layer.down)),
        cache.keys[number].data_ptr(),
        cache.values[number].data_ptr(),
        layer.window or 0,
    )


def _product(product: PackedGemm) -> _Product:
    bias = product.bias
    return _Product(product.address, bias.data_ptr() if bias is not None else None)
