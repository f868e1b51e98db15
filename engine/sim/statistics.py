"""Quantiles, means with intervals, Jain's index and log-spaced histograms; it knows no request.

Standard library only, and exact where it can be: histograms of several runs add up without loss,
so a distribution over seeds is the distribution of all their requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

CONFIDENCE = 0.95

# Log-spaced edges of histograms in milliseconds: 1 ms to 10^7 ms (2.8 hours), 24 a decade.
EDGES_PER_DECADE = 24
EDGE_DECADES = 7


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of an ascending, non-empty sequence lies.

    Linear between the two nearest ranks (type 7 of Hyndman and Fan, 1996: what numpy and R do by
    default). Infinity may stand at the end, for what never happened.
    """
    if not ordered:
        raise ValueError("a quantile of nothing")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in [0, 1], not {share}")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    low = ordered[below]
    # At a whole rank the neighbour above has no say: infinity times 0 is no number.
    if place <= below:
        return low
    high = ordered[below + 1]
    return low if low == high else low + (high - low) * (place - below)


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of a non-empty sequence, summed without rounding drift."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Return the sample's standard deviation (n - 1 below), 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its two-sided 95 % confidence interval; without bounds for a single value."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width, None where there is none."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def interval(values: Iterable[float]) -> Interval:
    """Return the mean over independent runs with Student's t interval.

    Runs are few (seeds), their means near normal, their variance unknown: Student's case.
    """
    known = list(values)
    if not known:
        raise ValueError("an interval of nothing")
    middle = mean(known)
    if len(known) < 2 or not math.isfinite(middle):
        return Interval(middle, None, None, len(known))
    half = t_quantile(0.5 + CONFIDENCE / 2, len(known) - 1) * deviation(known)
    half /= math.sqrt(len(known))
    return Interval(middle, middle - half, middle + half, len(known))


@cache
def t_quantile(share: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution for a share in [0.5, 1)."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {degrees}")
    if not 0.5 <= share < 1.0:
        raise ValueError(f"share must be in [0.5, 1), not {share}")
    low, high = 0.0, 1.0
    while t_cumulative(high, degrees) < share:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if t_cumulative(middle, degrees) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_cumulative(t: float, degrees: int) -> float:
    """Return P(T <= t) for t >= 0: one minus half the regularised incomplete beta function."""
    return 1.0 - 0.5 * _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return I_x(a, b), by the continued fraction DLMF 8.17.22 (https://dlmf.nist.gov/8.17)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below this
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / a
    # Evaluated from the far end: 200 terms are far more than any degrees of freedom need.
    tail = 1.0
    for n in range(200, 0, -1):
        m = n // 2
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        tail = 1.0 + term / tail
    return front / tail


def jain(values: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 when all get the same, 1/n when one gets everything.

    R. Jain, D. Chiu, W. Hawe, DEC-TR-301 (1984). All zero is equal, hence 1.
    """
    if not values:
        raise ValueError("fairness among nobody")
    squares = math.fsum(v * v for v in values)
    return 1.0 if squares <= 0 else math.fsum(values) ** 2 / (len(values) * squares)


@cache
def edges() -> tuple[float, ...]:
    """Return the upper edges of a histogram's bins in milliseconds, ascending."""
    return tuple(10.0 ** (i / EDGES_PER_DECADE) for i in range(EDGE_DECADES * EDGES_PER_DECADE + 1))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many of `offered` durations were at most each edge; the rest took longer, or for ever.

    `bins` holds (index of the edge, count), ascending, only bins that are not empty: a duration
    falls into the first edge that is not below it. Values under 1 ms fall into the first bin.
    """

    offered: int
    bins: tuple[tuple[int, int], ...]

    @staticmethod
    def of(durations_ms: Iterable[float], offered: int) -> Histogram:
        """Count the durations that are known, of so many that were offered."""
        counts: dict[int, int] = {}
        upper = edges()
        for duration in durations_ms:
            index = bisect_left(upper, duration)
            if index < len(upper):
                counts[index] = counts.get(index, 0) + 1
        if sum(counts.values()) > offered:
            raise ValueError(f"more durations than the {offered} offered")
        return Histogram(offered, tuple(sorted(counts.items())))

    @staticmethod
    def total(parts: Iterable[Histogram]) -> Histogram:
        """Add histograms up."""
        offered, counts = 0, dict[int, int]()
        for part in parts:
            offered += part.offered
            for index, count in part.bins:
                counts[index] = counts.get(index, 0) + count
        return Histogram(offered, tuple(sorted(counts.items())))

    def share_at(self, duration_ms: float) -> float:
        """Return the share of what was offered that took at most this long, judged at edges."""
        if not self.offered:
            return 0.0
        last = bisect_right(edges(), duration_ms) - 1
        return sum(count for index, count in self.bins if index <= last) / self.offered

    def cumulative(self) -> list[tuple[float, float]]:
        """Return (milliseconds, share at most that long) where the share rises, ascending."""
        upper, sums = edges(), accumulate(count for _, count in self.bins)
        return [
            (upper[index], done / self.offered)
            for (index, _), done in zip(self.bins, sums, strict=True)
        ]
