"""What was handed to the engine and is not in its newest load yet; it forecasts nothing.

A load is some steps old, and a request is under way for up to a step. Forgetting those in between
would let a burst in whole; counting them twice would refuse too much. The engine takes requests in
the order in which they were handed over and says how many it has taken, so one count tells.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.core.clock import NS_PER_S
from engine.core.load import EngineLoad
from engine.core.stats import Snapshot

# Longer than any request is under way; after that a count that went wrong must not matter.
FORGET_NS = 10 * NS_PER_S

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Sent(Generic[T]):
    """One request on its way. `is_open` until it has a first token or has ended."""

    what: T
    sent_ns: int
    is_open: bool = True


class InFlight(Generic[T]):
    """Requests in the order in which they were handed over; used from the event loop."""

    def __init__(self) -> None:
        self._sent: deque[Sent[T]] = deque()
        self._total = 0
        self._load: EngineLoad | None = None

    @property
    def load(self) -> EngineLoad | None:
        """The newest load looked at."""
        return self._load

    def look(self, snapshot: Snapshot | None) -> None:
        """Take off whom the engine's newest load tells of; call it before `open_ones`.

        A load may be older than its snapshot. It was read with a snapshot, though, and whoever
        looks at every one of them sees it then.
        """
        if snapshot is None or snapshot.load is self._load:
            return
        self._load = snapshot.load
        if snapshot.submitted_total < self._total:  # another engine: it knows of nobody
            self._sent.clear()
            self._total = snapshot.submitted_total
            return
        taken = snapshot.submitted_total - self._total
        self._total = snapshot.submitted_total
        while taken and self._sent:
            self._sent.popleft()
            taken -= 1

    def add(self, what: T, now_ns: int) -> Sent[T]:
        """One more was handed over."""
        sent = Sent(what, now_ns)
        self._sent.append(sent)
        return sent

    def was_refused(self, sent: Sent[T]) -> None:
        """The engine did not take it, so it was not counted."""
        sent.is_open = False
        try:
            self._sent.remove(sent)
        except ValueError:
            # It was taken off in the place of the next one.
            if self._sent:
                self._sent.popleft()

    def open_ones(self, now_ns: int) -> list[T]:
        """Return those that still wait for a first token, the oldest first."""
        while self._sent and now_ns - self._sent[0].sent_ns > FORGET_NS:
            self._sent.popleft()
        return [sent.what for sent in self._sent if sent.is_open]
