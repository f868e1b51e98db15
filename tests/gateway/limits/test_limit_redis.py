"""A real Redis that is killed, frozen, slow, told to forget, full, or a node of a cluster."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import pytest
import redis
from redis_kit import RedisServer
from store_kit import allow, ask

from engine.core.clock import MonotonicClock
from gateway.limits.limiter import Limiter
from gateway.limits.redis_store import RedisStore, connect
from gateway.limits.rules import Rule
from gateway.limits.store import Closing, Mode, StoreAway
from gateway.limits.values import Away, Denial, Grant, Spend, Sum
from tenants.values import Budget, LimiterAway, Period, Unit

MONTH = Budget(Period.MONTH, Unit.TOKENS, 10**9)
LIMITS = allow(
    "tenant:t",
    MONTH,
    tokens_per_minute=10**8,
    requests_per_minute=10**6,
    concurrent_requests=10**5,
)


class Ledger:
    """What was delivered, as the rows of usage would have it."""

    def __init__(self) -> None:
        self.tokens = 0

    async def spent(self, rule: Rule, since: datetime) -> int:
        return self.tokens


@asynccontextmanager
async def limiter_on(
    server: RedisServer, ledger: Ledger | None = None, *, workers: int = 2, timeout_s: float = 0.3
) -> AsyncIterator[Limiter]:
    store = RedisStore(connect(server.url, timeout_s), timeout_s=timeout_s)
    spent = ledger.spent if ledger is not None else None
    limiter = Limiter(store, MonotonicClock(), workers=workers, spent=spent)
    running = asyncio.create_task(limiter.run())
    try:
        yield limiter
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Load:
    """Requests that come and go on several workers; counts what each was delivered."""

    def __init__(self, workers: list[Limiter], ledger: Ledger) -> None:
        self.workers = workers
        self.ledger = ledger
        self.local = self.granted = 0
        self.is_over = False

    async def run(self, tasks: int) -> None:
        await asyncio.gather(*[self._one(random.Random(n)) for n in range(tasks)])

    async def _one(self, chance: random.Random) -> None:
        while not self.is_over:
            limiter = chance.choice(self.workers)
            asked = ask(LIMITS, prompt=10, output=100)
            verdict = await limiter.reserve(asked)
            if not isinstance(verdict, Grant):
                await asyncio.sleep(0.01)
                continue
            self.granted += 1
            self.local += verdict.is_local
            await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.1:
                limiter.release(asked.id)
                continue
            output = chance.randrange(0, 101)
            limiter.settle(asked.id, prompt_tokens=10, output_tokens=output)
            self.ledger.tokens += 10 + output


async def until_closed(*limiters: Limiter) -> None:
    for limiter in limiters:
        for _ in range(2000):
            if limiter.state.state == "closed":
                break
            await asyncio.sleep(0.01)
        assert limiter.state.state == "closed"
        assert await limiter.flush(20)


async def test_frozen_under_load_it_loses_and_doubles_nothing(own_redis: RedisServer) -> None:
    """Commands that lay in its sockets while workers had given them up are done when it thaws.

    Tokens delivered by anybody, before, during and after, are what it has settled in the end.
    """
    ledger = Ledger()
    async with limiter_on(own_redis, ledger) as one, limiter_on(own_redis, ledger) as other:
        load = Load([one, other], ledger)
        running = asyncio.create_task(load.run(40))
        for _ in range(3):
            await asyncio.sleep(0.4)
            own_redis.freeze()
            await asyncio.sleep(0.8)
            own_redis.thaw()
        await asyncio.sleep(1)
        load.is_over = True
        await running
        await until_closed(one, other)
        assert load.local > 0
        assert load.granted > load.local
        totals = await one.totals("acme")
        assert totals.balanced
        assert totals.open == Sum()
        assert totals.settled.tokens == ledger.tokens
        verdict = await one.reserve(ask(LIMITS))
        assert isinstance(verdict, Grant)
        used = {s.rule.dimension.value: s.used for s in verdict.standings()}
        assert used["concurrent_requests"] == 1
        assert used["budget"] == used["tokens_per_minute"] == ledger.tokens


async def test_killed_under_load_and_started_empty(own_redis: RedisServer) -> None:
    """kill -9, and it comes back with nothing: open requests and the budget are there again.

    The budget begins with the ledger. What ended within the five seconds before is counted whether
    the ledger had it or not, so it is never less than what was delivered.
    """
    ledger = Ledger()
    async with (
        limiter_on(own_redis, ledger, timeout_s=3) as one,
        limiter_on(own_redis, ledger, timeout_s=3) as other,
    ):
        held = [ask(LIMITS, output=1000) for _ in range(3)]
        for each in held:
            assert isinstance(await one.reserve(each), Grant)
        load = Load([one, other], ledger)
        running = asyncio.create_task(load.run(20))
        await asyncio.sleep(0.5)
        own_redis.kill()
        await asyncio.sleep(0.8)
        during = load.local
        own_redis.start()
        await until_closed(one, other)
        await asyncio.sleep(0.5)
        load.is_over = True
        await running
        await until_closed(one, other)
        assert during > 0
        assert load.granted > load.local
        totals = await other.totals("acme")
        assert totals.balanced
        assert totals.open == Sum(3, 3000)
        verdict = await other.reserve(ask(LIMITS))
        assert isinstance(verdict, Grant)
        used = {s.rule.dimension.value: s.used for s in verdict.standings()}
        assert used["concurrent_requests"] == 4
        delivered = ledger.tokens + 3000
        assert delivered <= used["budget"] <= 2 * delivered


async def test_slow_is_not_away(own_redis: RedisServer) -> None:
    """An answer within the time-out is waited for, and nobody counts by himself."""
    async with limiter_on(own_redis, timeout_s=2) as limiter:
        with own_redis.client() as client:
            client.client_pause(300, all=True)
        verdicts = await asyncio.gather(*[limiter.reserve(ask(LIMITS)) for _ in range(20)])
        assert all(isinstance(verdict, Grant) and not verdict.is_local for verdict in verdicts)
        assert limiter.state.opened == 0


async def test_nobody_waits_long_for_one_that_hangs(own_redis: RedisServer) -> None:
    """All in line are told together, and after three failures nobody asks it any more."""
    async with limiter_on(own_redis) as limiter:
        await limiter.reserve(ask(LIMITS))
        own_redis.freeze()
        asks = [limiter.reserve(ask(LIMITS), LimiterAway.REFUSE) for _ in range(500)]
        verdicts = await asyncio.gather(*asks)
        assert all(isinstance(verdict, Away) for verdict in verdicts)
        assert limiter.state.state != "closed"
        own_redis.thaw()
        await until_closed(limiter)
        assert (await limiter.totals("acme")).open.requests == 1


async def test_a_script_that_was_forgotten_is_sent_again(own_redis: RedisServer) -> None:
    """SCRIPT FLUSH between and within batches: the calls are done, in their order."""
    async with limiter_on(own_redis, timeout_s=30.0) as limiter:  # not about being slow
        for _ in range(3):
            with own_redis.client() as client:
                client.script_flush()
            asks = [ask(LIMITS, output=5) for _ in range(100)]
            verdicts = await asyncio.gather(*[limiter.reserve(each) for each in asks])
            assert all(isinstance(verdict, Grant) for verdict in verdicts)
            for each in asks:
                limiter.settle(each.id, prompt_tokens=0, output_tokens=5)
        assert await limiter.flush(10)
        totals = await limiter.totals("acme")
        assert (totals.settled, totals.open) == (Sum(300, 1500), Sum())
        assert limiter.state.opened == 0


async def test_one_that_takes_no_writes_is_away(own_redis: RedisServer) -> None:
    """Out of memory it refuses the script: that is loud, and treated as not answering."""
    async with limiter_on(own_redis) as limiter:
        assert isinstance(await limiter.reserve(ask(LIMITS), LimiterAway.REFUSE), Grant)
        with own_redis.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")
            for _ in range(4):
                assert isinstance(await limiter.reserve(ask(LIMITS), LimiterAway.REFUSE), Away)
            await asyncio.sleep(0.5)
            assert limiter.state.state != "closed", "a probe writes"
            client.config_set("maxmemory", "0")
        await until_closed(limiter)
        assert isinstance(await limiter.reserve(ask(LIMITS), LimiterAway.REFUSE), Grant)


async def test_every_key_goes_away_by_itself(own_redis: RedisServer) -> None:
    """Each has a time to live, and their number follows what is open and lately closed."""
    async with limiter_on(own_redis) as limiter:
        asks = [ask(LIMITS, output=5) for _ in range(200)]
        for each in asks:
            assert isinstance(await limiter.reserve(each), Grant)
        for each in asks[:190]:
            limiter.settle(each.id, prompt_tokens=0, output_tokens=5)
        assert await limiter.flush(10)
        with own_redis.client() as client:
            lives = {key.decode(): client.pttl(key) for key in client.scan_iter(count=1000)}
        assert all(0 < life < 40 * 86_400_000 for life in lives.values()), lives
        lives.pop("tiergate:ping", None)  # the store's own, by which it sees that it can write
        windows = [key for key in lives if ":h:" not in key]
        assert len(windows) == 2 + 4, "sums, open holds, and one key for each rule"
        closed = [life for key, life in lives.items() if ":h:" in key and life <= 120_000]
        assert len(closed) == 190
        assert all(key.startswith("tiergate:{acme}:") for key in lives)


def free_port() -> int:
    """Return a port for a cluster's own talk; nobody talks on it here."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


async def test_it_works_on_a_node_of_a_cluster() -> None:
    """All keys of a call are in one slot: a node of a cluster refuses a call where they are not."""
    server = RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    try:
        server.start()
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            for _ in range(100):
                if b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"):
                    break
                await asyncio.sleep(0.1)
            with pytest.raises(redis.ResponseError, match="same slot"):
                client.execute_command("MSET", "{a}", 1, "{b}", 2)
        async with limiter_on(server, Ledger(), timeout_s=5) as limiter:
            for group in ("acme", "apex", "a-third"):
                first, second = (ask(LIMITS, output=5, group=group) for _ in range(2))
                assert isinstance(await limiter.reserve(first, LimiterAway.REFUSE), Grant)
                assert isinstance(await limiter.reserve(second, LimiterAway.REFUSE), Grant)
                limiter.settle(first.id, prompt_tokens=0, output_tokens=5)
                limiter.release(second.id)
                assert await limiter.flush(10)
                assert (await limiter.totals(group)).settled == Sum(1, 5)
    finally:
        server.close()


async def test_without_its_line_running_nothing_waits_for_ever(shared_redis: RedisServer) -> None:
    """A store whose work has ended says so at once."""
    store = RedisStore(connect(shared_redis.url))
    line = asyncio.create_task(store.run())
    waiting = store.reserve(ask(LIMITS))
    await asyncio.sleep(0)
    line.cancel()
    await asyncio.gather(line, return_exceptions=True)
    with pytest.raises(StoreAway):
        await waiting
    with pytest.raises(StoreAway):
        await store.settle(Closing(ask(LIMITS), Mode.SETTLE, Spend()))


async def test_nothing_listens_there(tmp_path: object) -> None:
    """A server that is not there is away, and a tier's share is granted."""
    store = RedisStore(connect(f"unix://{tmp_path}/nobody"))
    limiter = Limiter(store, MonotonicClock(), workers=4)
    running = asyncio.create_task(limiter.run())
    few = allow(requests_per_minute=8)
    verdicts = [await limiter.reserve(ask(few)) for _ in range(3)]
    assert [isinstance(verdict, Grant) for verdict in verdicts] == [True, True, False]
    assert not any(isinstance(verdict, Denial) for verdict in verdicts)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
