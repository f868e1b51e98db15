"""Limits under fire at two real workers and a real Redis: never over by one, even at the end.

The same at four workers and 200 streams: benchmarks/limits_fire.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import redis
from door_kit import CHAT, chat_body, eventually
from redis_kit import RedisServer
from workers_kit import House, open_house

from engine.core.clock import utc_now
from gateway.ledger import ledger
from gateway.limits.redis_store import RedisStore, connect
from gateway.limits.values import Totals
from tenants.values import DEFAULT_ORGANISATION_ID, Budget, Period, Scope, Unit

SEATS, REQUESTS, STREAMS = 7, 150, 60


async def totals_of(server: RedisServer) -> Totals:
    """Return what the store has, asked by somebody who is none of the workers."""
    store = RedisStore(connect(server.url, 5), timeout_s=5)
    running = asyncio.create_task(store.run())
    try:
        return await store.totals(DEFAULT_ORGANISATION_ID)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def watched(server: RedisServer, seen: Counter[int]) -> AsyncIterator[None]:
    """Look at the seats in the store all the time."""

    async def look(client: redis.Redis) -> None:
        while True:
            for key in client.keys("tiergate:{*}:con:*"):
                seen[int(client.zcard(key))] += 1
            await asyncio.sleep(0.002)

    with server.client() as client:
        looking = asyncio.create_task(look(client))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def send(house: House, http: httpx.AsyncClient, rng: random.Random) -> int:
    """Send one request of some length, and leave some of them; return 0 for these."""
    leaves, streams = rng.random() < 0.25, rng.random() < 0.5
    most = 300 if leaves else rng.randrange(1, 30)
    body = chat_body(max_tokens=most, temperature=1, stream=streams)
    asked = asyncio.create_task(http.post(CHAT, json=body, headers=house.auth()))
    if leaves:
        await asyncio.sleep(0.1 + rng.random() * 0.3)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return 0
    return int((await asked).status_code)


async def test_a_storm_on_one_key_never_gets_over_a_limit(
    tmp_path: Path, mortal_redis: RedisServer
) -> None:
    """Seats, requests and a budget at once, clients that leave: exact during it, even after it."""
    options = {"step_s": 0.003}
    async with open_house(tmp_path, mortal_redis.url, options=options) as house:
        limits = {"concurrent_requests": SEATS, "requests_per_minute": REQUESTS}
        budget = Budget(Period.MONTH, Unit.TOKENS, 8_000)
        async with ledger(house.settings, lambda _line: None) as opened:
            repository, tenant = opened.repository, "premium-tenant"
            await repository.set_limits(Scope.TENANT, tenant, limits, utc_now())
            await repository.set_budgets(Scope.TENANT, tenant, [budget], utc_now())
        rng, told, seats = random.Random(3), Counter[int](), Counter[int]()

        async def client() -> None:
            for _ in range(6):
                status = await send(house, http, rng)
                told[status] += 1
                if status == 429:
                    await asyncio.sleep(0.05)

        async with house.client() as http, watched(mortal_redis, seats):
            await asyncio.gather(*[client() for _ in range(STREAMS)])

        async def nothing_is_open() -> bool:
            return (await totals_of(mortal_redis)).open.requests == 0

        await eventually(nothing_is_open, "all is settled")
        sums = await totals_of(mortal_redis)
        rows = await house.usage(sums.settled.requests)
    assert set(told) <= {0, 200, 429}
    assert min(told.values()) > 20, told
    assert max(seats) == SEATS
    assert sums.reserved == sums.settled + sums.released
    assert sums.settled.requests == len(rows) <= REQUESTS
    assert sums.settled.tokens == sum(r.prompt_tokens + r.output_tokens for r in rows) <= 8_000
    assert {r.finish_reason for r in rows} >= {"length", "cancelled"}
