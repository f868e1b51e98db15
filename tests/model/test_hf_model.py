"""What a family asks of its attention is found by running it; what cannot be kept is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import MAX_LEN, VOCAB, random_model, tiny_config
from transformers import LlamaForCausalLM

from engine.core.errors import ModelLoadError
from engine.model.attention import TorchAttention
from engine.model.hf_model import HFModel
from engine.model.self_check import expected_of, passes, relative_error


def build(family: str, **changes: Any) -> HFModel:
    return HFModel(random_model(tiny_config(family, **changes)))


def test_shapes_come_from_the_layers_themselves() -> None:
    model = build("gemma2")
    assert model.num_layers == 2
    assert model.kv_shape == (2, 16)
    assert model.needs.num_heads == 4
    assert model.needs.windows == (12, None)
    assert model.needs.softcap == 50.0
    assert (model.vocab_size, model.max_model_len) == (VOCAB, MAX_LEN)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")


def test_heads_without_groups_and_learned_positions_are_seen_too() -> None:
    assert build("gpt2").kv_shape == (4, 16)
    assert build("opt").kv_shape == (4, 16)


def test_the_reference_is_untouched_by_paging() -> None:
    """reference_logits equals a model that never heard of paging, before and after steps."""
    plain = random_model(tiny_config("llama"))
    ids = list(range(3, 40))
    with torch.inference_mode():
        want = plain(torch.tensor([ids]), use_cache=False).logits[0]
    model = HFModel(random_model(tiny_config("llama")))
    torch.testing.assert_close(model.reference_logits(ids), want, atol=1e-5, rtol=1e-4)
    relative_error(model, expected_of(model), TorchAttention, 8)
    torch.testing.assert_close(model.reference_logits(ids), want, atol=1e-5, rtol=1e-4)


def test_two_models_in_one_process_do_not_meet() -> None:
    """Each keeps its own attention, though both run through one registered function."""
    one, two = build("llama"), build("gemma2")
    wanted = [expected_of(model) for model in (one, two)]
    for _ in range(2):
        for model, expected in zip((one, two), wanted, strict=True):
            assert passes(relative_error(model, expected, TorchAttention, 4), torch.float32)


def test_a_window_known_only_to_the_mask_shortens_the_context() -> None:
    """qwen2-moe masks a window that it never passes on: exact only while nothing is beyond it."""
    layers = ["sliding_attention", "full_attention"]
    changes = {"sliding_window": 24, "use_sliding_window": True, "layer_types": layers}
    model = build("qwen2_moe", **changes)
    assert model.needs.windows == (None, None)
    assert model.max_model_len == 24


def test_rotary_factors_that_follow_the_longest_sequence_shorten_the_context() -> None:
    """longrope switches factors by the longest sequence of the batch, whoever that is."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    assert (
        build("phi3", rope_parameters=rope, original_max_position_embeddings=64).max_model_len == 64
    )


def test_more_context_than_the_model_has_is_refused() -> None:
    module = random_model(tiny_config("llama"))
    assert HFModel(module, max_model_len=100).max_model_len == 100
    with pytest.raises(ModelLoadError, match=r"257 is more than llama allows here \(256\)"):
        HFModel(module, max_model_len=257)


def test_an_attention_that_is_not_causal_is_refused() -> None:
    module = random_model(tiny_config("llama"))
    module.model.layers[1].self_attn.is_causal = False
    with pytest.raises(ModelLoadError, match="is not causal"):
        HFModel(module)


def test_a_layer_that_does_not_call_attention_is_refused() -> None:
    """Two layers that share one call: the count of calls tells."""
    module = random_model(tiny_config("llama"))
    module.model.layers[1].self_attn.layer_idx = 0
    with pytest.raises(ModelLoadError, match="outside paged attention"):
        HFModel(module)


def test_wrong_weights_in_one_layer_do_not_pass_the_comparison() -> None:
    """The comparison at load sees an error in a single small matrix."""
    model = build("llama")
    expected = expected_of(model)
    module: LlamaForCausalLM = model.module
    with torch.no_grad():
        module.model.layers[1].self_attn.v_proj.weight[0] *= 1.2
    assert not passes(relative_error(model, expected, TorchAttention, 8), torch.float32)
    assert not passes(float("nan"), torch.bfloat16)
