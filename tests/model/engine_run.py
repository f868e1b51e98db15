"""Runs orders through the real EngineCore and a real ModelRunner, with chunks of random size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.core.batch import Batch
from engine.core.engine_core import EngineCore
from engine.core.executor import Capacity
from engine.core.policies.fcfs import Fcfs
from engine.core.policy import StepLimits, View
from engine.core.request import RequestOrder, SamplingParams
from engine.core.stats import Snapshot
from engine.model.attention import TorchAttention
from engine.model.hf_model import PagedModel, kv_shape_of
from engine.model.kv_cache import KVCache
from engine.model.model_runner import ModelRunner, RunnerInfo
from engine.model.sampler import Sampler
from engine.model.self_check import MakeAttention


class RandomChunks(Fcfs):
    """First come, first served, with another token limit in every step."""

    def __init__(self, draw: random.Random, most: int) -> None:
        super().__init__()
        self._draw = draw
        self._most = most

    def limits(self, view: View) -> StepLimits:
        return StepLimits(max_tokens=self._draw.randint(1, self._most))


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to cut the same work into steps and blocks."""

    block_size: int
    num_blocks: int
    max_batch_tokens: int
    max_batch_requests: int
    seed: int


def random_setting(draw: random.Random, longest: int, demand: int) -> Setting:
    """A pool that holds the longest request, and about a tenth of all `demand` tokens."""
    block_size = draw.choice([1, 4, 8, 16])
    tokens = max(longest + block_size, demand // 10)
    return Setting(
        block_size=block_size,
        num_blocks=-(-tokens // block_size),
        max_batch_tokens=draw.choice([48, 64, 96]),
        max_batch_requests=32,
        seed=draw.randrange(1 << 30),
    )


def make_runner(
    model: PagedModel, setting: Setting, make_attention: MakeAttention = TorchAttention
) -> ModelRunner:
    """A runner whose pool is full of NaN before the first request comes."""
    cache = KVCache(kv_shape_of(model.needs), setting.num_blocks, setting.block_size, model.device)
    cache.data.fill_(float("nan"))
    attention = make_attention(cache)
    capacity = Capacity(
        setting.num_blocks,
        setting.block_size,
        model.max_model_len,
        setting.max_batch_tokens,
        setting.max_batch_requests,
    )
    info = RunnerInfo("tiny", "", "generic", attention.name, "cpu", str(model.dtype), 0, 0.0)
    return ModelRunner(model, attention, Sampler(model.vocab_size), capacity, info)


def random_work(
    draw: random.Random, vocab: int, count: int, max_new: int
) -> list[tuple[tuple[int, ...], int]]:
    """Prompts of few different lengths, a third of them beginning alike, with answer lengths."""
    lengths = [*draw.sample(range(1, 50), 6), 40, 48]
    shared = tuple(draw.randrange(3, vocab) for _ in range(32))
    work = []
    for _ in range(count):
        length = draw.choice(lengths)
        prompt = tuple(draw.randrange(3, vocab) for _ in range(length))
        if draw.random() < 1 / 3 and length > len(shared):
            prompt = shared + prompt[len(shared) :]
        work.append((prompt, draw.randint(1, max_new)))
    return work


def run(
    runner: ModelRunner,
    work: Sequence[tuple[tuple[int, ...], int]],
    seed: int,
    watch: Callable[[Batch], None] | None = None,
) -> tuple[list[list[int]], Snapshot]:
    """Return each order's greedy tokens and the core's last snapshot.

    Orders come in while others are being served; time is a counter. `watch` is shown every batch
    once it was executed.
    """
    draw = random.Random(seed)
    core = EngineCore(runner.capacity, RandomChunks(draw, runner.capacity.max_batch_tokens))
    waiting = list(enumerate(work))
    answers: list[list[int]] = [[] for _ in work]
    now = 0
    while waiting or core.has_work:
        now += 1
        for _ in range(min(len(waiting), draw.randint(0, 6) if core.has_work else 6)):
            number, (prompt, max_new) = waiting.pop(0)
            sampling = SamplingParams(max_tokens=max_new, temperature=0.0)
            core.submit(RequestOrder(str(number), prompt, sampling, now), now)
        batch = core.start_step(now)
        if batch is None:
            continue
        result = runner.execute(batch)
        assert result.failed == ()
        if watch is not None:
            watch(batch)
        now += 1
        for event in core.finish_step(batch, result, now):
            if event.token_id is not None:
                answers[int(event.request_id)].append(event.token_id)
    core.check_integrity()
    return answers, core.snapshot(now)


@torch.inference_mode()
def generate(model: Any, work: Sequence[tuple[tuple[int, ...], int]]) -> list[list[int]]:
    """Return transformers' own greedy answers; prompts of equal length go in one batch."""
    by_length: dict[int, list[int]] = {}
    for number, (prompt, _) in enumerate(work):
        by_length.setdefault(len(prompt), []).append(number)
    answers: list[list[int]] = [[] for _ in work]
    for length, numbers in by_length.items():
        ids = torch.tensor([work[n][0] for n in numbers])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max(work[n][1] for n in numbers),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
        )
        for row, n in zip(out[:, length:].tolist(), numbers, strict=True):
            answers[n] = row[: work[n][1]]
    return answers
