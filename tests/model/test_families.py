"""Packed, chunked, preempted answers equal transformers' own, family by family."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable

import pytest
import torch
from engine_run import generate, make_runner, random_setting, random_work, run
from tiny_models import FAMILIES, REFUSED, VOCAB, random_model, tiny_config

from engine.core.errors import ModelLoadError
from engine.model.attention import TorchAttention, select_attention
from engine.model.hf_model import HFModel, PagedModel
from engine.model.loader import verify
from engine.model.self_check import MakeAttention, expected_of, passes, relative_error

NUM_REQUESTS = 64


@pytest.fixture(params=["torch", "kernels"])
def make_attention(request: pytest.FixtureRequest) -> Callable[[PagedModel], MakeAttention]:
    """The reference, and whatever the loader would pick on this machine."""
    if request.param == "torch":
        return lambda model: TorchAttention
    native = request.getfixturevalue("native")
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    return lambda model: lambda cache: select_attention(cache, model.needs, native)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_transformers_own_token_for_token(
    family: str, make_attention: Callable[[PagedModel], MakeAttention]
) -> None:
    """64 requests, random chunk and block sizes, a pool for a tenth of them: equal in float32."""
    draw = random.Random(zlib.crc32(family.encode()))
    module = random_model(tiny_config(family))
    work = random_work(draw, VOCAB, NUM_REQUESTS, max_new=24)
    expected = generate(module, work)
    longest = max(len(prompt) + new for prompt, new in work)
    demand = sum(len(prompt) + new for prompt, new in work)
    model = HFModel(module)
    preempted = shared = 0
    for _ in range(2):
        setting = random_setting(draw, longest, demand)
        runner = make_runner(model, setting, make_attention(model))
        answers, snapshot = run(runner, work, setting.seed)
        assert answers == expected, setting
        preempted += snapshot.preemptions_total
        shared += snapshot.cached_tokens_total
    assert preempted > 0
    assert shared > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_no_further_from_the_truth_than_transformers_is(family: str) -> None:
    """Same 16-bit weights: truth is float32 arithmetic, and packing adds no error of its own."""
    half = random_model(tiny_config(family), dtype=torch.bfloat16)
    truth = expected_of(HFModel(copy.deepcopy(half).float()))
    model = HFModel(half)
    own = expected_of(model)
    theirs = _relative(own.logits, truth.logits)
    ours = relative_error(model, truth, TorchAttention, block_size=8)
    # A router that stands between two experts may fall either way in 16 bits.
    margin = 4.0 if "moe" in family or family == "mixtral" else 1.5
    assert ours <= margin * theirs + 1e-3
    assert passes(relative_error(model, own, TorchAttention, block_size=8), torch.bfloat16)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_would_be_silently_wrong_is_refused(family: str) -> None:
    """By the gate or by the comparison at load, in one short line."""
    module = random_model(tiny_config(family))
    with pytest.raises(ModelLoadError, match=r"^[^\n]{10,200}$"):
        verify(lambda: HFModel(module), block_size=8)


def _relative(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> float:
    difference = sum(float((g - w).square().sum()) for g, w in zip(got, want, strict=True))
    return (difference / sum(float(w.square().sum()) for w in want)) ** 0.5
