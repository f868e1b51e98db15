"""How a latency model learns from steps: a level that moves within steps, prices within hundreds.

It knows features and times of steps, and no batch, clock or profile but the prices it begins with.
Both learn relative errors, whose size is bounded by how large errors have lately been: a step that
took ten times as long, because the machine did something else, teaches as little as one that was
just beyond the usual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

# Level: three memories learn side by side, the one that has lately been right counts. In steady
# noise that is the slowest, after a change the fastest: this is the detection of drift.
RATES = (0.05, 0.15, 0.4)
SCORE_RATE = 0.03
CLEARLY_BETTER = 0.97  # of the misses of the one that counts now
SPREAD_RATE = 0.05
FIRST_SPREAD = 0.2
OUTLIER = 2.0  # an error beyond so many times the mean one counts as just that large
BOUND_RANGE = (0.05, 1.0)  # of what an error may count, as logarithms
MOST_LEVEL = math.log(1000.0)

# Prices: half of what they know is younger than so many steps; fewer while the level is off.
HALF_LIFE = 400.0
HASTE = 20.0  # times the level's logarithm: at 1.05 prices forget twice as fast
MOST_HASTE = 16.0
FAITH = 0.25  # times the spread: the say of the first shape, over what is known of a price
CAUTION = 8.0  # a price moves as if so many steps like the last had confirmed it
MOVES = 3  # prices moved per step; all have their turn
LEAST_PRICE = 1e-3  # of what the profile said, so that nothing becomes free
RESCALE = 1e9


class Level:
    """How slow the device is at present, over what its prices say: 1 where they are right."""

    __slots__ = ("_best", "_misses", "logs", "spread", "value")

    def __init__(self) -> None:
        self.logs = [0.0] * len(RATES)
        self._misses = [0.0] * len(RATES)
        self._best = 0
        self.spread = FIRST_SPREAD
        self.value = 1.0

    @property
    def log(self) -> float:
        """The logarithm of the level."""
        return self.logs[self._best]

    def learn(self, log_ratio: float) -> float:
        """Learn from a step that took exp(log_ratio) times what the prices say.

        Returns how large an error counts at the most, as a logarithm.
        """
        logs, misses, best, (least, most) = self.logs, self._misses, self._best, BOUND_RANGE
        bound = OUTLIER * self.spread
        bound = least if bound < least else min(bound, most)
        error = abs(log_ratio - logs[best])
        self.spread += SPREAD_RATE * (min(error, 2 * bound) - self.spread)
        for i, rate in enumerate(RATES):
            error = log_ratio - logs[i]
            if error > bound:
                error = bound
            elif error < -bound:
                error = -bound
            misses[i] += SCORE_RATE * (abs(error) - misses[i])
            logs[i] += rate * error
        fewest = min(misses)
        if fewest < CLEARLY_BETTER * misses[best]:
            self._best = misses.index(fewest)
        self._settle()
        return bound

    def follow(self, other: Level, before: Sequence[float], share: float) -> None:
        """Move each memory by a share of what the other's has moved since `before`."""
        logs, others = self.logs, other.logs
        for i, then in enumerate(before):
            logs[i] += share * (others[i] - then)
        self._settle()

    def _settle(self) -> None:
        log = self.logs[self._best]
        if not -MOST_LEVEL <= log <= MOST_LEVEL:
            log = min(max(log, -MOST_LEVEL), MOST_LEVEL)
            self.logs = [log] * len(RATES)
        self.value = math.exp(log)

    def set(self, value: float) -> None:
        """Stand at a level that is known."""
        self.logs = [math.log(value)] * len(RATES)
        self.value = value


class PriceLearner:
    """Prices by least squares with forgetting, never negative, moved a few at a time.

    The sums that the normal equations are made of forget by growing weights (a step weighs more
    than all before it did); each lesson then moves a few prices to where the sums want them while
    the others stand still, cut off at nothing. That is coordinate descent for non-negative least
    squares (Franc, Hlavac and Navara, 2005), spread over steps; recursive least squares would give
    negative prices, and its matrix blows up in directions that no step has. Where steps do not tell
    prices apart, noise would: there the shape of the first prices counts (a ridge, the
    stronger the noisier steps are). A price that no step tells of stays what it was.
    """

    __slots__ = ("_first", "_gains", "_gram", "_least", "_turn", "_weight", "prices")

    def __init__(self, prices: Sequence[float]) -> None:
        size = len(prices)
        self.prices = list(prices)
        self._first = tuple(prices)
        self._least = [LEAST_PRICE * price for price in prices]
        self._gram = [[0.0] * (i + 1) for i in range(size)]  # symmetric: half of it
        self._gains = [0.0] * size
        self._weight = 1.0
        self._turn = 0

    def learn(
        self, features: Sequence[float], told: float, ratio: float, level: Level, scale: float
    ) -> None:
        """Learn from a step that should have taken `told` by the prices, and took ratio * told.

        `told` is positive; steps take `scale` times what the first prices say of them.
        """
        haste = min(MOST_HASTE, 1.0 + HASTE * abs(level.log))
        faith = FAITH * level.spread
        weight = self._weight * (1.0 + haste * math.log(2) / HALF_LIFE)
        row = [value / told for value in features]
        present = [i for i, value in enumerate(row) if value]
        gram, gains = self._gram, self._gains
        for place, i in enumerate(present):
            weighted, line = weight * row[i], gram[i]
            gains[i] += weighted * ratio
            for j in present[: place + 1]:
                line[j] += weighted * row[j]
        prices, count = self.prices, len(present)
        for turn in range(self._turn, self._turn + min(MOVES, count)):
            i = present[turn % count]
            told_gain = sum(map(mul, gram[i], prices))  # of the prices up to i
            for j in range(i + 1, len(prices)):
                told_gain += gram[j][i] * prices[j]
            known, caution = gram[i][i], CAUTION * weight * row[i] * row[i]
            pull = faith * known
            missing = gains[i] - told_gain + pull * (scale * self._first[i] - prices[i])
            prices[i] = max(prices[i] + missing / (known + pull + caution), self._least[i])
        self._turn = (self._turn + MOVES) % 5040  # any count divides it
        self._weight = weight
        if weight > RESCALE:
            self._rescale()

    def _rescale(self) -> None:
        self._gram = [[value / self._weight for value in row] for row in self._gram]
        self._gains = [value / self._weight for value in self._gains]
        self._weight = 1.0
