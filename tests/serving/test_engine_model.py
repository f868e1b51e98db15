"""The real executor in the real process: a tiny random Llama, token for token like transformers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_kit import DEADLINE_S, ProcessMaker, order_of, read, tokens_of

from engine.core.errors import ModelLoadError
from engine.core.latency_profile import LatencyProfile, dump_profile
from engine.serving.build import build_engine
from engine.serving.config import EngineConfig

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # imports torch and transformers twice, here and in the child

MAX_TOKENS = 12
PROMPTS = [tuple(range(5 + i, 5 + 3 * i + 4)) for i in range(8)]


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        # Untied and spread out, so that greedy answers differ from prompt to prompt.
        initializer_range=0.5,
    )
    path = tmp_path / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def answers_of_transformers(path: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path)
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        answers.append(made[0, len(prompt) :].tolist())
    return answers


async def test_a_model_answers_through_its_process(
    make_process: ProcessMaker, model_path: Path
) -> None:
    """Eight concurrent prompts get the tokens that transformers' own generate gives each alone."""
    expected = await asyncio.to_thread(answers_of_transformers, model_path)
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)
    stages: list[str] = []
    engine = make_process(
        EngineConfig(str(model_path), dtype="float32", device="cpu", threads=1, nice=0),
        on_progress=lambda stage, fraction: stages.append(stage),
    )
    async with asyncio.timeout(4 * DEADLINE_S):
        await engine.start()
    assert engine.info is not None
    assert (engine.info.device, engine.info.dtype) == ("cpu", "float32")
    assert engine.info.model_path == str(model_path)
    assert stages[-1] == "ready"
    streams = [
        engine.submit(order_of(f"r{i}", prompt=prompt, max_tokens=MAX_TOKENS))
        for i, prompt in enumerate(PROMPTS)
    ]
    answers = await asyncio.gather(*[read(stream) for stream in streams])
    assert [tokens_of(events) for events in answers] == expected


async def test_a_starved_engine_that_may_park_answers_the_same(
    make_process: ProcessMaker, model_path: Path
) -> None:
    """Five blocks for eight requests that need two or three each, and a host beside them."""
    expected = await asyncio.to_thread(answers_of_transformers, model_path)
    engine = make_process(
        EngineConfig(
            str(model_path),
            dtype="float32",
            device="cpu",
            policy="hybrid",
            max_model_len=48,
            kv_cache_bytes=6 * 16 * 512,
            host_kv_bytes=1 << 20,
            host_kv_checksums=True,
            threads=1,
            nice=0,
        )
    )
    async with asyncio.timeout(4 * DEADLINE_S):
        await engine.start()
    assert engine.info is not None
    assert (engine.info.num_blocks, engine.info.host_kv_format) == (5, "raw")
    assert engine.info.num_host_blocks == (1 << 20) // (16 * 512) - 1
    streams = [
        engine.submit(order_of(f"r{i}", prompt=prompt, max_tokens=MAX_TOKENS))
        for i, prompt in enumerate(PROMPTS)
    ]
    answers = await asyncio.gather(*[read(stream) for stream in streams])
    assert [tokens_of(events) for events in answers] == expected


def test_a_format_without_a_price_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    """A policy that weighs parking against computing must not do so with the other format's."""
    path = tmp_path / "mine.json"
    path.write_text(dump_profile(LatencyProfile("mine", base_ns=1.0, kv_bytes_per_token=64)))
    config = EngineConfig("/nowhere", latency_profile=str(path), host_kv_format="int8")
    with pytest.raises(ModelLoadError, match=r"^profile mine: .*: not measured, and INT8 needs it"):
        build_engine(config, lambda stage, fraction: None)
    config = replace(config, host_kv_format="int4")
    with pytest.raises(ModelLoadError, match="unknown host format 'int4'; known: raw, int8"):
        build_engine(config, lambda stage, fraction: None)
