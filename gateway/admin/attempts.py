"""How many logins may be tried from one address and for one account: bounded, forgotten in time.

Of an account few from one address, and more from all: nobody keeps somebody else out from a single
address, and who has many guesses at a bounded rate all the same.

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
    PAIR_BURST, PAIR_REFILL_S = 10, 30.0  # of one account, from one address
    ACCOUNT_BURST, ACCOUNT_REFILL_S = 100, 3.0  # of one account, from wherever

    def __init__(self, clock: Clock) -> None:
        self._addresses = Bucket(clock, self.ADDRESS_BURST, self.ADDRESS_REFILL_S)
        self._pairs = Bucket(clock, self.PAIR_BURST, self.PAIR_REFILL_S)
        self._accounts = Bucket(clock, self.ACCOUNT_BURST, self.ACCOUNT_REFILL_S)

    def begin(self, address: str, account: str) -> int:
        """Count an attempt; return 0, or how long to wait (ms) where it may not be made now."""
        counted = self._counted(address, account)
        wait_ms = max(bucket.wait_ms(name) for bucket, name in counted)
        if wait_ms == 0:
            for bucket, name in counted:
                bucket.add(name)
        return wait_ms

    def succeeded(self, address: str, account: str) -> None:
        """The attempt was right: it does not count."""
        for bucket, name in self._counted(address, account):
            bucket.add(name, -1)

    def _counted(self, address: str, account: str) -> tuple[tuple[Bucket, str], ...]:
        digest = _digest(account)
        return (
            (self._addresses, address),
            (self._pairs, f"{digest} {address}"),
            (self._accounts, digest),
        )


def _digest(account: str) -> str:
    return hashlib.sha256(account.encode(errors="replace")).hexdigest()
