"""Swapped modules give the answers of the modules they replace, or are not swapped."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tiny_models import FAMILIES, random_model, tiny_config
from torch import nn

from engine.model.attention import TorchAttention
from engine.model.hf_model import HFModel
from engine.model.kernels.native import NativeKernels
from engine.model.linear import ONEDNN_MIN_WEIGHTS, OneDnnLinear, PlainLinear, optimise, pack_linear
from engine.model.self_check import expected_of, relative_error

GATED = {"llama", "qwen2", "qwen3", "mistral", "mistral-window", "granite", "olmo2", "smollm3"}


@pytest.fixture(scope="module")
def kernels(native: NativeKernels | None) -> NativeKernels:
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    return native


@pytest.mark.parametrize("family", FAMILIES)
def test_an_optimised_model_says_what_it_said_before(family: str, kernels: NativeKernels) -> None:
    """Every family, float32, to 1e-4; gated ones have their MLPs and norms swapped."""
    model = HFModel(random_model(tiny_config(family)))
    expected = expected_of(model)
    swaps = optimise(model.module, kernels)
    assert relative_error(model, expected, TorchAttention, block_size=8) < 1e-4
    kinds = {swap.split()[1] for swap in swaps}
    if family in GATED:
        assert kinds >= {"SwiGLU", "RMSNorm"}
    if family.startswith("gemma"):  # its norm multiplies by 1 + weight, its gate is a GELU
        assert not kinds & {"SwiGLU", "RMSNorm"}


def test_bfloat16_models_are_optimised_too(kernels: NativeKernels) -> None:
    model = HFModel(random_model(tiny_config("qwen3"), dtype=torch.bfloat16))
    expected = expected_of(model)
    assert {swap.split()[1] for swap in optimise(model.module, kernels)} >= {"SwiGLU", "RMSNorm"}
    assert relative_error(model, expected, TorchAttention, block_size=8) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_kernels_large_layers_are_packed_by_onednn(dtype: torch.dtype) -> None:
    """Below the threshold torch is faster, above it the packed layer has torch's results."""
    torch.manual_seed(0)
    small, large = (torch.randn(n, 1000).to(dtype) for n in (8, ONEDNN_MIN_WEIGHTS // 1000))
    assert isinstance(pack_linear(small, None, None), PlainLinear)
    packed = pack_linear(large, bias := torch.randn(large.shape[0]).to(dtype), None)
    if not isinstance(packed, OneDnnLinear):
        pytest.skip("this torch has no oneDNN")
    x = torch.randn(5, 1000).to(dtype)
    want = torch.nn.functional.linear(x.double(), large.double(), bias.double())
    torch.testing.assert_close(packed(x).double(), want, atol=0.3, rtol=1e-2)
    assert pack_linear(small, None, None)(x).shape == (5, 8)


def test_the_original_weights_are_freed(kernels: NativeKernels) -> None:
    """Packed beside unpacked would double the memory of a model."""
    module = nn.Sequential(nn.Linear(64, 640, bias=False)).requires_grad_(False)
    old = weakref.ref(module[0].weight)
    assert optimise(module, kernels) == ["1 Linear"]
    gc.collect()
    assert old() is None


def test_a_module_that_only_looks_like_a_norm_keeps_its_own_code(kernels: NativeKernels) -> None:
    """The name says RMSNorm, the arithmetic says otherwise: the check on random rows tells."""

    class StrangeRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(32), requires_grad=False)
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.abs().mean(-1, keepdim=True) * self.weight

    module = nn.Sequential(StrangeRMSNorm())
    assert optimise(module, kernels) == []
    assert isinstance(module[0], StrangeRMSNorm)


def test_half_precision_is_left_alone(kernels: NativeKernels) -> None:
    assert optimise(nn.Sequential(nn.Linear(8, 8)).half(), kernels) == []
