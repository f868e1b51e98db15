"""Llama, Mistral, Qwen2 and Qwen3 on a CPU, without modules; the same numbers as HFModel.

A decode step of a small model spends most of its time between transformers' modules. Here a layer
is four packed products and four kernels; where the products are our own, all layers are one call,
and where they are oneDNN's, Python goes from kernel to kernel. Weights, rotary factors and windows
are taken from a loaded HFModel, which is empty afterwards; the loader compares both before anyone
is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.core.errors import ModelLoadError
from engine.model.attention import AttentionNeeds, PagedAttention
from engine.model.hf_model import HFModel, kv_shape_of
from engine.model.kernels.native import DTYPE_CODES, MAX_HEAD_DIM, NativeKernels, PackedGemm
from engine.model.kernels.native_decoder import LayerWeights, NativeDecoder, StackShape, View
from engine.model.kv_cache import KVCache
from engine.model.linear import Linear, pack_linear, pack_swiglu
from engine.model.step_input import StepInput

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Rotary factors that depend on the position alone, so that a table holds them.
_ROPE_TYPES = frozenset({"default", "linear", "yarn", "llama3"})
_ANGLE_ROWS = 4096  # positions computed at once


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One decoder layer; norms are weights [hidden_size] or, for q and k, [head_dim]."""

    input_norm: torch.Tensor
    qkv: Linear
    qk_norms: tuple[torch.Tensor, torch.Tensor, float] | None
    output: Linear
    post_norm: torch.Tensor
    swiglu: Linear
    down: Linear
    window: int | None


class LeanModel:
    """A PagedModel (see engine.model.hf_model) of a family whose layers are known by heart."""

    def __init__(self, model: HFModel, native: NativeKernels) -> None:
        """Take the weights out of `model`, which cannot be used any more; `supports` comes first.

        Raises ModelLoadError if the modules are not what the family's config says.
        """
        assert LeanModel.supports(model), f"{model.family} is not for LeanModel"
        self._native = native
        self._needs = model.needs
        self._vocab_size, self._max_model_len = model.vocab_size, model.max_model_len
        needs = self._needs
        self._heads = (needs.num_heads, needs.num_kv_heads, needs.head_dim)
        self._scale = float(needs.head_dim**-0.5)
        self._cache: KVCache | None = None
        self._decoder: NativeDecoder | None = None
        self._hidden: torch.Tensor | None = None
        try:
            with torch.inference_mode():
                self._take(model.module)
        except AttributeError as error:
            raise ModelLoadError(f"{model.family} has no {error.name} where it belongs") from error

    @staticmethod
    def supports(model: HFModel) -> bool:
        """True for the families, types and sizes that this file computes."""
        config, needs = model.config, model.needs
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            model.family in FAMILIES
            and model.device.type == "cpu"
            and needs.dtype in DTYPE_CODES
            and needs.softcap is None
            and needs.head_dim % 16 == 0
            and needs.head_dim <= MAX_HEAD_DIM
            and config.hidden_act == "silu"
            and rope.get("rope_type", "default") in _ROPE_TYPES
            and float(rope.get("partial_rotary_factor", 1.0)) == 1.0
        )

    def _take(self, module: Any) -> None:
        body = module.model
        self._embedding = body.embed_tokens.weight.detach()
        self._eps = float(body.norm.variance_epsilon)
        self._final_norm = body.norm.weight.detach()
        self._angles = _angle_table(body.rotary_emb, self._max_model_len, self._heads[2])
        self._layers: list[_Layer] = []
        for layer, window in zip(body.layers, self._needs.windows, strict=True):
            self._layers.append(_take_layer(layer, window, self._native))
        self._head = pack_linear(module.lm_head.weight, module.lm_head.bias, self._native)
        module.lm_head = nn.Identity()

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def max_model_len(self) -> int:
        """Tokens that one sequence may reach."""
        return self._max_model_len

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        return len(self._layers)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """KV heads and head size."""
        return self._needs.num_kv_heads, self._needs.head_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, activations and cache."""
        return self._needs.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes: always a CPU."""
        return torch.device("cpu")

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden states."""
        return len(self._final_norm)

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states [R, hidden_size] behind the last logits."""
        assert self._hidden is not None, "a step comes first"
        return self._hidden

    @property
    def needs(self) -> AttentionNeeds:
        """What it asks of its cache."""
        return self._needs

    def bind(self, attention: PagedAttention) -> None:
        """Use this attention's pools from now on; the kernels are this model's own."""
        assert attention.kv_cache.shape == kv_shape_of(self._needs)
        self._cache = attention.kv_cache
        weights = [_native_weights(layer) for layer in self._layers]
        native_weights = [layer for layer in weights if layer is not None]
        self._decoder = None
        if len(native_weights) == len(weights):
            norms = self._layers[0].qk_norms
            qk_eps = norms[2] if norms is not None else 0.0
            shape = StackShape(self._heads, self._angles, self._final_norm, self._eps, qk_eps)
            self._decoder = NativeDecoder(self._native, shape, native_weights, self._cache)

    @torch.inference_mode()
    def step(self, inp: StepInput) -> torch.Tensor:
        """Return the logits [R, vocab_size] of `inp.sample_rows`; writes all T tokens' KV."""
        assert self._cache is not None, "bind() comes before the first step"
        if self._decoder is None or not _ascend(inp.sample_rows):
            return self._step_by_layers(inp, self._cache)
        alone = _rows_alone(inp) if len(inp.sample_rows) < inp.num_tokens else None
        return self._logits(self._decoder.run(inp, self._embedding, alone))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self._hidden = hidden
        logits: torch.Tensor = self._head(hidden)
        return logits

    def _step_by_layers(self, inp: StepInput, cache: KVCache) -> torch.Tensor:
        native = self._native
        view = View(inp.block_tables, inp.cu_q, inp.context_lens)
        residual = self._embedding.index_select(0, inp.token_ids)
        x: torch.Tensor | None = None
        for number, layer in enumerate(self._layers):
            if x is None:
                h = native.rms_norm(residual, layer.input_norm, self._eps)
            else:
                h = native.rms_norm(x, layer.input_norm, self._eps, residual)
            qkv = layer.qkv(h)
            keys, values = cache.keys[number], cache.values[number]
            native.rope_write(
                qkv,
                self._heads,
                self._angles,
                inp.positions,
                inp.slot_mapping,
                keys,
                values,
                layer.qk_norms,
            )
            if number == len(self._layers) - 1:
                # Nobody reads the last layer's other rows: only their keys and values count.
                view = _rows_alone(inp)
                qkv = qkv.index_select(0, inp.sample_rows)
                residual = residual.index_select(0, inp.sample_rows)
            x = layer.output(self._attend(qkv, keys, values, view, layer.window, inp.block_size))
            h = native.rms_norm(x, layer.post_norm, self._eps, residual)
            x = layer.down(layer.swiglu(h))
        assert x is not None, "a model has layers"
        return self._logits(native.rms_norm(x, self._final_norm, self._eps, residual))

    def _attend(
        self,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        view: View,
        window: int | None,
        block_size: int,
    ) -> torch.Tensor:
        num_heads, _, dim = self._heads
        q = qkv[:, : num_heads * dim].view(-1, num_heads, dim)
        out = self._native.paged_attention(
            q,
            keys,
            values,
            view.block_tables,
            view.first_rows,
            view.context_lens,
            block_size,
            self._scale,
            window=window,
        )
        return out.flatten(1)


def _take_layer(layer: Any, window: int | None, native: NativeKernels) -> _Layer:
    """Return the layer with packed weights; its linear modules are dropped as they are taken."""
    attention, mlp = layer.self_attn, layer.mlp
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    biases = [part.bias for part in parts]
    bias = torch.cat(biases) if biases[0] is not None else None
    qkv = pack_linear(torch.cat([part.weight for part in parts]), bias, native)
    output = pack_linear(attention.o_proj.weight, attention.o_proj.bias, native)
    swiglu = pack_swiglu(mlp.gate_proj, mlp.up_proj, native)
    down = pack_linear(mlp.down_proj.weight, mlp.down_proj.bias, native)
    norms = None
    if hasattr(attention, "q_norm"):
        q_norm, k_norm = attention.q_norm, attention.k_norm
        norms = (q_norm.weight.detach(), k_norm.weight.detach(), float(q_norm.variance_epsilon))
    taken = _Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=qkv,
        qk_norms=norms,
        output=output,
        post_norm=layer.post_attention_layernorm.weight.detach(),
        swiglu=swiglu,
        down=down,
        window=window,
    )
    layer.self_attn, layer.mlp = nn.Identity(), nn.Identity()
    return taken


def _native_weights(layer: _Layer) -> LayerWeights | None:
    """Return the layer for NativeDecoder, None if one of its products is not our own."""
    qkv, output, swiglu, down = layer.qkv, layer.output, layer.swiglu, layer.down
    if not (
        isinstance(qkv, PackedGemm)
        and isinstance(output, PackedGemm)
        and isinstance(swiglu, PackedGemm)
        and isinstance(down, PackedGemm)
    ):
        return None
    norms = layer.qk_norms[:2] if layer.qk_norms is not None else None
    return LayerWeights(
        layer.input_norm, layer.post_norm, norms, qkv, output, swiglu, down, layer.window
    )


def _ascend(rows: torch.Tensor) -> bool:
    """True if every row comes after the one before it, as the runner's sample rows do."""
    return bool((rows[1:] > rows[:-1]).all())


def _angle_table(rotary: Any, positions: int, dim: int) -> torch.Tensor:
    """Return [positions, dim] float32: per position dim/2 cosines, then dim/2 sines, scaled."""
    table = torch.empty((positions, dim), dtype=torch.float32)
    like = torch.empty(0, dtype=torch.float32)
    for first in range(0, positions, _ANGLE_ROWS):
        last = min(first + _ANGLE_ROWS, positions)
        cosine, sine = rotary(like, torch.arange(first, last)[None])
        table[first:last, : dim // 2] = cosine[0, :, : dim // 2]
        table[first:last, dim // 2 :] = sine[0, :, : dim // 2]
    return table


def _rows_alone(inp: StepInput) -> View:
    """Return the sample rows as if each were a chunk of its own."""
    rows = inp.sample_rows
    chunks = torch.searchsorted(inp.cu_q, rows.to(torch.int32), right=True) - 1
    after = inp.cu_q[chunks + 1] - 1 - rows  # rows of the same chunk that come later
    return View(
        block_tables=inp.block_tables.index_select(0, chunks),
        first_rows=torch.arange(len(rows) + 1, dtype=torch.int32),
        context_lens=(inp.context_lens[chunks] - after).to(torch.int32),
    )
