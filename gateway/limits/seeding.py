"""Tells a store what a calendar window has used before the store knew it; it keeps no count.

A month's budget outlives a restart of Redis or of the gateway: whenever a window begins without a
count, the ledger is asked once what was spent since the window's first day. After that no request
touches the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from gateway.limits.calendar import day_start
from gateway.limits.rules import Rule
from gateway.limits.store import NO_SEEDS, Closed, Outcome, Reply, Seeds, StoreAway
from gateway.limits.values import Ask
from tenants.errors import LedgerError

TIMEOUT_S = 5.0
_TRIES = 3  # a window may end between the question and the answer

R = TypeVar("R", Reply, Closed)


class Spent(Protocol):
    """What the ledger says: the amount that a rule counts, used since `since` by the rule's owner.

    Raises LedgerError where the ledger is away.
    """

    async def __call__(self, rule: Rule, since: datetime) -> int:
        """Return it."""
        ...


class SpentUnknown(Exception):
    """The ledger did not say in time what a window has used."""


class Seeder:
    """Asks the ledger, once for each window however many requests wait for it."""

    def __init__(self, spent: Spent | None) -> None:
        self._spent = spent
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def seeded(self, ask: Ask, call: Callable[[Seeds], Awaitable[R]]) -> R:
        """Make `call`, again with seeds where it asks for them; raises StoreAway, SpentUnknown."""
        reply = await call(NO_SEEDS)
        if reply.outcome is not Outcome.UNSEEDED:
            return reply
        lock = self._locks.get(ask.group)
        if lock is None:
            lock = self._locks[ask.group] = asyncio.Lock()
        async with lock:
            for _ in range(_TRIES):
                reply = await call(NO_SEEDS)
                if reply.outcome is Outcome.UNSEEDED:
                    reply = await call(await self._seeds(ask, reply.missing))
                if reply.outcome is not Outcome.UNSEEDED:
                    return reply
        raise StoreAway("a calendar window does not begin")

    async def _seeds(self, ask: Ask, missing: tuple[tuple[int, int], ...]) -> Seeds:
        return {
            index: (first_day, await self.spent(ask.rules[index], first_day))
            for index, first_day in missing
        }

    async def spent(self, rule: Rule, first_day: int) -> int:
        """Return what the ledger has of a rule since a day; raises SpentUnknown."""
        if self._spent is None:
            return 0
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return max(await self._spent(rule, day_start(first_day)), 0)
        except (LedgerError, TimeoutError) as error:
            raise SpentUnknown(type(error).__name__) from None
