"""Guesses of answer lengths where the packages to learn with are missing: a tenant's usual length.

It has the face of the learned predictor and needs the standard library only. It reads no text,
keeps nothing on disk, and knows no more than `engine.core.length_predictor` does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from engine.core.length_predictor import HistoryPredictor
from engine.core.request import LengthEstimate, RequestOrder, SamplingParams
from engine.learning.question import Question

MOST_OPEN = 10_000
EVERYBODY = ""


@dataclass(frozen=True, slots=True)
class HistoryStats:
    """How the guessing goes: requests whose end is awaited, and answers learned from."""

    open_questions: int
    learned: int


class HistoryLengths:
    """One running mean per tenant, or a single one for all. Bounded in tenants and in open ids."""

    def __init__(self, *, shares: bool) -> None:
        """`shares`: everybody's answers tell of everybody's next one."""
        self._history = HistoryPredictor()
        self._shares = shares
        self._open: OrderedDict[str, RequestOrder] = OrderedDict()
        self._learned = 0

    def start(self) -> None:
        """Nothing runs in the background."""

    def close(self) -> None:
        """Nothing is kept."""

    def predict(self, request_id: str, question: Question) -> LengthEstimate:
        """Return the usual length, and remember whose request this is."""
        order = RequestOrder(
            id=request_id,
            prompt=(),
            sampling=SamplingParams(max_tokens=question.max_tokens),
            arrival_ns=0,
            tenant=EVERYBODY if self._shares else question.tenant,
        )
        self._open[request_id] = order
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        return self._history.predict(order)

    def observe(self, request_id: str, num_output_tokens: int, *, is_whole: bool) -> None:
        """An answer is over; one that was cut tells nothing of its length."""
        order = self._open.pop(request_id, None)
        if order is not None and is_whole:
            self._learned += 1
            self._history.observe(order, num_output_tokens)

    def forget(self, request_id: str) -> None:
        """A request came to nothing."""
        self._open.pop(request_id, None)

    def stats(self) -> HistoryStats:
        """Return how the guessing goes."""
        return HistoryStats(len(self._open), self._learned)
