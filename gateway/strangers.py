"""How many unknown keys one address may try: a bounded memory of failures; it knows no key.

Guessing a key is hopeless, but each guess that passes the checksum costs the ledger a question.
Only failed questions count, and a key that is remembered as good is never held up, so a bad
neighbour behind the same proxy cannot lock out clients that are at work.
"""

from __future__ import annotations

from collections import OrderedDict

from engine.core.clock import NS_PER_S, Clock

BURST = 60  # failures that may come at once
REFILL_NS = NS_PER_S  # one more is forgiven each second
MAX_ADDRESSES = 10_000


class Strangers:
    """Failures by address, each forgotten in time; the oldest addresses make room for new ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str) -> None:
        """An unknown key came from `address`."""
        self._failures[address] = (self._count(address) + 1, self._clock.now_ns())
        self._failures.move_to_end(address)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def wait_ms(self, address: str) -> int:
        """Return how long `address` has to wait before it may try another key; 0 is not at all."""
        excess = self._count(address) - BURST + 1
        return max(int(excess * REFILL_NS / 1_000_000), 0)

    def _count(self, address: str) -> float:
        count, at_ns = self._failures.get(address, (0.0, 0))
        return max(count - (self._clock.now_ns() - at_ns) / REFILL_NS, 0.0)
