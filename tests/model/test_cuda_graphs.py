"""Decode-only steps may be padded to a recorded size; the padding changes nobody's logits."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.core.batch import Batch, Chunk
from engine.core.request import SamplingParams
from engine.model.attention import TorchAttention
from engine.model.cuda_graphs import DecodeBuffers, DecodeGraphs, graph_sizes
from engine.model.hf_model import HFModel, kv_shape_of
from engine.model.kv_cache import KVCache
from engine.model.step_input import StepInput, StepInputBuilder

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_SIZE = 8
DRAW = SamplingParams(max_tokens=4)


def a_model() -> HFModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = HFModel(LlamaForCausalLM(config).to(DEVICE))
    cache = KVCache(kv_shape_of(model.needs), 16, BLOCK_SIZE, DEVICE)
    if DEVICE.type == "cuda":
        from engine.model.kernels.triton_attention import TritonAttention

        model.bind(TritonAttention(cache))
    else:
        model.bind(TorchAttention(cache))
    return model


def step_of(*chunks: Chunk) -> StepInput:
    return StepInputBuilder(BLOCK_SIZE, DEVICE).build(Batch(1, chunks))


def three_decodes(model: HFModel) -> StepInput:
    """Prefill three prompts, then return the step that decodes their next tokens."""
    prompts = {"a": (range(5), (3,)), "b": (range(9), (7, 1)), "c": (range(20), (2, 9, 4))}
    for name, (tokens, blocks) in prompts.items():
        model.step(step_of(Chunk(name, 0, tuple(tokens), blocks, DRAW)))
    return step_of(*(Chunk(n, len(t), (11,), blocks, DRAW) for n, (t, blocks) in prompts.items()))


def test_sizes_cover_every_batch_up_to_the_largest() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(4) == [1, 2, 4]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 20]


def test_a_padded_step_gives_the_same_logits() -> None:
    model = a_model()
    inp = three_decodes(model)
    expected = model.step(inp)
    buffers = DecodeBuffers(8, 6, BLOCK_SIZE, DEVICE)
    buffers.load(three_decodes(model))
    buffers.load(inp)  # a second load leaves nothing of the first
    actual = model.step(buffers.step)[:3]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_only_decode_steps_that_fit_are_padded() -> None:
    graphs = DecodeGraphs(lambda inp: inp.token_ids, 4, 6, BLOCK_SIZE, DEVICE)
    decode = Chunk("a", 3, (1,), (1,), DRAW)
    assert graphs.size_for(step_of(decode, decode, decode)) == 4
    assert graphs.size_for(step_of(*[decode] * 5)) is None, "more rows than the largest graph"
    assert graphs.size_for(step_of(decode, Chunk("b", 0, (1, 2), (2,), DRAW))) is None
    assert graphs.size_for(step_of(Chunk("c", 0, (1,), (1,), None))) is None, "draws nothing"
    long = Chunk("d", 50, (1,), tuple(range(1, 8)), DRAW)
    assert graphs.size_for(step_of(long)) is None, "a wider block table than recorded"


@pytest.mark.skipif(DEVICE.type != "cuda", reason="recording a graph needs a CUDA device")
def test_a_replayed_graph_gives_the_same_logits() -> None:
    model = a_model()
    graphs = DecodeGraphs(model.step, 8, 6, BLOCK_SIZE, DEVICE)
    graphs.record()
    assert graphs.num_graphs == len(graph_sizes(8))
    inp = three_decodes(model)
    expected = model.step(inp).clone()
    torch.testing.assert_close(graphs.step(inp), expected, atol=1e-4, rtol=1e-4)
