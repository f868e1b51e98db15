"""The door while Redis is away: its share or a refusal, by tier, told and counted; then even."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from door_kit import CHAT, Door, chat_body, eventually, open_door
from redis_kit import RedisServer
from test_door_limits import even, limit

from gateway.errors import unauthenticated
from gateway.limits.breaker import BreakerState


@pytest_asyncio.fixture
async def redis_door(tmp_path: Path, own_redis: RedisServer) -> AsyncIterator[Door]:
    async with open_door(tmp_path, settings={"redis_url": own_redis.url}) as opened:
        yield opened


def is_up(door: Door) -> bool:
    return door.services.desk.limiter.state.state == BreakerState.CLOSED


async def test_local_serves_its_share_and_refuse_refuses(
    redis_door: Door, own_redis: RedisServer
) -> None:
    """Redis is killed and comes back empty: requests go on or get a 503, and all of it is told."""
    door = redis_door
    await door.ledger.repository.change_tier("free", {"on_limiter_away": "refuse"})
    for tier in ("premium", "free"):
        await limit(door, tier, requests_per_minute=1000, concurrent_requests=5)
        assert (await door.post(CHAT, chat_body(max_tokens=1), tier)).status_code == 200
    own_redis.kill()
    codes = [(await door.post(CHAT, chat_body(max_tokens=1))).status_code for _ in range(6)]
    assert codes == [200] * 6
    assert not is_up(door)
    refused = await door.post(CHAT, chat_body(max_tokens=1), "free", **{"x-request-id": "away-1"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "limit_check_unavailable"
    assert 1 <= int(refused.headers["retry-after"]) <= 4
    assert "redis" not in refused.text.lower()
    ready = await door.http.get("/readyz")
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["limits"])
    text = (await door.http.get("/metrics")).text
    assert "tiergate_limits_store_up 0.0" in text
    assert 'tiergate_limits_reservations_total{tiergate_state="granted_locally"} 6.0' in text
    assert 'tiergate_limits_reservations_total{tiergate_state="refused_away"} 1.0' in text
    admin = {"authorization": f"Bearer {door.admin_token}"}
    story = (await door.http.get("/admin/api/requests/away-1", headers=admin)).json()
    assert story["door"]["refusal"]["reason"] == "limits_unavailable"
    own_redis.start()
    await eventually(lambda: is_up(door), "the store is back")
    assert (await door.post(CHAT, chat_body(max_tokens=1), "free")).status_code == 200
    assert (await door.http.get("/readyz")).json()["degraded"] == []


async def test_all_is_even_after_a_freeze_under_load(
    redis_door: Door, own_redis: RedisServer
) -> None:
    """Redis stops in its tracks in the middle of many streams: nothing is lost, nothing twice."""
    door = redis_door
    await limit(door, requests_per_minute=10**6, tokens_per_minute=10**8, concurrent_requests=500)

    limiter, is_over = door.services.desk.limiter, asyncio.Event()
    codes = Counter[int]()

    async def client(number: int) -> None:
        while not is_over.is_set():
            number += 1
            body = chat_body(max_tokens=number % 23 + 1, stream=number % 2 == 0)
            codes[(await door.post(CHAT, body)).status_code] += 1
            await asyncio.sleep(0.02)

    clients = [asyncio.create_task(client(n)) for n in range(24)]
    await eventually(lambda: limiter.state.granted > 20, "it has begun")
    own_redis.freeze()
    before = limiter.state.granted_locally
    await eventually(lambda: limiter.state.granted_locally > before + 20, "it goes on without")
    own_redis.thaw()
    await eventually(lambda: is_up(door), "the store is back")
    is_over.set()
    await asyncio.gather(*clients)
    assert set(codes) == {200}
    sums = await even(door, await door.usage(codes[200]))
    assert sums.settled.requests == codes[200]
    assert limiter.state.adopted + limiter.state.charged > 0


async def test_a_key_revoked_while_redis_is_asked_opens_nothing(
    redis_door: Door, own_redis: RedisServer
) -> None:
    """An answer that is ended while it waits for its limits is never begun, and holds nothing."""
    door = redis_door
    await limit(door, requests_per_minute=10)
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
    own_redis.freeze()
    asked = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=1)))
    await eventually(lambda: len(door.services.live) == 1, "it waits for its limits")
    for answer in door.services.live:
        answer.cut(unauthenticated())
    own_redis.thaw()
    assert (await asked).status_code == 401
    sums = await even(door, await door.usage(1))
    assert sums.settled.requests == 1
    assert door.services.desk.limiter.state.open_holds == 0


async def test_who_leaves_while_redis_is_asked_holds_nothing(
    redis_door: Door, own_redis: RedisServer
) -> None:
    """Nobody watches a connection before the verdict; afterwards it is seen at once."""
    door = redis_door
    await limit(door, concurrent_requests=1)
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
    own_redis.freeze()
    asked = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=900, temperature=1)))
    await eventually(lambda: len(door.services.live) == 1, "it waits for its limits")
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    own_redis.thaw()
    await eventually(lambda: len(door.services.live) == 0, "it is over")
    await eventually(lambda: door.services.desk.limiter.state.open_holds == 0, "nothing is held")
    await door.idle()
    await even(door, await door.usage(2))


async def test_a_gateway_that_stops_has_told_redis_everything(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    """What was reserved is settled before the process ends: no lease has to run out."""
    async with open_door(tmp_path, settings={"redis_url": own_redis.url}) as door:
        await limit(door, concurrent_requests=2, tokens_per_minute=1000)
        assert (await door.post(CHAT, chat_body(max_tokens=4))).status_code == 200
        door.close_gate()
        cut = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=4)))
        await eventually(lambda: door.services.desk.limiter.state.open_holds == 1, "it waits")
    await asyncio.gather(cut, return_exceptions=True)
    with own_redis.client() as client:
        (sums,) = client.keys("tiergate:{*}:t")
        assert client.exists(sums.replace(b"}:t", b"}:o")) == 0, "nothing is open"
        (seats,) = client.keys("tiergate:{*}:con:*") or [b""]
        assert not seats or client.zcard(seats) == 0
        assert int(client.hget(sums, "rr") or 0) == 2, "both were reserved"


async def test_a_store_that_is_away_from_the_start_is_told_before_anybody_asks(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    """A gateway begins without its Redis, says so, and finds it when it is there."""
    own_redis.kill()
    async with open_door(tmp_path, settings={"redis_url": own_redis.url}) as door:
        await eventually(lambda: not is_up(door), "it is noticed")
        ready = await door.http.get("/readyz")
        assert (ready.status_code, ready.json()["degraded"]) == (200, ["limits"])
        own_redis.start()
        await eventually(lambda: is_up(door), "the store is there")
        assert (await door.http.get("/readyz")).json()["degraded"] == []
