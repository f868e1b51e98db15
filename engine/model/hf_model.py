"""Any transformers decoder on paged attention, gated when built; it knows no file and no batch.

Transformers calls a registered attention function in place of its own
(https://huggingface.co/docs/transformers/attention_interface); a name without a mask function makes
it build no mask. One forward of shape [1, T] then serves prompt chunks and decodes of all sequences
together, and `logits_to_keep` lets only the rows to sample reach the output layer. What a family
asks of its attention is seen in one probing forward, because configs do not tell it reliably.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from engine.core.errors import ModelLoadError
from engine.model.attention import AttentionNeeds, PagedAttention
from engine.model.hidden_tap import HiddenTap
from engine.model.kv_cache import KVShape
from engine.model.step_input import StepInput

ATTENTION_NAME = "tiergate_paged"
REFERENCE_ATTENTION = "eager"  # the one implementation that every family has
_CONTEXT = "_tiergate_context"
# Arguments that change nothing here: dropout is off, positions are already in q and k.
_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "output_attentions", "is_causal"})
DEFAULT_MAX_MODEL_LEN = 2048  # for models without a limit of their own


class PagedModel(Protocol):
    """What the runner needs of a model, whoever computes it."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens that one sequence may reach."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        ...

    @property
    def kv_shape(self) -> tuple[int, int]:
        """KV heads and head size."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, activations and cache."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def needs(self) -> AttentionNeeds:
        """What it asks of its attention."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden states."""
        ...

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states [R, hidden_size] behind the logits that `step` returned last.

        As the output layer saw them, after the last norm; they are good until the next step.
        """
        ...

    def bind(self, attention: PagedAttention) -> None:
        """Use this attention and its pools from now on."""
        ...

    def step(self, inp: StepInput) -> torch.Tensor:
        """Return the logits [R, vocab_size] of `inp.sample_rows`, in the model's dtype or float32.

        Writes the keys and values of all T tokens. `bind` comes first.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    """What one layer asked of the attention function."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    softcap: float | None


class _Context:
    """What the attention function of one model works with; hung on each of its attention modules.

    While `calls` is a list, calls are recorded and answered by plain causal attention.
    """

    __slots__ = ("attention", "calls")

    def __init__(self) -> None:
        self.attention: PagedAttention | None = None
        self.calls: list[_Call] | None = None


def _attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls: query [1, Hq, T, D], key and value [1, Hkv, T, D].

    Returns [1, T, Hq, D].
    """
    context: _Context | None = module.__dict__.get(_CONTEXT)
    if context is None:
        raise ModelLoadError(f"{type(module).__name__} calls attention without a layer index")
    scale = scaling if scaling is not None else float(query.shape[-1] ** -0.5)
    if context.calls is not None:
        _refuse_unknown(module, attention_mask, kwargs)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        call = _Call(
            layer=layer,
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            head_dim=query.shape[3],
            value_dim=value.shape[3],
            window=sliding_window,
            softcap=softcap,
        )
        context.calls.append(call)
        group = call.num_heads != call.num_kv_heads
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=group
        )
        return out.transpose(1, 2), None
    attention = context.attention
    assert attention is not None, "bind() comes before the first step"
    layer = module.layer_idx  # type: ignore[assignment]
    attention.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    out = attention.attend(layer, query[0].transpose(0, 1), scale, sliding_window, softcap)
    return out[None], None


def _refuse_unknown(
    module: torch.nn.Module, mask: torch.Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Raise ModelLoadError if the layer asks for something that paged attention would drop."""
    if mask is not None:
        raise ModelLoadError(f"{type(module).__name__} brings an attention mask of its own")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ModelLoadError(f"{type(module).__name__} is not causal")
    for name, value in kwargs.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise ModelLoadError(
                f"{type(module).__name__} needs `{name}` in its attention, which is not supported"
            )


class HFModel:
    """A transformers causal language model that reads and writes paged pools.

    Raises ModelLoadError, one line, for a family that would be silently wrong: its own attention
    code (falcon, bloom), state beside the KV cache (mamba), masks or biases that never reach the
    attention function.
    """

    def __init__(self, model: Any, max_model_len: int | None = None) -> None:
        self._model = model.eval()
        self._family = str(model.config.model_type)
        self._config = model.config.get_text_config()
        self._context = _Context()
        self._forward_names = frozenset(inspect.signature(model.forward).parameters)
        self._gate()
        self._tap = HiddenTap(model)
        AttentionInterface.register(ATTENTION_NAME, _attention_forward)
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.__dict__[_CONTEXT] = self._context
        self._needs, self._vocab_size = self._probe()
        self._max_model_len = self._limit(max_model_len)

    @property
    def module(self) -> Any:
        """The transformers model; its weights are shared, not copied."""
        return self._model

    @property
    def config(self) -> Any:
        """The text part of the transformers config."""
        return self._config

    @property
    def family(self) -> str:
        """The config's model_type."""
        return self._family

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
        return len(self._needs.windows)

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
        """Where it computes."""
        return torch.device(self._model.device)

    @property
    def needs(self) -> AttentionNeeds:
        """What it asks of its attention."""
        return self._needs

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden states: what the output layer takes."""
        return int(self._tap.states.shape[-1])

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states [R, hidden_size] behind the last logits."""
        return self._tap.states

    def bind(self, attention: PagedAttention) -> None:
        """Use this attention and its pools from now on."""
        assert attention.kv_cache.shape == kv_shape_of(self._needs)
        self._context.attention = attention

    @torch.inference_mode()
    def step(self, inp: StepInput) -> torch.Tensor:
        """Return the logits [R, vocab_size] of `inp.sample_rows`; writes all T tokens' KV."""
        attention = self._context.attention
        assert attention is not None, "bind() comes before the first step"
        attention.begin(inp)
        return self._forward(inp.token_ids, inp.positions, inp.sample_rows)

    @torch.inference_mode()
    def reference_logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return transformers' own logits [len(token_ids), vocab_size] without paging."""
        self._model.set_attn_implementation(REFERENCE_ATTENTION)
        try:
            ids = torch.tensor([token_ids], device=self.device)
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._model.set_attn_implementation(ATTENTION_NAME)
        return logits

    def _forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        call = {"input_ids": token_ids[None], "position_ids": positions[None], "use_cache": False}
        if "logits_to_keep" in self._forward_names:
            logits: torch.Tensor = self._model(**call, logits_to_keep=rows).logits[0]
            return logits
        every: torch.Tensor = self._model(**call).logits[0]
        self._tap.choose(rows)
        return every[rows]

    def _gate(self) -> None:
        """Refuse what can be refused without running anything."""
        if self._model.config.is_encoder_decoder:
            raise ModelLoadError(f"{self._family} is an encoder-decoder, not a decoder")
        if getattr(self._model, "_is_stateful", False):
            raise ModelLoadError(f"{self._family} keeps a state that blocks of keys cannot hold")
        if not self._model._can_set_attn_implementation():
            raise ModelLoadError(
                f"{self._family} computes attention in its own code, so it cannot be paged"
            )
        if "position_ids" not in self._forward_names:
            raise ModelLoadError(f"{self._family} takes no position_ids, so it cannot be packed")

    @torch.inference_mode()
    def _probe(self) -> tuple[AttentionNeeds, int]:
        """Run two tokens and return what the layers asked for, and the width of the logits."""
        self._model.set_attn_implementation(ATTENTION_NAME)
        two = torch.arange(2, device=self.device)
        self._context.calls = []
        try:
            logits = self._forward(two, two, two[1:])
            calls = self._context.calls
        finally:
            self._context.calls = None
        layers = int(self._config.num_hidden_layers)
        if [call.layer for call in calls] != list(range(layers)):
            raise ModelLoadError(
                f"{self._family} keeps state outside paged attention: {len(calls)} attention calls"
                f" in {layers} layers"
            )
        kinds = {(c.num_heads, c.num_kv_heads, c.head_dim, c.value_dim, c.softcap) for c in calls}
        if len(kinds) != 1 or calls[0].head_dim != calls[0].value_dim:
            raise ModelLoadError(f"{self._family} has layers or keys and values of unequal shapes")
        needs = AttentionNeeds(
            num_heads=calls[0].num_heads,
            num_kv_heads=calls[0].num_kv_heads,
            head_dim=calls[0].head_dim,
            windows=tuple(call.window for call in calls),
            softcap=calls[0].softcap,
            dtype=self._model.dtype,
        )
        return needs, int(logits.shape[-1])

    def _limit(self, wanted: int | None) -> int:
        """Return the context length up to which the family is computed exactly.

        Two things that a config may ask for never reach the attention function: windows or chunks
        that live only in transformers' masks, and rotary factors that change with the longest
        sequence of the batch. Up to their own length both change nothing.
        """
        limit = getattr(self._config, "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
        exact = min([int(limit), *self._mask_only_windows(), *self._rope_limits()])
        if wanted is not None and wanted > exact:
            raise ModelLoadError(
                f"--max-model-len {wanted} is more than {self._family} allows here ({exact})"
            )
        return wanted if wanted is not None else exact

    def _mask_only_windows(self) -> list[int]:
        """Return windows named by the config that the layers did not pass to attention."""
        kinds = getattr(self._config, "layer_types", None)
        window = getattr(self._config, "sliding_window", None)
        chunk = getattr(self._config, "attention_chunk_size", None)
        if kinds is None:
            uses = getattr(self._config, "use_sliding_window", True)
            return [int(window)] if window and uses and not any(self._needs.windows) else []
        lengths: list[int] = []
        for kind, passed in zip(kinds, self._needs.windows, strict=False):
            if kind == "sliding_attention" and passed is None and window:
                lengths.append(int(window))
            elif kind == "chunked_attention" and chunk:
                lengths.append(int(chunk))
            elif kind == "full_attention" and passed is not None:
                raise ModelLoadError(f"{self._family} passes a window on a full-attention layer")
        return lengths

    def _rope_limits(self) -> list[int]:
        """Return the lengths beyond which rotary factors depend on the rest of the batch."""
        rope = getattr(self._config, "rope_parameters", None) or {}
        nested = [value for value in rope.values() if isinstance(value, dict)]
        return [
            int(one["original_max_position_embeddings"])
            for one in (nested or [rope])
            if one.get("rope_type") == "longrope" and "original_max_position_embeddings" in one
        ]


def kv_shape_of(needs: AttentionNeeds) -> KVShape:
    """Return the cache that these needs fill."""
    return KVShape(
        num_layers=len(needs.windows),
        num_kv_heads=needs.num_kv_heads,
        head_dim=needs.head_dim,
        dtype=needs.dtype,
    )
