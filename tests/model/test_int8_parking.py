"""What int8 does to answers stays within the stated bounds (law L32); raw does nothing.

The bounds are those published in benchmarks/results/swap_int8.json, with room for other machines.
Tiny models are initialised as transformers does; with weights drawn wide, so that nearly every
token depends on all of the past and many are nearly tied, agreement is lower, and stated as well.
"""

from __future__ import annotations

import random

import pytest
import torch
from int8_run import Divergence, divergence
from tiny_models import VOCAB, random_model, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.model.attention import PagedAttention, select_attention
from engine.model.hf_model import HFModel
from engine.model.host_cache import HostFormat
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.loader import load_runner

RAW, INT8 = HostFormat("raw", 16), HostFormat("int8", 16)
FAMILIES = ("llama", "qwen2", "opt")
TOPICS = (
    "paged attention",
    "continuous batching",
    "a scheduler",
    "the KV cache",
    "tail latency",
    "a rate limit",
    "chunked prefill",
    "fairness",
)


def measured(
    family: str, form: HostFormat, native: NativeKernels | None, *, wide: bool = False
) -> Divergence:
    draw = random.Random(1)
    torch.manual_seed(1)
    config = tiny_config(family)
    module = random_model(config, 1) if wide else AutoModelForCausalLM.from_config(config).eval()
    prompts = [[draw.randrange(3, VOCAB) for _ in range(draw.randint(20, 90))] for _ in range(16)]
    return divergence(HFModel(module), prompts, 48, form, every=None, seed=1, native=native)


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_moves_no_logit(family: str, native: NativeKernels | None) -> None:
    """Byte for byte there, byte for byte back: the very logits, however wide the weights."""
    found = measured(family, RAW, native, wide=True)
    assert found.parks == 16
    assert found.logit_error == 0.0
    assert found.agreeing == found.positions == found.free_agreeing


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_agrees_in_99_of_100_greedy_tokens(family: str, native: NativeKernels | None) -> None:
    found = measured(family, INT8, native)
    assert found.positions > 200
    assert 0 < found.logit_error < 0.005
    assert found.agreement >= 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_wide_weights_are_the_worst_case_that_is_stated(
    family: str, native: NativeKernels | None
) -> None:
    found = measured(family, INT8, native, wide=True)
    assert found.logit_error < 0.02
    assert found.agreement >= 0.95


def test_the_builtin_model_agrees_in_99_of_100_greedy_tokens(
    native: NativeKernels | None,
) -> None:
    """Questions, answers parked at random moments; float32, so that what differs is int8's doing
    and not the rounding of 16-bit arithmetic, which flips as many tokens by itself.
    """
    runner = load_runner("builtin", "cpu", "float32", kv_cache_bytes=64 << 20, host_kv_bytes=0)
    tokenizer = AutoTokenizer.from_pretrained(runner.info.model_path)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.format(topic)}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for topic in TOPICS
        for question in ("What is {}?", "Explain {} in one sentence.", "Why does {} matter?")
    ]

    def fastest(cache: KVCache) -> PagedAttention:
        return select_attention(cache, runner.model.needs, native)

    found = divergence(
        runner.model, prompts, 64, INT8, every=None, seed=2, native=native, make_attention=fastest
    )
    assert found.positions > 500
    assert found.agreement >= 0.99
    assert found.logit_error < 0.012
