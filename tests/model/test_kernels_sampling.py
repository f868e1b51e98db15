"""The compiled draw equals the slow, sorted one of the sampler's own tests."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from sampler_reference import draw_at

from engine.core.request import SamplingParams
from engine.model.kernels.native import NativeKernels

BASE = SamplingParams(max_tokens=1)
NEAR = 1e-6  # float32 sums of the kernel against exact ones: u may fall on either side of a border


@pytest.fixture(scope="module")
def kernels(native: NativeKernels | None) -> NativeKernels:
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    return native


def _draw(
    kernels: NativeKernels, logits: torch.Tensor, orders: list[SamplingParams], at: list[float]
) -> tuple[list[int], list[float]]:
    width = logits.shape[1]
    tokens, logprobs = kernels.sample_rows(
        logits,
        torch.tensor([o.temperature for o in orders], dtype=torch.float64),
        torch.tensor([o.top_k or width for o in orders]),
        torch.tensor([o.top_p for o in orders], dtype=torch.float64),
        torch.tensor([o.min_p for o in orders], dtype=torch.float64),
        torch.tensor(at, dtype=torch.float64),
    )
    return tokens.tolist(), logprobs.tolist()


def _order(draw: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=1,
        temperature=draw.choice([0.05, 0.3, 0.7, 1.0, 1.6, 5.0]),
        top_k=draw.choice([0, 0, 1, 2, 7, 50, 400]),
        top_p=draw.choice([1.0, 1.0, 0.001, 0.3, 0.9, 0.99, 0.999999]),
        min_p=draw.choice([0.0, 0.0, 0.01, 0.2, 1.0]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 6.0, 60.0])
def test_every_draw_is_the_sorted_draw(
    kernels: NativeKernels, dtype: torch.dtype, spread: float
) -> None:
    """Flat and peaked rows, ties, any filters, random numbers up to the ends of their range."""
    draw = random.Random(int(spread * 10) + dtype.itemsize)
    for width in (1, 5, 64, 333, 2000):
        torch.manual_seed(width)
        logits = (torch.randn(40, width) * spread).to(dtype)
        if width > 5:
            logits[0, 3:] = -math.inf
            logits[1:, ::7] = logits[1:, :1]  # ties
        orders = [_order(draw) for _ in range(40)]
        at = [draw.choice([2 * NEAR, 1 - 2 * NEAR, *[draw.random()] * 4]) for _ in range(40)]
        tokens, _ = _draw(kernels, logits, orders, at)
        for row, order, u, token in zip(logits.float().numpy(), orders, at, tokens, strict=True):
            ends = (u, u - NEAR, u + NEAR)
            assert token in {draw_at(row, order, end) for end in ends}, (order, u)


def test_a_large_flat_vocabulary_is_drawn_from_as_it_should(kernels: NativeKernels) -> None:
    """151,936 tokens whose nucleus has tens of thousands: positions spread evenly over the mass."""
    torch.manual_seed(1)
    row = torch.randn(1, 151_936)
    at = [(i + 0.5) / 64 for i in range(64)]
    order = SamplingParams(max_tokens=1, top_p=0.9)
    tokens, _ = _draw(kernels, row.expand(64, -1), [order] * 64, at)
    assert tokens == [draw_at(row[0].numpy(), order, u) for u in at]


@pytest.mark.parametrize("top_k", [0, 400])
def test_the_ends_of_the_random_numbers_give_tokens_that_can_occur(
    kernels: NativeKernels, top_k: int
) -> None:
    """u = 0 and the largest u below 1 never land on a token of weight 0."""
    logits = torch.full((2, 1000), -math.inf)
    logits[:, 500:520] = torch.randn(20)
    order = SamplingParams(max_tokens=1, top_k=top_k)
    tokens, _ = _draw(kernels, logits, [order] * 2, [0.0, 1.0 - 2.0**-53])
    assert all(500 <= token < 520 for token in tokens)


def test_logprobs_are_those_of_the_unchanged_model(kernels: NativeKernels) -> None:
    """Temperature 1 and no filters, whatever the draw was done with."""
    logits = torch.randn(8, 1000) * 4
    order = SamplingParams(max_tokens=1, temperature=0.5, top_k=20)
    tokens, logprobs = _draw(kernels, logits, [order] * 8, [0.1 * i for i in range(8)])
    want = logits.double().log_softmax(-1)[torch.arange(8), tokens]
    np.testing.assert_allclose(logprobs, want.numpy(), atol=1e-5)


def test_rows_that_cannot_be_drawn_from_give_no_token(kernels: NativeKernels) -> None:
    logits = torch.zeros(4, 50)
    logits[0, 7] = math.nan
    logits[1, 49] = math.inf
    logits[2] = -math.inf
    tokens, logprobs = _draw(kernels, logits, [BASE] * 4, [0.5] * 4)
    assert tokens[:3] == [-1, -1, -1]
    assert all(math.isnan(value) for value in logprobs[:3])
    assert tokens[3] == 25
    assert logprobs[3] == pytest.approx(-math.log(50))
