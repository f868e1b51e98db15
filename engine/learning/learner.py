"""Learns from finished requests, one after another; it knows no thread, process, file or clock.

Whoever drives it hands in what ended, asks whether a fit is due, fits, and hands the model back.
The driver in service is a thread (background.py); in the simulator the fit happens at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.learning.cold import first_guess
from engine.learning.features import featurise
from engine.learning.grams import OPEN, GramKey
from engine.learning.length_model import LengthModel
from engine.learning.lognormal import LogGuess
from engine.learning.question import Question
from engine.learning.rows import Row
from engine.learning.scope import Asked, Ended, Scope
from engine.learning.scopes import Scopes, Sharing
from engine.learning.scoreboard import Scoreboard


@dataclass(frozen=True, slots=True, eq=False)
class DueFit:
    """Rows to fit to, the scope that wants the model, and whether it could hardly wait."""

    scope: Scope
    rows: Sequence[Row]
    is_urgent: bool = False


class Learner:
    """See the module's text. `ask` is for any thread, everything else for one."""

    __slots__ = (
        "_num_asked",
        "_num_begun",
        "key",
        "num_fits",
        "num_learned",
        "scopes",
        "scoreboard",
    )

    def __init__(self, sharing: Sharing = "tenant", key: GramKey = OPEN) -> None:
        self.scopes = Scopes(sharing)
        self.key = key
        self.scoreboard = Scoreboard()
        self.num_learned = 0
        self.num_fits = 0
        self._num_asked = 0
        self._num_begun = 0  # fits begun

    def ask(self, question: Question) -> Asked:
        """Return the guess for a question, and what it was made of."""
        tenant, hour = question.tenant, question.hour
        history = self.scopes.reading(tenant, hour)
        cold = first_guess(question.previous_outputs, history)
        features = featurise(question, history, self.key)
        scope = self.scopes.find(tenant)
        modelled: LogGuess | None = None
        given = cold
        if scope is not None:
            self._num_asked += 1
            scope.last_asked = self._num_asked
            modelled, given = scope.guess(cold, features)
        return Asked(tenant, hour, features, cold, modelled, given)

    def learn(self, ended: Sequence[Ended]) -> None:
        """Take in answers that ended, in their order."""
        touched: dict[int, Scope] = {}
        for one in ended:
            scope = self.scopes.take(one)
            touched[id(scope)] = scope
            self.num_learned += 1
            self._score(one)
        for scope in touched.values():
            scope.index()

    def _score(self, one: Ended) -> None:
        given, log_length = one.asked.given, math.log1p(one.num_output_tokens)
        # At the limit it is as long as it could be; cut before that, only a miss is certain.
        is_known = one.num_output_tokens >= one.asked.features.max_tokens
        if one.is_whole or is_known or log_length > given.high_log:
            self.scoreboard.add(given.log, given.high_log, log_length, is_whole=one.is_whole)

    def due_fit(self, now_ns: int = 0, *, only_urgent: bool = False) -> DueFit | None:
        """Return a fit that should be made now, if any: it counts as begun.

        `only_urgent` leaves those out that would merely be a little better than the last.
        """
        scope = self.scopes.due(now_ns, only_urgent=only_urgent)
        if scope is None:
            return None
        self._num_begun += 1
        scope.last_fit = self._num_begun
        is_urgent = scope.is_urgent
        return DueFit(scope, scope.to_fit(), is_urgent)

    def install(self, fit: DueFit, model: LengthModel) -> None:
        """Use the model of a fit from now on."""
        fit.scope.install(model)
        self.num_fits += 1
        self.scopes.trim_models()

    def number_stored(self) -> None:
        """Take stored scopes for asked in their order: the one heard of last comes last there."""
        for _, scope in self.scopes:
            self._num_asked += 1
            scope.last_asked = self._num_asked

    def fit_all(self) -> None:
        """Make every fit that is due, here and now."""
        while (fit := self.due_fit()) is not None:
            self.install(fit, LengthModel.fit(fit.rows))
