"""Both stores in a virtual time of their own, for tests that hold them to the same words."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

from redis_kit import VIRTUAL_TIME, RedisServer, virtual_script

from gateway.limits.calendar import unix_us
from gateway.limits.memory_store import MemoryStore
from gateway.limits.redis_store import RedisStore, connect
from gateway.limits.rules import Allowance
from gateway.limits.store import Store
from gateway.limits.values import Ask, Spend
from tenants.values import Budget, Limits, Scope, ScopeLimits

NOON = unix_us(datetime(2026, 11, 21, 12, 0, 0, 250_000, tzinfo=UTC))
NUMBERS = itertools.count()


class World:
    """A store, and the hands of its clock."""

    def __init__(self, store: Store, set_time: Callable[[int], None]) -> None:
        self.store = store
        self._set_time = set_time
        self.now_us = 0

    def set(self, now_us: int) -> None:
        self.now_us = now_us
        self._set_time(now_us)

    def advance(self, seconds: float) -> None:
        self.set(self.now_us + round(seconds * 1_000_000))


OpenWorld = Callable[..., AbstractAsyncContextManager[World]]


@asynccontextmanager
async def memory_world(now_us: int = NOON, **options: int) -> AsyncIterator[World]:
    hands = [now_us]

    def set_time(us: int) -> None:
        hands[0] = us

    world = World(MemoryStore(lambda: hands[0], **options), set_time)
    world.set(now_us)
    yield world


def redis_world(server: RedisServer) -> OpenWorld:
    """Return how to open a world of its own on a running server."""

    @asynccontextmanager
    async def opened(now_us: int = NOON, **options: int) -> AsyncIterator[World]:
        hands = server.client()
        hands.flushall()

        def set_time(us: int) -> None:
            pipe = hands.pipeline(transaction=True)
            pipe.delete(VIRTUAL_TIME)
            pipe.rpush(VIRTUAL_TIME, us // 1_000_000, us % 1_000_000)
            pipe.execute()

        store = RedisStore(
            connect(server.url, 10), script=virtual_script(), timeout_s=10, **options
        )
        world = World(store, set_time)
        world.set(now_us)
        line = asyncio.create_task(store.run())
        try:
            yield world
        finally:
            line.cancel()
            await asyncio.gather(line, return_exceptions=True)
            hands.close()

    return opened


def ask(
    *allowances: Allowance,
    prompt: int = 0,
    output: int = 0,
    cost: int = 0,
    name: str | None = None,
    group: str = "acme",
) -> Ask:
    """Return a new request of an organisation."""
    most = Spend(prompt_tokens=prompt, output_tokens=output, cost_nano=cost)
    return Ask(name or f"r{next(NUMBERS)}", group, allowances, most)


def allow(
    name: str = "key:a", *budgets: Budget, model: str = "", **limits: int | None
) -> Allowance:
    """Return the limits of one owner."""
    scope, target = name.split(":")
    return Allowance(ScopeLimits(Scope(scope), target, Limits(**limits), budgets, model))
