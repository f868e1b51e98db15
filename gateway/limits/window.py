"""How one rule is counted in memory: the last minute, a calendar window, seats; it knows no asks.

All three are told the time and never ask for it. They mirror limits.lua, function for function.
"""

from __future__ import annotations

from collections import deque

from gateway.limits.calendar import DAY_US, span
from gateway.limits.rules import Kind
from gateway.limits.store import COLD_WAIT_US, LEAST_WAIT_US, LIVE_S, MOST_WAIT_US
from gateway.limits.values import NEVER, US_PER_S

AFTER_US = DAY_US  # a calendar window beyond its end, for late settlements


class SlidingWindow:
    """Amounts of the last minute, by the second: 61 buckets at most.

    A bucket counts until all of it is older than 60 seconds, so that no 60 seconds, wherever they
    begin, hold more than the limit; what is taken is free again after 60 to 61 seconds.
    """

    __slots__ = ("_buckets", "total")

    def __init__(self) -> None:
        self.total = 0
        self._buckets: deque[list[int]] = deque()  # [second, amount], oldest first

    def advance(self, second: int) -> None:
        """Let go of what has left by `second`; a clock set back by far begins anew."""
        buckets = self._buckets
        if buckets and buckets[-1][0] > second:
            buckets.clear()
            self.total = 0
        while buckets and buckets[0][0] < second - LIVE_S:
            self.total -= buckets.popleft()[1]

    def add(self, second: int, amount: int) -> None:
        """Add to a bucket, or take from it what is there; call `advance` first."""
        buckets = self._buckets
        place = len(buckets)
        while place and buckets[place - 1][0] > second:
            place -= 1
        if place and buckets[place - 1][0] == second:
            bucket = buckets[place - 1]
        elif amount <= 0:
            return
        else:
            bucket = [second, 0]
            buckets.insert(place, bucket)
        change = max(amount, -bucket[1])
        bucket[1] += change
        self.total += change

    def left_in(self, need: int, now_us: int) -> int:
        """Return how long until `need` of it has left; it holds as much."""
        left = 0
        for second, amount in self._buckets:
            left += amount
            if left >= need:
                return (second + LIVE_S + 1) * US_PER_S - now_us
        raise AssertionError("a window cannot give more than it holds")

    def empty_in(self, now_us: int) -> int:
        """Return how long until nothing of it is left."""
        if self.total == 0:
            return 0
        last = next(second for second, amount in reversed(self._buckets) if amount > 0)
        return (last + LIVE_S + 1) * US_PER_S - now_us

    def stand(self, limit: int, amount: int, now_us: int) -> tuple[int, int]:
        """Return what is used, and how long until `amount` more fits."""
        self.advance(now_us // US_PER_S)
        if amount == 0 or self.total + amount <= limit:
            return self.total, 0
        if amount > limit:
            return self.total, NEVER
        return self.total, self.left_in(self.total + amount - limit, now_us)

    def expires_us(self) -> int:
        """Return the moment from which nothing of it matters."""
        return (self._buckets[-1][0] + LIVE_S + 1) * US_PER_S if self._buckets else 0


class CalendarWindow:
    """One calendar window: reserved and spent (`used`), and really spent."""

    __slots__ = ("first_day", "is_told", "next_day", "seed", "seeded_us", "spent", "used")

    def __init__(self, kind: Kind, now_us: int, seed: int) -> None:
        self.first_day, self.next_day = span(kind, now_us)
        self.used = self.spent = self.seed = seed
        self.seeded_us = now_us
        self.is_told = False

    def stand(self, limit: int, amount: int, now_us: int) -> tuple[int, int]:
        """Return what is used, and how long until `amount` more fits."""
        if amount == 0 or self.used + amount <= limit:
            return self.used, 0
        return self.used, NEVER if amount > limit else self.empty_in(now_us)

    def empty_in(self, now_us: int) -> int:
        """Return how long until the next window begins."""
        return self.next_day * DAY_US - now_us

    def share_of(self, limit: int, share: int) -> int:
        """Return the bound for one of `share` workers: its part of what was left at the seed."""
        return self.seed + (limit - self.seed) // share if limit > self.seed else limit

    def add(self, amount: int) -> None:
        """Add, or give back; never below zero."""
        self.used = max(self.used + amount, 0)

    def spend(self, amount: int, alert_at: int) -> bool:
        """Note what was really spent; True once, when it reaches the alert."""
        self.spent += amount
        if self.is_told or not 0 < alert_at <= self.spent:
            return False
        self.is_told = True
        return True


class Calendar:
    """The windows of one rule that may still change: the present one and the one before."""

    __slots__ = ("_kind", "_latest", "_windows")

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._latest: CalendarWindow | None = None
        self._windows: dict[int, CalendarWindow] = {}

    def first_day(self, moment_us: int) -> int:
        """Return the first day of the window that holds a moment, begun or not."""
        return span(self._kind, moment_us)[0]

    def at(self, moment_us: int) -> CalendarWindow | None:
        """Return the window that holds a moment; None where it has not begun or is gone."""
        latest = self._latest
        if latest is not None and latest.first_day * DAY_US <= moment_us < latest.next_day * DAY_US:
            return latest  # nearly always, and without asking the calendar
        return self._windows.get(span(self._kind, moment_us)[0])

    def begin(self, now_us: int, seed: int) -> None:
        """Begin the present window with what it has used already; keep the latest before it."""
        window = self._latest = CalendarWindow(self._kind, now_us, seed)
        earlier = [w for first, w in self._windows.items() if first < window.first_day]
        kept = sorted(earlier, key=lambda w: w.first_day)[-1:]
        self._windows = {w.first_day: w for w in (*kept, window)}

    def expires_us(self) -> int:
        """Return the moment from which nothing of it matters."""
        last = max((window.next_day for window in self._windows.values()), default=0)
        return last * DAY_US + AFTER_US


class Expiring:
    """Names that are each good for the same time from when they were put in, the oldest first."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._until)

    def put(self, name: str, until_us: int) -> None:
        """Put in, or prolong."""
        self._until.pop(name, None)
        self._until[name] = until_us

    def drop(self, name: str) -> None:
        """Take out; harmless when repeated."""
        self._until.pop(name, None)

    def expire(self, now_us: int) -> None:
        """Take out what is no longer good."""
        while self._until and self._until[oldest := next(iter(self._until))] <= now_us:
            del self._until[oldest]

    def holds(self, name: str, now_us: int) -> bool:
        """True for a name that is still good."""
        self.expire(now_us)
        return name in self._until

    def expires_us(self) -> int:
        """Return the moment from which nothing of it matters."""
        return self._until[next(reversed(self._until))] if self._until else 0


class Seats(Expiring):
    """Holds that have a seat, by the end of their lease; who does not renew loses it."""

    __slots__ = ()

    def stand(self, limit: int, amount: int, now_us: int, mean_us: int) -> tuple[int, int]:
        """Return the seats taken, and about how long until one is free for `amount`.

        Someone must be done first, nobody knows when: the mean time of a hold, over the holders.
        """
        self.expire(now_us)
        taken = len(self)
        if amount == 0 or taken + amount <= limit:
            return taken, 0
        if amount > limit:
            return taken, NEVER
        if mean_us == 0:
            return taken, COLD_WAIT_US
        return taken, max(LEAST_WAIT_US, min(mean_us // taken, MOST_WAIT_US))
