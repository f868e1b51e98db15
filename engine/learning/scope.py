"""What is learned from one circle of requests: its rows, its model, and how good both guesses are.

A scope is one tenant, or everybody where the operator says so. It knows no thread and no file: it
is handed finished requests and fitted models, and says when the next fit is due.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.learning.drift import DriftDetector
from engine.learning.features import Features, History
from engine.learning.grams import Grams
from engine.learning.history import LengthHistory
from engine.learning.length_model import LengthModel
from engine.learning.lognormal import LEAST_SPREAD, Z90, LogGuess, completed
from engine.learning.neighbours import Neighbours, fold
from engine.learning.rows import Row
from engine.learning.scoreboard import Track

MOST_ROWS = 2000  # of one scope: of 3,000 Alpaca rows the last 1,000 add 0.3 % of pairs in order
FIRST_FIT = 32  # rows
GROWTH = 1.5  # a fit for every half as many rows again,
MOST_BETWEEN = 500  # and at least for every so many
MARGIN = 1.02  # a model that errs as much as running numbers do is the better one: it orders more


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a guess was made of: kept until the answer ends. No text."""

    tenant: str
    hour: float
    features: Features
    cold: LogGuess
    modelled: LogGuess | None
    given: LogGuess


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """An answer that ended: what was asked, its tokens, whether it ended by itself."""

    asked: Asked
    num_output_tokens: int
    is_whole: bool


class Scope:
    """See the module's text. One thread changes it; `guess` and `reading` are for any."""

    __slots__ = (
        "_cold",
        "_due",
        "_during",
        "_epoch",
        "_fresh",
        "_modelled",
        "_prefers_model",
        "_to_index",
        "drift",
        "history",
        "last_asked",
        "last_fit",
        "model",
        "not_urgent_until_ns",
        "num_drifts",
        "rows",
    )

    def __init__(self) -> None:
        self.history = LengthHistory()
        self.rows: deque[Row] = deque(maxlen=MOST_ROWS)
        self.model: LengthModel | None = None
        self.drift = DriftDetector()
        self.num_drifts = 0
        self.last_asked = 0  # of all questions asked, the number of this scope's last one
        self.last_fit = 0  # of all fits begun, the number of this scope's last one
        self.not_urgent_until_ns = 0  # an urgent fit was just made: the next one waits as others do
        self._cold, self._modelled = Track(), Track()
        self._prefers_model = True
        self._epoch = 0  # changes of the traffic so far; rows carry it as their source
        self._fresh = 0  # rows since the last fit
        self._due = FIRST_FIT
        self._to_index: list[tuple[Grams, float]] = []  # grams and logs not in the model's index
        self._during: deque[tuple[Grams, float]] | None = None  # the same, since a fit was begun

    def guess(self, cold: LogGuess, features: Features) -> tuple[LogGuess | None, LogGuess]:
        """Return the model's guess, None without one, and the guess to be given."""
        model = self.model
        if model is None:
            return None, self._cold.widened(cold)
        found = model.guess(features)
        modelled = LogGuess(found.middle, max(LEAST_SPREAD, (found.high - found.middle) / Z90))
        if not (math.isfinite(modelled.log) and math.isfinite(modelled.spread)):
            return None, self._cold.widened(cold)
        if self._prefers_model:
            return modelled, self._modelled.widened(modelled)
        return modelled, self._cold.widened(cold)

    def take(self, ended: Ended) -> float:
        """Learn from an answer, by everything but a fit; return the log that it counts as."""
        asked = ended.asked
        log_length = math.log1p(ended.num_output_tokens)
        counted = completed(log_length, ended.is_whole, asked.given)
        self.history.add(counted, asked.hour)
        row = Row(asked.features, ended.num_output_tokens, ended.is_whole, self._epoch)
        self.rows.append(row)
        self._fresh += 1
        if len(row.features.grams):
            self._to_index.append((row.features.grams, counted))
            if self._during is not None:
                self._during.append((row.features.grams, counted))
        if ended.is_whole:  # last: where the traffic has changed, this answer is of the new one
            self._judge(asked, log_length)
        else:
            self._cold.cut(asked.cold, log_length)
            if asked.modelled is not None:
                self._modelled.cut(asked.modelled, log_length)
        return counted

    def index(self) -> None:
        """Let new answers be found by questions that resemble theirs, long before the next fit."""
        new, self._to_index = self._to_index, []
        model = self.model
        if not new or model is None or model.trees is None:
            return
        idf, near = model.ridge.idf, model.near
        made = np.stack([fold(grams, idf, model.places, model.signs) for grams, _ in new])
        targets = model.scale.score(np.array([log for _, log in new], np.float32))
        self.model = dataclasses.replace(
            model,
            near=Neighbours(
                np.concatenate([near.embeddings, made])[-MOST_ROWS:],
                np.concatenate([near.targets, targets])[-MOST_ROWS:],
            ),
        )

    def _judge(self, asked: Asked, log_length: float) -> None:
        self._cold.add(asked.cold, log_length)
        if asked.modelled is not None:
            self._modelled.add(asked.modelled, log_length)
            self._prefers_model = self._modelled.error <= self._cold.error * MARGIN
        since = self.drift.add(abs(log_length - asked.given.log))
        if since:
            self._change(since)

    def _change(self, since: int) -> None:
        """The newest `since` answers are of another traffic than all before them."""
        self.num_drifts += 1
        self._epoch += 1
        for place in range(max(0, len(self.rows) - since), len(self.rows)):
            self.rows[place] = dataclasses.replace(self.rows[place], source=self._epoch)
        self.history.keep_newest(since)
        self._fresh, self._due = min(since, len(self.rows)), FIRST_FIT

    # Fits

    @property
    def is_due(self) -> bool:
        """True where a fit would have enough new rows to look at."""
        return self._fresh >= self._due and len(self.rows) >= FIRST_FIT

    @property
    def is_urgent(self) -> bool:
        """True where little is known of the present traffic: at first, and after a change."""
        return self._due == FIRST_FIT

    def to_fit(self) -> list[Row]:
        """Return the rows to fit to, and count them as looked at.

        The newest traffic is source 0; what was before a change is a source of its own, of which
        the model takes which prompts are long, and not how long (length_model.py).
        """
        rows = list(self.rows)
        own = sum(row.source == self._epoch for row in rows)
        self._due = min(max(FIRST_FIT, int(own * (GROWTH - 1.0))), MOST_BETWEEN)
        self._fresh = 0
        self._during = deque(maxlen=MOST_ROWS)
        return [_of_source(row, self._epoch - row.source) for row in rows]

    def install(self, model: LengthModel) -> None:
        """Use a newly fitted model; it is believed until its own answers say otherwise."""
        self.model = model
        self._to_index, self._during = list(self._during or ()), None
        self.index()
        self._modelled.error = min(self._modelled.error, self._cold.error)
        self._modelled.count = min(self._modelled.count, 20)
        self._prefers_model = True

    def drop_model(self) -> None:
        """Go back to running numbers; the rows are kept, and the next fit is due as usual."""
        self.model = None
        self._to_index = []

    def reading(self, hour: float) -> History:
        """Return the scope's own history."""
        return self.history.reading(hour)

    @property
    def num_bytes(self) -> int:
        """About the memory that its model takes."""
        return 0 if self.model is None else model_bytes(self.model)

    @property
    def epoch(self) -> int:
        """Changes of the traffic so far."""
        return self._epoch

    def restore(self, rows: Sequence[Row], epoch: int) -> None:
        """Put back what was stored."""
        self.rows.extend(rows)
        self._epoch = epoch
        self._fresh = len(self.rows) if self.model is None else 0


def _of_source(row: Row, source: int) -> Row:
    return row if row.source == source else dataclasses.replace(row, source=source)


def model_bytes(model: LengthModel) -> int:
    """Return the bytes of a model's arrays."""
    parts: list[object] = [model, model.ridge, model.near, model.trees]
    total = 0
    for part in parts:
        for name in getattr(type(part), "__slots__", ()):
            total += int(getattr(getattr(part, name), "nbytes", 0))
    return total
