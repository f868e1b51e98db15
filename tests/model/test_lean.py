"""LeanModel computes what transformers computes, for its four families, and refuses the others."""

from __future__ import annotations

import dataclasses
import random
import zlib
from typing import Any

import pytest
import torch
from engine_run import generate, make_runner, random_setting, random_work, run
from tiny_models import FAMILIES, VOCAB, random_model, tiny_config
from torch import nn

from engine.core.batch import Batch, Chunk
from engine.core.errors import ModelLoadError
from engine.core.request import SamplingParams
from engine.model import linear
from engine.model.attention import TorchAttention
from engine.model.hf_model import HFModel, kv_shape_of
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.lean_model import LeanModel
from engine.model.self_check import expected_of, relative_error
from engine.model.step_input import StepInputBuilder

LEAN = ("llama", "qwen2", "qwen3", "mistral", "mistral-window")
# Rotary scalings whose factors depend on the position alone.
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.fixture(params=["ours", "oneDNN"])
def kernels(
    native: NativeKernels | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> NativeKernels:
    """Both ways through the layers: one call with our own products, and oneDNN's layer by layer."""
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    if request.param == "oneDNN":
        monkeypatch.setattr(linear, "ONEDNN_MIN_WEIGHTS", 0)
        monkeypatch.setattr(native, "_gemm_dtypes", frozenset())
    return native


@pytest.mark.parametrize("family", LEAN)
def test_greedy_answers_are_transformers_own_token_for_token(
    family: str, kernels: NativeKernels
) -> None:
    """48 requests in random chunks over a pool for a tenth of them: equal in float32."""
    draw = random.Random(zlib.crc32(family.encode()))
    module = random_model(tiny_config(family))
    work = random_work(draw, VOCAB, 48, max_new=24)
    expected = generate(module, work)
    demand = sum(len(prompt) + new for prompt, new in work)
    setting = random_setting(draw, max(len(prompt) + new for prompt, new in work), demand)
    runner = make_runner(LeanModel(HFModel(module), kernels), setting)
    answers, snapshot = run(runner, work, setting.seed)
    assert answers == expected, setting
    assert snapshot.preemptions_total > 0


@pytest.mark.parametrize("family", LEAN)
def test_logits_are_transformers_own(family: str, kernels: NativeKernels) -> None:
    """The loader's comparison gives rounding errors only: 1e-5 in float32, as HFModel's in 16."""
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        model = HFModel(random_model(tiny_config(family), dtype=dtype))
        expected = expected_of(model)
        lean = LeanModel(model, kernels)
        assert relative_error(lean, expected, TorchAttention, block_size=8) < most


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_rotary_embeddings_are_transformers_own(
    scaling: str, kernels: NativeKernels
) -> None:
    rope = {"rope_type": scaling, "rope_theta": 10000.0, **SCALINGS[scaling]}
    model = HFModel(random_model(tiny_config("llama", rope_parameters=rope)))
    expected = expected_of(model)
    lean = LeanModel(model, kernels)
    assert relative_error(lean, expected, TorchAttention, block_size=16) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {
            "hidden_size": 80,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 48,
        },
        {"hidden_size": 72, "head_dim": 16, "intermediate_size": 100},
        {"tie_word_embeddings": True},
        {"num_hidden_layers": 1},
    ],
)
def test_unusual_sizes_are_computed_as_well(
    changes: dict[str, Any], kernels: NativeKernels
) -> None:
    """Biases, odd widths, one KV head or as many as heads, one layer, tied embeddings."""
    model = HFModel(random_model(tiny_config("llama", **changes)))
    expected = expected_of(model)
    lean = LeanModel(model, kernels)
    assert relative_error(lean, expected, TorchAttention, block_size=8) < 1e-5


def test_any_rows_of_a_prompt_may_be_asked_for(kernels: NativeKernels) -> None:
    """None, some in any order, or all rows of a chunk have the logits of a full forward."""
    model = HFModel(random_model(tiny_config("qwen2")))
    ids = list(range(5, 35))
    expected = model.reference_logits(ids)
    lean = LeanModel(model, kernels)
    cache = KVCache(kv_shape_of(lean.needs), 4, 8, lean.device)
    lean.bind(TorchAttention(cache))
    chunk = Chunk("a", 0, tuple(ids), (1, 2, 3, 4), SamplingParams(max_tokens=1))
    step = StepInputBuilder(8, lean.device).build(Batch(0, (chunk,)))
    for picked in ([29, 3, 17, 0], [0, 3, 17, 29], [29], [], list(range(30))):
        rows = torch.tensor(picked, dtype=torch.int64)
        logits = lean.step(dataclasses.replace(step, sample_rows=rows))
        torch.testing.assert_close(logits, expected[rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(LEAN)))
def test_other_families_are_left_to_the_generic_model(family: str) -> None:
    assert not LeanModel.supports(HFModel(random_model(tiny_config(family))))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"head_dim": 24},
    ],
)
def test_what_the_kernels_cannot_do_is_left_to_the_generic_model(changes: dict[str, Any]) -> None:
    assert not LeanModel.supports(HFModel(random_model(tiny_config("llama", **changes))))


def test_a_model_without_the_family_s_parts_is_refused_in_one_line(kernels: NativeKernels) -> None:
    model = HFModel(random_model(tiny_config("llama")))
    model.module.model.layers[1].mlp = nn.Identity()
    with pytest.raises(ModelLoadError, match="gate_proj"):
        LeanModel(model, kernels)
