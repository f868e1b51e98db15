"""The predictor of output lengths as the gateway and the simulator see it.

Asked when a request comes, told when it ended. What lies between, it keeps itself, bounded and
without text. It knows no HTTP, no scheduler and no order; predictions order requests, and nothing
that must be safe depends on them (laws L25, L26).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.core.clock import Clock, MonotonicClock
from engine.core.request import LengthEstimate
from engine.learning import state
from engine.learning.background import BackgroundLearner
from engine.learning.blas import use_one_thread
from engine.learning.grams import OPEN, gram_key
from engine.learning.learner import Learner
from engine.learning.question import Question
from engine.learning.rows import StateError
from engine.learning.scope import Asked, Ended
from engine.learning.scopes import Sharing

MOST_OPEN = 8192  # questions remembered until their answers end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearningStats:
    """How the learning goes. Errors are over the newest answers; NaN before there are any."""

    scopes: int
    models: int
    rows: int
    open_questions: int
    learned: int
    forgotten: int  # answers not learned from, for lack of room
    fits: int
    failed_fits: int
    drifts: int  # changes of traffic found
    is_fitting: bool
    is_learning: bool  # False before it began, when it is over, and should it have died
    failures: int  # turns of the learning that failed, for whatever reason
    log_error: float  # mean absolute error of log lengths
    high_coverage: float  # share of answers that ended below their high guess; 0.9 is meant
    order_accuracy: float  # share of pairs of answers whose guesses are in order


class LearnedPredictor:
    """Guesses lengths, and learns from what came.

    In service: `start` it, `close` it; it learns in a thread, fits in a process, and keeps what it
    learned in `folder` (nowhere for None), one file for each `fingerprint` of a served model; with
    `keeps` False it begins with that file and never writes one. Words can be tried out on the
    file by whoever has `secret` (32 bytes or more), or by anybody where it is None. With
    `every` above 0 there is no thread, process or file: it learns when so many answers ended, in
    `observe` and at once, so that equal runs give equal guesses (the simulator).
    """

    def __init__(
        self,
        fingerprint: str = "",
        *,
        sharing: Sharing = "tenant",
        folder: Path | None = None,
        every: int = 0,
        clock: Clock | None = None,
        keeps: bool = True,
        secret: bytes | None = None,
    ) -> None:
        self._keeps = keeps
        self._key = OPEN if secret is None else gram_key(secret)
        self._fingerprint = fingerprint
        self._folder = folder
        self._every = every
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Asked] = OrderedDict()
        self._batch: list[Ended] = []
        self._num_lost = 0
        if every:
            self._learner, self._background = Learner(sharing, self._key), None
        else:
            self._learner = self._load(sharing)
            self._background = BackgroundLearner(
                self._learner, clock or MonotonicClock(), self._save
            )

    def start(self) -> None:
        """Begin to learn in the background; nothing to do for one that learns at once."""
        if self._background is not None:
            use_one_thread()
            self._background.start()

    def close(self) -> None:
        """Learn what is pending, save and end."""
        if self._background is not None:
            self._background.close()

    def predict(self, request_id: str, question: Question) -> LengthEstimate:
        """Return the guess, and remember the question (not its text) until `observe`."""
        asked = self._learner.ask(question)
        with self._lock:
            self._open[request_id] = asked
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
                self._num_lost += 1
        return asked.given.estimate(question.max_tokens)

    def observe(self, request_id: str, num_output_tokens: int, *, is_whole: bool) -> None:
        """The answer ended after so many tokens; `is_whole` False where something cut it off.

        It only appends. An id that is not known is ignored, as is an answer without a token.
        """
        with self._lock:
            asked = self._open.pop(request_id, None)
        if asked is None or num_output_tokens < 1:
            return
        ended = Ended(asked, num_output_tokens, is_whole)
        if self._background is not None:
            self._background.put(ended)
            return
        self._batch.append(ended)
        if len(self._batch) >= self._every:
            self.learn_now()

    def forget(self, request_id: str) -> None:
        """Nothing is to be learned from this one: it was refused, or its client left."""
        with self._lock:
            self._open.pop(request_id, None)

    def teach(self, examples: Iterable[tuple[Question, int]]) -> None:
        """Learn from questions and the lengths of their answers, before anybody is served.

        Only where it learns at once; a length of `max_tokens` or more is one that was cut.
        """
        for question, length in examples:
            asked = self._learner.ask(question)
            self._learner.learn([Ended(asked, length, length < question.max_tokens)])
        self._learner.fit_all()

    def learn_now(self) -> None:
        """Where it learns at once: from all that ended, fits included."""
        batch, self._batch = self._batch, []
        self._learner.learn(batch)
        self._learner.fit_all()

    def stats(self) -> LearningStats:
        """Return how the learning goes; takes about a millisecond."""
        learner, background = self._learner, self._background
        scopes = [scope for _, scope in learner.scopes]
        log_error, coverage, order = learner.scoreboard.read()
        return LearningStats(
            scopes=len(scopes),
            models=sum(scope.model is not None for scope in scopes),
            rows=learner.scopes.num_rows,
            open_questions=len(self._open),
            learned=learner.num_learned,
            forgotten=self._num_lost + (background.num_dropped if background else 0),
            fits=learner.num_fits,
            failed_fits=background.num_failed_fits if background else 0,
            drifts=sum(scope.num_drifts for scope in scopes),
            is_fitting=background is not None and background.is_fitting,
            is_learning=background is None or background.is_alive,
            failures=background.num_failures if background else 0,
            log_error=log_error,
            high_coverage=coverage,
            order_accuracy=order,
        )

    def _load(self, sharing: Sharing) -> Learner:
        if self._folder is not None:
            path = state.file_of(self._folder, self._fingerprint)
            try:
                known = state.load(self._folder, self._fingerprint, sharing, self._key)
                if known is not None:
                    return known
            except (StateError, OSError) as error:
                aside = state.set_aside(self._folder, self._fingerprint)
                kept = "" if aside is None else f"; it is kept as {aside.name}"
                log.warning(
                    "output lengths: %s cannot be used: %s; they are learned anew%s",
                    path, error, kept,
                )  # fmt: skip
        return Learner(sharing, self._key)

    def _save(self) -> None:
        if self._folder is None or not self._keeps:
            return
        try:
            content = state.to_bytes(self._learner, self._fingerprint)
            state.save(self._folder, self._fingerprint, content)
        except OSError as error:
            log.warning("output lengths: what was learned cannot be saved: %s", error)
