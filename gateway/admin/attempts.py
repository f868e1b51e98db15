"""How many logins may be tried from one address and for one account: bounded, forgotten in time.

An attempt is counted before its password is looked at, and taken back when it was right: many at
once are no way around it. Accounts are kept as digests: people type passwords into the wrong field.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from engine.core.clock import NS_PER_MS, NS_PER_S, Clock

MAX_KEPT = 10_000


class Bucket:
    """Counts by name, of which one is forgiven every so often; the oldest names make room."""

    def __init__(self, clock: Clock, burst: int, refill_s: float) -> None:
        self._clock = clock
        self._burst = burst
        self._refill_ns = int(refill_s * NS_PER_S)
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait_ms(self, name: str) -> int:
        """Return how long `name` has to wait before one more; 0: not at all."""
        excess = self._count(name) - self._burst + 1
        return max(int(excess * self._refill_ns / NS_PER_MS), 0)

    def add(self, name: str, by: int = 1) -> None:
        """Count one more, or one less."""
        self._counts[name] = (max(self._count(name) + by, 0.0), self._clock.now_ns())
        self._counts.move_to_end(name)
        while len(self._counts) > MAX_KEPT:
            self._counts.popitem(last=False)

    def _count(self, name: str) -> float:
        count, at_ns = self._counts.get(name, (0.0, 0))
        return max(count - (self._clock.now_ns() - at_ns) / self._refill_ns, 0.0)


class Attempts:
    """Attempts to log in; used from one event loop."""

    ADDRESS_BURST, ADDRESS_REFILL_S = 20, 6.0
    ACCOUNT_BURST, ACCOUNT_REFILL_S = 10, 30.0

    def __init__(self, clock: Clock) -> None:
        self._addresses = Bucket(clock, self.ADDRESS_BURST, self.ADDRESS_REFILL_S)
        self._accounts = Bucket(clock, self.ACCOUNT_BURST, self.ACCOUNT_REFILL_S)

    def begin(self, address: str, account: str) -> int:
        """Count an attempt; return 0, or how long to wait (ms) where it may not be made now."""
        account = _digest(account)
        wait_ms = max(self._addresses.wait_ms(address), self._accounts.wait_ms(account))
        if wait_ms == 0:
            self._addresses.add(address)
            self._accounts.add(account)
        return wait_ms

    def succeeded(self, address: str, account: str) -> None:
        """The attempt was right: it does not count."""
        self._addresses.add(address, -1)
        self._accounts.add(_digest(account), -1)


def _digest(account: str) -> str:
    return hashlib.sha256(account.encode(errors="replace")).hexdigest()
