"""How long an answer will be: the protocol, what remains of a guess, and a plain predictor.

It knows orders and the lengths of finished answers, and no model of text (engine/learning does).
Predictions order requests; nothing that must be safe depends on them (laws L25, L26).
"""

from __future__ import annotations

import math
from collections import OrderedDict
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
