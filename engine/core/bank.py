"""By how much streams are ahead of what was promised: their banks, in time.

It knows running and parked requests and their promises, and decides nothing. A stream that is
ahead can pause for so long without its client noticing; a negative bank is a token overdue.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.clock import NS_PER_MS
from engine.core.request import Request, TbtMode

EVERY_NS = 250 * NS_PER_MS


def bank_ns(request: Request, now_ns: int) -> int | None:
    """Return the time until the next token is due; None where early tokens are no bank.

    They are one in stream mode, and in gap mode where the door paces what the client sees.
    """
    slo = request.order.slo
    if request.first_token_ns is None:
        return None
    if slo.tbt_mode is TbtMode.STREAM:
        return request.first_token_ns + len(request.output) * slo.tbt_ns - now_ns
    if slo.pace_ns:
        return request.shown_ns + slo.tbt_ns - now_ns
    return None


class BankMeter:
    """Reads all banks now and then: `total_ms` is what is ahead, summed, `least_ms` the least."""

    __slots__ = ("_read_ns", "least_ms", "total_ms")

    def __init__(self) -> None:
        self._read_ns: int | None = None
        self.total_ms = 0.0
        self.least_ms: float | None = None

    def read(self, requests: Iterable[Request], now_ns: int) -> None:
        """Look at these requests, unless the last look is younger than `EVERY_NS`."""
        if self._read_ns is not None and now_ns - self._read_ns < EVERY_NS:
            return
        self._read_ns = now_ns
        banks = [bank for r in requests if (bank := bank_ns(r, now_ns)) is not None]
        self.total_ms = sum([max(0, bank) for bank in banks]) / NS_PER_MS
        self.least_ms = min(banks) / NS_PER_MS if banks else None
