"""A run of the real engine, recorded at its core, replays to identical batches (law L37)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_kit import config_of, order_of, read, tokens_of

from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies import make_policy
from engine.core.tape import StepFinished, replay
from engine.core.tape_file import load_tape
from engine.serving.build import ModelLoadError, profile_name
from engine.serving.config import EngineConfig
from engine.serving.inprocess import InProcessEngine


def fresh_core(config: EngineConfig, capacity: Capacity) -> EngineCore:
    model = LatencyModel(load_profile(profile_name(config)))
    return EngineCore(
        capacity,
        make_policy(config.policy, config.policy_options, model),
        CoreConfig(config.max_waiting_requests, config.max_waiting_prompt_tokens),
        enable_prefix_cache=config.prefix_caching,
        model=model,
    )


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["sarathi", "hybrid", "alise"])
async def test_a_run_of_the_built_in_model_replays(tmp_path: Path, policy: str) -> None:
    """Concurrent answers, an abort, wall-clock times and measured steps: the tape has them all."""
    pytest.importorskip("torch")
    tape = tmp_path / "run.jsonl.gz"
    config = EngineConfig(
        model="builtin",
        policy=policy,
        tape=str(tape),
        max_model_len=256,
        max_batch_tokens=64,
        max_batch_requests=8,
        kv_cache_bytes=1 << 20,
        threads=1,
        nice=0,
    )
    engine = InProcessEngine(config)
    await engine.start()
    info = engine.info
    try:
        streams = [
            engine.submit(order_of(str(i), prompt=tuple(range(5, 25 + 9 * i)), max_tokens=10 + i))
            for i in range(12)
        ]
        engine.abort("7")
        answers = await asyncio.gather(*map(read, streams))
    finally:
        await engine.close()
    capacity = Capacity(
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        max_batch_tokens=info.max_batch_tokens,
        max_batch_requests=info.max_batch_requests,
    )
    events = list(load_tape(tape))
    assert sum(isinstance(event, StepFinished) for event in events) > 10
    told = replay(events, fresh_core(config, capacity))
    for number, answer in enumerate(answers):
        again = [event for event in told if event.request_id == str(number)]
        assert tokens_of(again) == tokens_of(answer)


async def test_a_tape_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """The engine does not start without the record it was asked for."""
    engine = InProcessEngine(config_of(tape=str(tmp_path / "missing" / "tape.jsonl")))
    with pytest.raises(ModelLoadError, match="cannot be written"):
        await engine.start()
