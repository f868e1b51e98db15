"""What one worker grants while the store is away: its share of each limit; it calls nobody.

Over a minute that is the limit divided by the number of workers, rounded down, at least 1; of a
budget the same part of what was left of it when this worker last heard, rounded down to nothing.
It begins with the requests that are open here, and is thrown away when the store is back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from gateway.limits.calendar import span
from gateway.limits.memory_store import MemoryStore
from gateway.limits.seeding import Seeder, SpentUnknown
from gateway.limits.store import NO_SEEDS, Closed, Closing, Mode, Outcome, Reply, Seeds
from gateway.limits.values import Ask

MAX_SEEN = 20_000

_Seen: TypeAlias = tuple[int, int]  # a moment, and what the window of then had used


class Emergency:
    """A `MemoryStore` that exists while it is needed, and what budgets were last heard to be."""

    def __init__(self, seeder: Seeder, make: Callable[[], MemoryStore]) -> None:
        self._seeder = seeder
        self._make = make
        self._store: MemoryStore | None = None
        self._seen: dict[tuple[str, str], _Seen] = {}

    def hear(self, ask: Ask, reply: Reply) -> None:
        """Remember where the store says that budgets stand."""
        for rule, (used, _, _) in zip(ask.rules, reply.readings, strict=True):
            if rule.is_calendar:
                name = (ask.group, rule.key)
                self._seen.pop(name, None)
                self._seen[name] = (reply.at_us, used)
        while len(self._seen) > MAX_SEEN:
            del self._seen[next(iter(self._seen))]

    async def reserve(self, ask: Ask) -> Reply:
        """Take `ask` of this worker's share, or refuse it."""
        seeds: Seeds = NO_SEEDS
        while True:
            reply = self._open().reserve(ask, seeds).value
            if reply.outcome is not Outcome.UNSEEDED:
                return reply
            seeds = {i: (day, await self._used(ask, i, day)) for i, day in reply.missing}

    def adopt(self, ask: Ask, age_us: int) -> None:
        """Count a request that is open here since before the store went away.

        What it has reserved of a budget is part of what was heard of that, and now counts twice
        until it is settled: on the safe side.
        """
        store = self._open()
        reply = store.reserve(ask, mode=Mode.ADOPT, age_us=age_us).value
        if reply.outcome is Outcome.UNSEEDED:
            seeds = {i: (day, self._heard(ask, i, day) or 0) for i, day in reply.missing}
            store.reserve(ask, seeds, mode=Mode.ADOPT, age_us=age_us)

    def settle(self, closing: Closing) -> Closed | None:
        """A request is over; harmless where it was never counted here."""
        return self._store.settle(closing).value if self._store is not None else None

    def clear(self) -> None:
        """The store is back, and knows everything."""
        self._store = None

    def _open(self) -> MemoryStore:
        if self._store is None:
            self._store = self._make()
        return self._store

    def _heard(self, ask: Ask, index: int, first_day: int) -> int | None:
        rule = ask.rules[index]
        at_us, used = self._seen.get((ask.group, rule.key), (0, 0))
        return used if span(rule.kind, at_us)[0] == first_day else None

    async def _used(self, ask: Ask, index: int, first_day: int) -> int:
        heard = self._heard(ask, index, first_day)
        if heard is not None:
            return heard
        try:
            return await self._seeder.spent(ask.rules[index], first_day)
        except SpentUnknown:
            return 0  # nobody knows anything: it is this worker's share of all of it
