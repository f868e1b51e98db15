"""Asks how long answers will be, and tells how long they were; how that is known it does not know.

The predictor belongs to the model served and is opened with it: what was learned of one model says
nothing of another. Without the packages to learn with (`pip install 'tiergate[engine]'`) a
tenant's usual length is all that is known; with `learn` off nobody is asked.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from engine.core.request import FinishReason, LengthEstimate
from engine.core.stats import RequestStats
from engine.learning.question import Question
from gateway.history_lengths import HistoryLengths
from gateway.plan import Plan

logger = logging.getLogger(__name__)

# Whose client left, or that took too long, is cut off: who waits for long answers least would else
# teach that they are short. What an engine that failed had made tells of the engine.
_TOLD = frozenset(
    {FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.EXPIRED}
)


class Figures(Protocol):
    """Any dataclass: what a predictor says of itself differs with the predictor."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Predictor(Protocol):
    """The face of both predictors; cheap enough for the event loop, and never raising."""

    def predict(self, request_id: str, question: Question) -> LengthEstimate:
        """Return a guess, and remember what is needed to learn from the answer."""
        ...

    def observe(self, request_id: str, num_output_tokens: int, *, is_whole: bool) -> None:
        """An answer is over; `is_whole` is False where it was cut: by its limit, or its client."""
        ...

    def forget(self, request_id: str) -> None:
        """A request came to nothing; unknown ids are ignored."""
        ...

    def start(self) -> None:
        """Begin to learn in the background."""
        ...

    def close(self) -> None:
        """Write down what was learned, and end; may take a while."""
        ...

    def stats(self) -> Figures:
        """Return how well it does."""
        ...


MakePredictor = Callable[[str], Predictor]  # of the model with this fingerprint


class Lengths:
    """The predictor of the model served, once there is one; used from the event loop."""

    def __init__(self, make: MakePredictor | None) -> None:
        """`make` None: lengths are not guessed."""
        self._make = make
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor | None:
        """The predictor in use; None before a model is served, and where none is wanted."""
        return self._predictor

    def open(self, fingerprint: str) -> None:
        """Begin with what was learned of this model; reads files: call it in a thread."""
        if self._make is not None:
            predictor = self._make(fingerprint)
            predictor.start()
            self._predictor = predictor

    def close(self) -> None:
        """Write down what was learned; call it in a thread."""
        if self._predictor is not None:
            self._predictor.close()

    def readings(self) -> dict[str, float | None]:
        """Return how well the predictor does, by name; None: not known yet. Safe in any thread."""
        if self._predictor is None:
            return {}
        fields = dataclasses.asdict(self._predictor.stats())
        return {name: None if value != value else value for name, value in fields.items()}

    async def guess(self, plan: Plan) -> Plan:
        """Return the plan with a guess for each prompt, and without what the prompts ask.

        All choices of a prompt share its guess, and the first of them is learned from. Many prompts
        are asked about one at a time, so that streams are not held up by them.
        """
        known = dataclasses.replace(plan, questions=())
        predictor, most = self._predictor, plan.sampling.max_tokens
        if predictor is None or most == 0:
            return known
        if not plan.sampling.stop_token_ids and not plan.stops:
            # Nothing but the limit ends such an answer: there is nothing to guess, or to learn.
            exact = LengthEstimate(float(most), float(most))
            return dataclasses.replace(known, estimates=(exact,) * len(plan.prompts))
        estimates: list[LengthEstimate] = []
        for number, question in enumerate(plan.questions):
            if number:
                await asyncio.sleep(0)
            estimates.append(predictor.predict(learned_id(plan, number), question))
        return dataclasses.replace(known, estimates=tuple(estimates))

    def forget(self, plan: Plan) -> None:
        """The request came to nothing; harmless for one that was never asked about."""
        if self._predictor is not None:
            for number in range(len(plan.prompts)):
                self._predictor.forget(learned_id(plan, number))

    def on_finish(self, stats: RequestStats) -> None:
        """The engine's last word on a request: what it counts is what was generated."""
        predictor = self._predictor
        if predictor is None:
            return
        if stats.num_output_tokens and stats.finish_reason in _TOLD:
            is_whole = stats.finish_reason is FinishReason.STOP
            predictor.observe(stats.request_id, stats.num_output_tokens, is_whole=is_whole)
        else:
            predictor.forget(stats.request_id)


def learned_id(plan: Plan, prompt: int) -> str:
    """Return the id under which a prompt's answer is learned: that of its first choice."""
    return plan.engine_id(prompt * plan.choices_per_prompt)


def make_predictor(
    folder: Path,
    sharing: Literal["tenant", "all"],
    pepper: bytes,
    fingerprint: str,
    *,
    keeps: bool = True,
) -> Predictor:
    """Return the predictor of the model with this fingerprint; its state is a file in `folder`.

    What it remembers of words is hashed with a secret made of `pepper`, which is not in `folder`
    or the ledger's database. `keeps` False: it begins with what is there, and writes nothing:
    another worker does.
    """
    try:
        from engine.learning.predictor import LearnedPredictor
    except ImportError as error:
        logger.info(
            "lengths of answers are guessed from each tenant's usual one: %s is not installed",
            error.name,
        )
        return HistoryLengths(shares=sharing == "all")
    return LearnedPredictor(
        fingerprint, sharing=sharing, folder=folder, keeps=keeps, secret=words_secret(pepper)
    )


def words_secret(pepper: bytes) -> bytes:
    """Return the secret that words are hashed with, HMAC-SHA-256(pepper, a name of its own)."""
    return hmac.digest(pepper, b"tiergate lengths", "sha256")
