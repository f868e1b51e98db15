"""What the outside knows by itself: the right answers, the truth about a request, a recorder."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from engine.core.request import RequestOrder
from engine.core.stats import RequestStats, StepStats

VOCABULARY = 6  # small, so that stop tokens and equal prefixes happen by themselves


def next_token(history: Sequence[int], order: RequestOrder) -> int:
    """The fake model with its sampler: a pure function of the history."""
    sampling = order.sampling
    draw = zlib.crc32(repr((sampling.seed, tuple(history))).encode())
    banned = set()
    if len(history) - len(order.prompt) < sampling.min_tokens:
        banned = set(sampling.stop_token_ids)
    allowed = [token for token in range(VOCABULARY) if token not in banned]
    return allowed[draw % len(allowed)]


def expected_output(order: RequestOrder) -> tuple[int, ...]:
    """What a request must answer, whatever happens to it on the way."""
    history = list(order.prompt)
    while True:
        token = next_token(history, order)
        history.append(token)
        count = len(history) - len(order.prompt)
        stopped = token in order.sampling.stop_token_ids and count > order.sampling.min_tokens
        if stopped or count == order.sampling.max_tokens:
            return tuple(history[len(order.prompt) :])


def contexts(salt: str, tokens: Sequence[int]) -> list[int]:
    """One value per position that stands for everything the KV of that position depends on."""
    value = hash(("salt", salt))
    values = []
    for token in tokens:
        value = hash((value, token))
        values.append(value)
    return values


class Truth:
    """One submitted request as the outside knows it, and what it must come to."""

    def __init__(self, order: RequestOrder) -> None:
        self.order = order
        self.expected = expected_output(order)
        self.contexts = contexts(order.cache_salt, (*order.prompt, *self.expected))
        self.output: list[int] = []
        self.token_times: list[int] = []
        self.end: RequestStats | None = None
        self.num_parks = 0
        self.parked_since: int | None = None
        self.parked_ns = 0

    @property
    def history(self) -> tuple[int, ...]:
        return (*self.order.prompt, *self.output)


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.finished: list[RequestStats] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def on_finish(self, stats: RequestStats) -> None:
        self.finished.append(stats)


def digest(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())
