"""A length's guess as a log-normal, and what an answer that was cut off says; it keeps nothing.

Logs are of one plus a token count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.core.request import LengthEstimate

Z90 = 1.2816  # the 90th percentile of the standard normal distribution
LEAST_SPREAD = 0.05
MOST_LOG = 20.0


@dataclass(frozen=True, slots=True)
class LogGuess:
    """The middle of the log of a length, and the standard deviation about it."""

    log: float
    spread: float

    @property
    def high_log(self) -> float:
        """The log of the 90th percentile."""
        return self.log + Z90 * self.spread

    def estimate(self, max_tokens: int) -> LengthEstimate:
        """Return the guess in tokens, from 1 to `max_tokens`."""
        most = float(max(1, max_tokens))
        middle = math.expm1(min(self.log, MOST_LOG))
        high = math.expm1(min(self.high_log, MOST_LOG))
        return LengthEstimate(min(max(middle, 1.0), most), min(max(high, 1.0), most))


def guess_of(estimate: LengthEstimate) -> LogGuess:
    """Return the log-normal with this middle and this 90th percentile."""
    log = math.log1p(max(0.0, estimate.middle))
    high = math.log1p(max(0.0, estimate.high))
    return LogGuess(log, max(LEAST_SPREAD, (high - log) / Z90))


def completed(log_length: float, is_whole: bool, guess: LogGuess) -> float:
    """Return the log that an answer counts as: its own, where it ended by itself.

    One that was cut is only known to be longer. Where the guess says so too, it is believed, and
    the answer moves nothing; where the guess was shorter, the answer counts as the mean of what
    the guess leaves beyond the cut (Buckley and James, Biometrika 1979). Nothing else would do:
    taken as they are, cut answers teach short ones; left out, they teach that all are short.
    """
    if is_whole:
        return log_length
    if guess.log >= log_length:
        return guess.log
    spread = max(LEAST_SPREAD, guess.spread)
    z = (log_length - guess.log) / spread
    if z > 6.0:  # mean excess of a normal tail: 1 / z
        return log_length + spread / z
    tail = 0.5 * math.erfc(z / math.sqrt(2.0))
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return guess.log + spread * density / tail
