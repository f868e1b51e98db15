"""When requests come: Poisson, Gamma or as recorded, scaled to a rate; it knows no lengths.

Every process is drawn at rate 1 and then stretched, so that another rate brings the very same
requests closer together or farther apart and changes nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.clock import NS_PER_S


class ArrivalError(ValueError):
    """The arrival process is not one we know, or the trace has no times; one sentence says so."""


@dataclass(frozen=True, slots=True)
class ArrivalProcess:
    """`poisson`, `gamma` with the coefficient of variation of its gaps, or `trace` with jitter."""

    kind: str
    cv: float = 1.0
    jitter_s: float = 0.0


def parse_arrivals(text: str) -> ArrivalProcess:
    """Read `poisson`, `gamma:CV`, `trace` or `trace+jitter:SECONDS`; raises ArrivalError."""
    kind, _, number = text.partition(":")
    if kind in ("poisson", "trace") and not number and ":" not in text:
        return ArrivalProcess(kind)
    if kind in ("gamma", "trace+jitter"):
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if 0 < value <= 1000:
            if kind == "gamma":
                return ArrivalProcess("gamma", cv=value)
            return ArrivalProcess("trace", jitter_s=value)
    raise ArrivalError(
        f"arrivals {text!r}: must be poisson, gamma:CV, trace or trace+jitter:SECONDS"
    )


def draw_gaps(process: ArrivalProcess, count: int, rng: random.Random) -> list[float]:
    """Return `count` gaps before each request with mean 1, for `poisson` and `gamma`."""
    if process.kind == "poisson":
        return [rng.expovariate(1.0) for _ in range(count)]
    shape = 1.0 / process.cv**2
    return [rng.gammavariate(shape, 1.0 / shape) for _ in range(count)]


def times_from_gaps(gaps: Sequence[float], rate: float) -> list[int]:
    """Return arrival times in ns at `rate` requests a second."""
    at, times = 0.0, []
    for gap in gaps:
        at += gap
        times.append(int(at / rate * NS_PER_S))
    return times


def scale_times(seconds: Sequence[float], rate: float) -> list[int]:
    """Stretch recorded times (in order, beginning at 0) to a mean rate; returns ns.

    n requests get a span of n / rate, as a Poisson process has in the mean. A trace whose times
    are all equal stays one burst.
    """
    last = seconds[-1]
    # The last gap has no end: the mean gap of the others stands for it.
    span = last * len(seconds) / (len(seconds) - 1) if len(seconds) > 1 else 0.0
    factor = len(seconds) / rate / span if span > 0 else 0.0
    return [int(second * factor * NS_PER_S) for second in seconds]
