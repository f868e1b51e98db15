"""How long an answer will be: the protocol, what remains of a guess, and a plain predictor.

It knows orders and the lengths of finished answers, and no model of text (engine/learning does).
Predictions order requests; nothing that must be safe depends on them (laws L25, L26).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from statistics import NormalDist
from typing import Protocol

from engine.core.request import LengthEstimate, RequestOrder


class LengthPredictor(Protocol):
    """Guesses once, when a request arrives; is told how it ended."""

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return a guess for this order; must be quick and must not raise."""
        ...

    def observe(self, order: RequestOrder, num_output_tokens: int) -> None:
        """A request finished by itself after that many tokens."""
        ...


# A guess that was overrun: half as much again as was generated so far is still to come. The mean
# residual life of the papers' length traces is of this order, and it is never 0 (an overrunning
# request that seemed finished would hold the first place for ever).
OVERRUN_SHARE = 0.5


def remaining_tokens(guess: float, generated: int, max_tokens: int) -> float:
    """Return how many tokens are still to come, at least 1, given a guess of the whole length."""
    left = guess - generated
    if left < 1.0:
        left = max(1.0, OVERRUN_SHARE * generated)
    return min(left, max(1.0, float(max_tokens - generated)))


# How many standard deviations above a point of a normal distribution 9 of 10 lie of those that lie
# beyond that point, for points from -4 to 6 in twentieths.
Z90 = 1.2816
LEAST_Z, MOST_Z, STEPS_PER_Z = -4.0, 6.0, 20
LEAST_SPREAD = 0.02  # of the log: whoever is that sure of itself is taken at its word


def _beyond() -> tuple[float, ...]:
    normal = NormalDist()
    points = [LEAST_Z + i / STEPS_PER_Z for i in range(int((MOST_Z - LEAST_Z) * STEPS_PER_Z) + 1)]
    return tuple([-normal.inv_cdf(0.05 * math.erfc(z / math.sqrt(2.0))) - z for z in points])


BEYOND = _beyond()


def remaining_high(estimate: LengthEstimate, generated: int, max_tokens: int) -> float:
    """Return a 90th percentile of what is still to come, at least 1; for memory, not for order.

    Middle and high make a log-normal, and that so much was generated already says that the length
    lies beyond it. Of answers that overran their middle guess 96 % end below it, where high less
    generated holds for 85 % (sharegpt8k). Takes about a microsecond.
    """
    middle, high = max(1.0, estimate.middle), estimate.high
    most = max(1.0, float(max_tokens - generated))
    spread = math.log(high / middle) / Z90 if high > middle else 0.0
    if generated < 1 or spread < LEAST_SPREAD:
        return min(remaining_tokens(high, generated, max_tokens), most)
    z = math.log(generated / middle) / spread
    if z <= LEAST_Z:
        return min(max(1.0, high - generated), most)
    if z >= MOST_Z:
        above = math.log(10.0) / z  # a normal's tail falls like an exponential there
    else:
        place = (z - LEAST_Z) * STEPS_PER_Z
        low = int(place)
        above = BEYOND[low] + (place - low) * (BEYOND[low + 1] - BEYOND[low])
    return min(max(1.0, generated * math.expm1(min(spread * above, 20.0))), most)


PRIOR_TOKENS = 256.0
HIGH_FACTOR = 2.5  # p90 over median of a log-normal with sigma 0.7, the spread within a tenant
MEMORY = 0.05  # weight of the newest answer
MOST_TENANTS = 10_000


class HistoryPredictor:
    """The running geometric mean of a tenant's finished answers; a prior where there is none.

    Bounded: the tenant heard of longest ago is forgotten.
    """

    __slots__ = ("_logs",)

    def __init__(self) -> None:
        self._logs: OrderedDict[str, float] = OrderedDict()

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return the tenant's usual length, never more than `max_tokens`."""
        middle = math.exp(self._logs.get(order.tenant, math.log(PRIOR_TOKENS)))
        most = float(order.sampling.max_tokens)
        return LengthEstimate(min(middle, most), min(middle * HIGH_FACTOR, most))

    def observe(self, order: RequestOrder, num_output_tokens: int) -> None:
        """Move the tenant's mean a little towards this length."""
        log = math.log(max(1, num_output_tokens))
        known = self._logs.pop(order.tenant, None)
        self._logs[order.tenant] = log if known is None else known + MEMORY * (log - known)
        if len(self._logs) > MOST_TENANTS:
            self._logs.popitem(last=False)
