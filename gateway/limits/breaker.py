"""Whether the store is believed to answer: a circuit breaker; it calls nobody and knows no store.

    CLOSED --- failures in a row ---> OPEN --- probe due ---> PROBING --- all well ---> CLOSED
                                       ^                         |
                                       +------- failed ----------+

The probe is the limiter's own, between requests: no customer's request is spent on finding out.
"""

from __future__ import annotations

from enum import StrEnum

from engine.core.clock import NS_PER_MS, Clock

MAX_FAILURES = 3
LEAST_PAUSE_MS = 250
MOST_PAUSE_MS = 4000


class BreakerState(StrEnum):
    """Closed list, safe as a metric's label."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Breaker:
    """Counts failures in a row and says when to try again: soon at first, then less often."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_ms = LEAST_PAUSE_MS
        self._probe_ns = 0
        self.state = BreakerState.CLOSED
        self.num_opened = 0

    @property
    def is_closed(self) -> bool:
        """True while requests may go to the store."""
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """The store answered a request."""
        self._failures = 0

    def failed(self) -> bool:
        """The store did not answer a request; True where this opens the circuit."""
        self._failures += 1
        if self.state is not BreakerState.CLOSED or self._failures < MAX_FAILURES:
            return False
        self.state = BreakerState.OPEN
        self.num_opened += 1
        self._pause_ms = LEAST_PAUSE_MS
        self._probe_ns = self._clock.now_ns() + self._pause_ms * NS_PER_MS
        return True

    def wait_ms(self) -> int:
        """Return how long until the next probe is due; 0 where it is."""
        return max(-(-(self._probe_ns - self._clock.now_ns()) // NS_PER_MS), 0)

    def probe(self) -> None:
        """A probe begins."""
        assert self.state is BreakerState.OPEN
        self.state = BreakerState.PROBING

    def probed(self, *, well: bool) -> None:
        """A probe has ended; after a bad one the next pause is twice as long."""
        assert self.state is BreakerState.PROBING
        if well:
            self.state = BreakerState.CLOSED
            self._failures = 0
            return
        self.state = BreakerState.OPEN
        self._pause_ms = min(self._pause_ms * 2, MOST_PAUSE_MS)
        self._probe_ns = self._clock.now_ns() + self._pause_ms * NS_PER_MS
