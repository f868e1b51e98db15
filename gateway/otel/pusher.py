"""Pushes one signal to its collector from a thread of its own; what is pushed it does not know.

Whoever has something to say puts it into a bounded queue and is never kept waiting; messages are
built in the thread. A collector that is away costs retries with growing pauses, then items, which
are counted; one that hangs costs its time limit. The end is bounded whatever the collector does.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.core.clock import NS_PER_S, MonotonicClock
from gateway.otel.link import Link, Outcome

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
GIVE_UP_S = 60.0  # a batch that could not be sent for so long makes room for later ones
LAST_TRY_S = 0.1  # what a last batch gets at least, when time is up

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Source(Protocol):
    """What is there to push."""

    def batches(self) -> Iterator[tuple[bytes, int]]:
        """Yield messages with the number of items in each, until nothing is left."""
        ...


class Queue(Generic[T]):
    """Items that wait to be pushed, at most `most` of them; `put` is called from any thread."""

    def __init__(self, encode: Callable[[list[T]], bytes], most: int, batch: int) -> None:
        self._encode = encode
        self._most = most
        self._batch = batch
        self._items: deque[T] = deque()
        self.num_dropped = 0
        self.on_full: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Keep an item, or count it as dropped; never waits."""
        count = len(self._items)
        if count >= self._most:
            self.num_dropped += 1
            return
        self._items.append(item)
        if count + 1 == self._batch:
            self.on_full()

    def batches(self) -> Iterator[tuple[bytes, int]]:
        """Yield what waits, batch after batch."""
        while self._items:
            batch = [self._items.popleft() for _ in range(min(len(self._items), self._batch))]
            yield self._encode(batch), len(batch)


@dataclass(frozen=True, slots=True)
class PushState:
    """Items so far; `failed` were given up after retries, or rejected by the collector."""

    sent: int
    failed: int
    dropped: int


class Pusher:
    """A thread that pushes every `interval_s`, or sooner when it is woken; `start` it once."""

    def __init__(
        self, signal: str, link: Link, source: Source, *, interval_s: float, timeout_s: float
    ) -> None:
        self.signal = signal
        self._link = link
        self._source = source
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = MonotonicClock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._until_ns = 0  # when closing: the end of all tries
        self._sent = self._failed = 0
        self._num_odd = 0
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name=f"otlp-{signal}", daemon=True)

    def start(self) -> None:
        """Begin to push."""
        self._thread.start()

    def wake(self) -> None:
        """Push soon; called from any thread."""
        self._wake.set()

    @property
    def state(self) -> PushState:
        """Return what became of the items."""
        dropped = self._source.num_dropped if isinstance(self._source, Queue) else 0
        return PushState(self._sent, self._failed, dropped)

    def end(self, until_ns: int) -> None:
        """Ask for one last push, which may take until then."""
        self._until_ns = until_ns
        self._closing.set()
        self._wake.set()

    def join(self) -> bool:
        """Wait until it has ended, at most until the time told; False where it had to be left."""
        if self._thread.is_alive():
            self._thread.join(max(self._until_ns - self._clock.now_ns(), 0) / NS_PER_S)
        self._link.close()
        return not self._thread.is_alive()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            is_last = self._closing.is_set()
            # One odd record must not end all telemetry of this process without a word.
            try:
                for payload, count in self._source.batches():
                    self._deliver(payload, count)
            except Exception:
                self._say_odd()

    def _say_odd(self) -> None:
        self._num_odd += 1
        if self._num_odd == 1:  # once: it may come again with every push
            logger.exception("some %s cannot be made into a message", self.signal)

    def _deliver(self, payload: bytes, count: int) -> None:
        give_up_ns = self._clock.now_ns() + int(GIVE_UP_S * NS_PER_S)
        pause_s = FIRST_PAUSE_S
        while True:
            if self._closing.is_set() and self._clock.now_ns() > self._until_ns:
                self._failed += count
                return
            outcome = self._link.send(payload, self._time_left_s())
            if outcome.is_taken:
                self._taken(count, outcome)
                return
            self._note(outcome)
            wait_s = pause_s if outcome.retry_after_s is None else outcome.retry_after_s
            is_late = self._clock.now_ns() + wait_s * NS_PER_S > give_up_ns
            # Closing ends the pause, and there is one last try.
            if self._closing.is_set() or is_late or not outcome.may_retry:
                self._failed += count
                return
            self._closing.wait(wait_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _time_left_s(self) -> float:
        if not self._closing.is_set():
            return self._timeout_s
        left_s = (self._until_ns - self._clock.now_ns()) / NS_PER_S
        return min(max(left_s, LAST_TRY_S), self._timeout_s)

    def _taken(self, count: int, outcome: Outcome) -> None:
        rejected = min(outcome.num_rejected, count)
        self._sent += count - rejected
        self._failed += rejected
        if self._is_away:
            self._is_away = False
            logger.warning("%s can be pushed again", self.signal)

    def _note(self, outcome: Outcome) -> None:
        """Say once that the collector is away, not at every try."""
        if not self._is_away:
            self._is_away = True
            logger.warning("%s cannot be pushed: %s", self.signal, outcome.why)
