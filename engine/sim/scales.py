"""Axes of a plot: where a value lies, which values get a tick, how they are written.

It knows numbers and pixels, and nothing of what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis; minor ones get a line and no text."""

    value: float
    text: str
    minor: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [low, high] to [start, end] pixels, evenly or evenly per decade."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...]
    is_log: bool = False

    def at(self, value: float, *, beyond: bool = False) -> float:
        """Return the pixel of a value; values outside land on the nearer end, or `beyond` it."""
        if not beyond or self.is_log:
            value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Is this value on the axis?"""
        return self.low <= value <= self.high


def linear(low: float, high: float, start: float, end: float, text: Format) -> Scale:
    """Return an even axis over exactly [low, high], with about five ticks at round values."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    step = round_step((high - low) / 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(Tick(i * step, text(i * step)) for i in range(first, last + 1))
    return Scale(low, high, start, end, ticks)


def round_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is at least this."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= least * (1 - 1e-9))


def up_to(highest: float) -> float:
    """Return a round end for an axis from 0 that must hold `highest`."""
    if not highest > 0:
        return 1.0
    step = round_step(highest / 5)
    return math.ceil(highest / step - 1e-9) * step


def logarithmic(low: float, high: float, start: float, end: float, text: Format) -> Scale:
    """Return an axis over [low, high] > 0, widened to 1, 2 or 5 times a power of ten."""
    low, high = _rounded(low, down=True), _rounded(high, down=False)
    if not high > low:
        high = low * 10
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    narrow = high / low < 50  # less than two decades: 2 and 5 get their text, too
    ticks = []
    for decade in decades:
        for multiple in (1, 2, 5):
            value = multiple * 10.0**decade
            if low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                ticks.append(Tick(value, text(value), minor=multiple != 1 and not narrow))
    return Scale(low, high, start, end, tuple(ticks), is_log=True)


def _rounded(value: float, *, down: bool) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    steps = (1.0, 2.0, 5.0, 10.0)
    if down:
        return next(m * power for m in reversed(steps) if m * power <= value * (1 + 1e-9))
    return next(m * power for m in steps if m * power >= value * (1 - 1e-9))


def percent(share: float) -> str:
    """Return a share as per cent, with as many digits as it has, two at most."""
    return f"{round(100 * share, 2):g}\N{NO-BREAK SPACE}%"


def plain(value: float) -> str:
    """Return a number in at most four digits."""
    return f"{value:.4g}"


def duration(ms: float) -> str:
    """Return milliseconds in the unit that a person would choose."""
    if math.isinf(ms):
        return "never"
    if abs(ms) < 1000:
        return f"{ms:.3g}\N{NO-BREAK SPACE}ms"
    if abs(ms) < 1e6:
        return f"{ms / 1000:.3g}\N{NO-BREAK SPACE}s"
    return f"{ms / 60_000:.3g}\N{NO-BREAK SPACE}min"


def extent(values: Iterable[float]) -> tuple[float, float] | None:
    """Return the least and the greatest finite value, None where there is none."""
    known = [v for v in values if math.isfinite(v)]
    return (min(known), max(known)) if known else None
