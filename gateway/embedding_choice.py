"""One embedding of an answer: a vector in place of text; it knows no bytes of HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.request import FinishReason
from engine.core.stats import TokenEvent
from gateway.choice import Choice
from gateway.completion import Delta, FinishedChoice
from gateway.plan import Plan
from gateway.stopwatch import Stopwatch
from gateway.text import TextCodec


class EmbeddingChoice(Choice):
    """A choice that ends with a vector and has no token. Its time to first token is its whole."""

    __slots__ = ("_vector",)

    def __init__(self, plan: Plan, index: int, codec: TextCodec, stopwatch: Stopwatch) -> None:
        super().__init__(plan, index, codec, codec.output(()), stopwatch)
        self._vector = b""

    def take(self, events: Sequence[TokenEvent]) -> tuple[list[Delta], int]:
        """Return the end as a delta, counted as one token: it is what the caller waits for."""
        last = events[-1]
        if last.finish_reason is None:
            return [], 0
        self.stats, self._vector = last.stats, last.vector
        if not self._vector:
            return [], 0
        self.finish_reason = FinishReason.STOP.value
        return [self.ending()], 1

    def finished(self) -> FinishedChoice:
        """Return the whole choice."""
        assert self.finish_reason is not None
        return FinishedChoice(self.index, "", self.finish_reason, vector=self._vector)
