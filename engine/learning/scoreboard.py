"""How good guesses were, judged as their answers end; it knows guesses and lengths only.

Every guess is scored on an answer it could not know (prequential, Dawid 1984). That decides which
of two ways to guess is used, how far the high quantile lies above the middle, and what is told to
the operator.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from engine.learning.lognormal import LogGuess

SHORT_MEMORY = 60  # answers that an error goes back, about
WINDOW = 256  # answers that order is judged on
HIGH = 0.9  # of answers that should end below the high quantile
STEP = 0.06  # how fast the high quantile is moved
MOST_STRETCH = 1.5  # of the log of the factor on a spread


class Track:
    """One way to guess: its running error in logs, and how much wider its spread must be.

    The spread follows its misses (adaptive conformal inference, Gibbs and Candes 2021): up by 0.9
    of a step after a miss, down by 0.1 after a hit, so that one in ten is a miss whatever comes.
    """

    __slots__ = ("count", "error", "stretch")

    def __init__(self) -> None:
        self.count = 0
        self.error = 0.0
        self.stretch = 0.0

    def widened(self, guess: LogGuess) -> LogGuess:
        """Return the guess with the spread that its misses ask for."""
        return LogGuess(guess.log, guess.spread * math.exp(self.stretch))

    def add(self, guess: LogGuess, log_length: float) -> None:
        """Score the guess (as it was before it was widened) by an answer that ended by itself."""
        self.count += 1
        share = 1.0 / min(self.count, SHORT_MEMORY)
        self.error += share * (abs(log_length - guess.log) - self.error)
        self._move(is_miss=log_length > self.widened(guess).high_log)

    def cut(self, guess: LogGuess, log_length: float) -> None:
        """An answer was cut off here: above the high quantile it is a miss, else nothing is known.

        Without those whose guesses fall short would be counted only where they happened to end.
        """
        if log_length > self.widened(guess).high_log:
            self._move(is_miss=True)

    def _move(self, *, is_miss: bool) -> None:
        moved = self.stretch + STEP * (is_miss - (1.0 - HIGH))
        self.stretch = min(max(moved, -MOST_STRETCH), MOST_STRETCH)


class Scoreboard:
    """The newest guesses that were given, with what came."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float, float, bool]] = deque(maxlen=WINDOW)

    def add(self, middle: float, high: float, log_length: float, *, is_whole: bool = True) -> None:
        """Note a guess that was given (logs) and the log of the answer's length.

        One that was cut (`is_whole` False) counts for the high quantile only.
        """
        self._rows.append((middle, high, log_length, is_whole))

    def read(self) -> tuple[float, float, float]:
        """Return mean error in logs, share below the high quantile, share of pairs in order.

        NaN where too few have ended yet. Equal guesses count as half in order.
        """
        rows = np.array(list(self._rows), np.float64).reshape(-1, 4)
        if len(rows) < 2:
            return math.nan, math.nan, math.nan
        covered = float((rows[:, 2] <= rows[:, 1]).mean())
        middle, _, true, _ = rows[rows[:, 3] == 1.0].T
        if len(true) < 2:
            return math.nan, covered, math.nan
        signs = np.sign(middle[:, None] - middle[None]) * np.sign(true[:, None] - true[None])
        differs = true[:, None] != true[None]
        order = float((signs[differs].mean() + 1) / 2) if differs.any() else math.nan
        return float(np.abs(middle - true).mean()), covered, order
