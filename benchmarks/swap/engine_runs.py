"""What the swap benchmarks share: questions for the built-in model, and an engine to answer them.

The engine is the one in service, core and runner, driven here step by step on the machine's clock.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.core.clock import Clock, MonotonicClock
from engine.core.engine_core import EngineCore
from engine.core.latency_model import LatencyModel
from engine.core.policy import SchedulingPolicy
from engine.core.request import RequestOrder, SamplingParams, Slo
from engine.core.stats import RequestStats, Snapshot
from engine.model.model_runner import ModelRunner
from engine.model.tokenizer import Tokenizer

TOPICS = (
    "paged attention",
    "continuous batching",
    "a scheduler",
    "the KV cache",
    "tail latency",
    "a rate limit",
    "chunked prefill",
    "fairness",
    "a tenant",
    "preemption",
    "speculative decoding",
    "quantization",
    "throughput",
    "admission control",
    "a latency target",
    "streaming",
)
QUESTIONS = (
    "What is {}?",
    "Explain {} in one sentence.",
    "Why does {} matter?",
    "Tell me about {}, step by step, with an example.",
    "How would you measure {} on one machine, and what could go wrong?",
)
SYSTEM = (
    "You are a careful assistant. You answer in plain words, you say what you do not know, and you"
    " keep to what was asked."
)


@dataclass(frozen=True, slots=True)
class Order:
    """One request: prompt, how it is answered, and when it comes (seconds from the start)."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    tier: str
    slo: Slo
    at_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: each order's tokens, and the engine's own counts."""

    answers: list[list[int]]
    ends: list[RequestStats]
    last: Snapshot
    seconds: float
    most_blocks: int  # held at once


def prompts_of(model_path: str, count: int, draw: random.Random) -> list[tuple[int, ...]]:
    """Return prompts of 30 to some 400 tokens; a third of them begin with the same system text."""
    tokenizer = Tokenizer.load(model_path)
    prompts = []
    for _ in range(count):
        said = draw.choices(QUESTIONS, k=draw.choice((1, 1, 2, 4, 12)))
        text = " ".join(question.format(draw.choice(TOPICS)) for question in said)
        messages = [{"role": "user", "content": text}]
        if draw.random() < 1 / 3:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        prompts.append(tuple(tokenizer.encode_chat(messages)))
    return prompts


class Finishes:
    """Keeps how each request ended."""

    def __init__(self) -> None:
        self.ends: list[RequestStats] = []

    def on_step(self, stats: Any) -> None:
        """See Observer."""

    def on_finish(self, stats: RequestStats) -> None:
        """See Observer."""
        self.ends.append(stats)


def serve(
    runner: ModelRunner,
    orders: Sequence[Order],
    policy: SchedulingPolicy,
    model: LatencyModel | None,
    shown: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Answer all orders, each when it comes, and return what was said."""
    finishes, clock = Finishes(), MonotonicClock()
    core = EngineCore(runner.capacity, policy, observer=finishes, model=model)
    answers: list[list[int]] = [[] for _ in orders]
    coming = sorted(range(len(orders)), key=lambda n: orders[n].at_s, reverse=True)
    most = 0
    began_ns = clock.now_ns()
    while coming or core.has_work:
        _submit_due(core, orders, coming, began_ns, clock)
        batch = core.start_step(clock.now_ns())
        if batch is None:
            time.sleep(0.0005)
            continue
        result = runner.execute(batch)
        assert not result.failed
        for event in core.finish_step(batch, result, clock.now_ns()):
            if event.token_id is not None:
                answers[int(event.request_id)].append(event.token_id)
        seen = core.snapshot(clock.now_ns())
        most = max(most, seen.num_blocks - seen.free_blocks)
        if seen.step % 500 == 0:
            shown(seen.finished_total)
    core.check_integrity()
    seconds = (clock.now_ns() - began_ns) / 1e9
    return Outcome(answers, finishes.ends, core.snapshot(clock.now_ns()), seconds, most)


def _submit_due(
    core: EngineCore, orders: Sequence[Order], coming: list[int], began_ns: int, clock: Clock
) -> None:
    now_ns = clock.now_ns()
    while coming and began_ns + orders[coming[-1]].at_s * 1e9 <= now_ns:
        number = coming.pop()
        order = orders[number]
        core.submit(
            RequestOrder(
                str(number),
                order.prompt,
                order.sampling,
                now_ns,
                tier=order.tier,
                slo=order.slo,
            ),
            now_ns,
        )


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 2),
        "shared": "other programs ran on the machine meanwhile",
    }
