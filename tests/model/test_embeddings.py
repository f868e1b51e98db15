"""An embedding is the model's own last hidden state, however its prompt was cut and shared."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
import torch
from engine_run import RandomChunks, make_runner, random_setting, random_work
from tiny_models import FAMILIES, VOCAB, random_model, tiny_config

from engine.core.engine_core import EngineCore
from engine.core.request import FinishReason, RequestOrder, SamplingParams
from engine.core.stats import TokenEvent
from engine.model.hf_model import HFModel, PagedModel
from engine.model.kernels.native import NativeKernels
from engine.model.lean_model import LeanModel

LEAN = ("llama", "qwen2", "qwen3", "mistral-window")
MOST_NEW = 8


def reference(family: str, prompts: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Return transformers' last hidden state of each prompt's last token, of length 1."""
    model = random_model(tiny_config(family))
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            out = model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
            last = out.hidden_states[-1][0, -1].float()
            found.append(torch.nn.functional.normalize(last, dim=0).numpy())
    return found


def serve(model: PagedModel, draw: random.Random) -> tuple[list[tuple[int, ...]], list[TokenEvent]]:
    """Run 24 embeddings among 24 answers in random chunks over a small pool; return their ends."""
    work = random_work(draw, VOCAB, 48, MOST_NEW)
    longest = max(len(prompt) + new for prompt, new in work)
    setting = random_setting(draw, longest, sum(len(prompt) + new for prompt, new in work))
    runner = make_runner(model, setting)
    core = EngineCore(runner.capacity, RandomChunks(draw, runner.capacity.max_batch_tokens))
    ends: dict[int, TokenEvent] = {}
    for number, (prompt, new) in enumerate(work):
        embeds = number % 2 == 0
        params = SamplingParams(1 if embeds else new, temperature=0.0, embeds=embeds)
        core.submit(RequestOrder(str(number), prompt, params, 0), 0)
    now = 0
    while core.has_work:
        now += 1
        batch = core.start_step(now)
        assert batch is not None
        for event in core.finish_step(batch, runner.execute(batch), now):
            if event.stats is not None:
                ends[int(event.request_id)] = event
    core.check_integrity()
    chosen = range(0, len(work), 2)
    assert not any(ends[number].vector for number in range(1, len(work), 2))
    return [work[number][0] for number in chosen], [ends[number] for number in chosen]


def check(family: str, prompts: list[tuple[int, ...]], ends: list[TokenEvent]) -> None:
    for expected, end in zip(reference(family, prompts), ends, strict=True):
        vector = np.frombuffer(end.vector, "<f4")
        np.testing.assert_allclose(vector, expected, atol=2e-5)
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        assert end.token_id is None
        assert end.stats is not None
        assert end.stats.finish_reason is FinishReason.STOP
        assert end.stats.num_output_tokens == 0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_its_last_hidden_state(family: str) -> None:
    """In random chunks, preempted and with shared prefixes, beside answers that are generated."""
    draw = random.Random(zlib.crc32(family.encode()))
    model = HFModel(random_model(tiny_config(family)))
    check(family, *serve(model, draw))


@pytest.mark.parametrize("family", LEAN)
def test_the_lean_runner_gives_the_same(family: str, native: NativeKernels | None) -> None:
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    draw = random.Random(zlib.crc32(family.encode()) + 1)
    model = LeanModel(HFModel(random_model(tiny_config(family))), native)
    assert model.hidden_size == tiny_config(family).hidden_size
    check(family, *serve(model, draw))
