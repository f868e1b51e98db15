"""When a refused client should come back, and what became of those that did; it refuses nobody.

A hint is the time that the class itself needs to make room, rounded up to a step: neither another
tenant's load nor another class's can be read off it. Hints are judged: whoever returns at the time
it was told should be let in, and served as promised.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from engine.core.admission import HINT_STEPS_S
from engine.core.clock import NS_PER_MS, NS_PER_S

COLD_HINT_S = 2.0  # nothing has left the queue yet, so its rate is unknown
RATE_SAMPLES = 128  # departures remembered per tier
RATE_WINDOW_NS = 30 * NS_PER_S

MOST_HINTS = 4096  # keys with a hint that are remembered
PATIENCE = 0.5  # of a hint's length: who comes later than that has come for other reasons
EARLY_NS = 50 * NS_PER_MS  # clocks differ, and a hint is rounded to milliseconds


def step_hint_ms(seconds: float) -> int:
    """Return the smallest step that is not below `seconds`, in milliseconds."""
    return 1000 * next((step for step in HINT_STEPS_S if seconds <= step), HINT_STEPS_S[-1])


class DrainRate:
    """How fast places in a queue become free, from the latest departures of its busy period.

    While nobody else waits, departures say how fast requests come, not how fast they are served.
    """

    __slots__ = ("_departures",)

    def __init__(self) -> None:
        self._departures: deque[int] = deque(maxlen=RATE_SAMPLES)

    def note(self, now_ns: int, others_wait: bool) -> None:
        """One request got its first token; `others_wait` tells whether more are behind it."""
        if others_wait:
            self._departures.append(now_ns)
        else:
            self._departures.clear()

    def per_second(self, now_ns: int) -> float | None:
        """Return the rate over the latest window; None where too little is known."""
        while self._departures and now_ns - self._departures[0] > RATE_WINDOW_NS:
            self._departures.popleft()
        if len(self._departures) < 2:
            return None
        span_ns = max(now_ns - self._departures[0], 1)
        return (len(self._departures) - 1) * NS_PER_S / span_ns


@dataclass(frozen=True, slots=True)
class HintScore:
    """What became of hints so far.

    `followed`: the key came back when it was told to; of those `admitted`: was let in; of those
    `on_time`: had its first token in time.
    """

    given: int = 0
    followed: int = 0
    admitted: int = 0
    on_time: int = 0


class HintBook:
    """The latest hint of each key and tier, bounded; used from the event loop."""

    def __init__(self) -> None:
        self._due: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        self._given = self._followed = self._admitted = self._on_time = 0

    @property
    def score(self) -> HintScore:
        """Return the counts."""
        return HintScore(self._given, self._followed, self._admitted, self._on_time)

    def give(self, key_id: str, tier: str, hint_ms: int, now_ns: int) -> None:
        """A request of this key was refused with this hint; one that still stands is kept.

        Else the hints of a key that never stops asking would never come to their time.
        """
        self._given += 1
        stands = self._due.get((key_id, tier))
        if stands is not None and now_ns <= stands[1]:
            return
        due_ns = now_ns + hint_ms * NS_PER_MS
        last_ns = due_ns + int(hint_ms * NS_PER_MS * PATIENCE)
        self._due[(key_id, tier)] = (due_ns, last_ns)
        self._due.move_to_end((key_id, tier))
        if len(self._due) > MOST_HINTS:
            self._due.popitem(last=False)

    def comes_back(self, key_id: str, tier: str, now_ns: int) -> bool:
        """A request of this key has come: is it one that was told to come now?

        True once a hint. Who comes before its time has not taken the hint, and may still do so.
        """
        window = self._due.get((key_id, tier))
        if window is None or now_ns < window[0] - EARLY_NS:
            return False
        del self._due[(key_id, tier)]
        if now_ns > window[1]:
            return False
        self._followed += 1
        return True

    def was_admitted(self) -> None:
        """One that came back was let in."""
        self._admitted += 1

    def was_on_time(self) -> None:
        """One that came back and was let in had its first token in time."""
        self._on_time += 1
