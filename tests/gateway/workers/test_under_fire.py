"""kill -9 of each part during load: nothing is billed twice, nothing delivered goes unbilled.

What a killed worker is allowed to lose is stated in docs/ledger.md: the answers it was writing, and
those that had ended less than `usage_flush_s` before.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from door_kit import eventually
from fire_kit import Load, Received, audit, endless, stream
from postgres_kit import PostgresServer
from redis_kit import RedisServer
from workers_kit import House, open_house

from tenants.slo import Outcome

STEP_S = 0.005


@asynccontextmanager
async def load_on(house: House, num: int = 12, tokens: int = 60) -> AsyncIterator[Load]:
    load = Load(house, num, tokens)
    try:
        await load.until(num)
        yield load
    finally:
        await load.stop()


async def settled(house: House, received: list[Received]) -> None:
    """Wait until the ledger has a row for every answer that came to its end."""
    whole = {got.id for got in received if got.is_whole}

    async def all_there() -> bool:
        return whole <= {row.request_id for row in await house.rows()}

    await eventually(all_there, "every whole answer is billed")


async def test_a_killed_worker(tmp_path: Path, redis_server: RedisServer) -> None:
    """Its streams break, its seats are freed, another takes its place, the others notice nothing.

    Of the other worker's answers all are billed exactly; what the dead one lost came after the
    last note that it took of what was under way.
    """
    settings, options = {"usage_flush_s": 0.2}, {"step_s": STEP_S}
    async with open_house(tmp_path, redis_server.url, settings=settings, options=options) as house:
        async with load_on(house, tokens=200) as load:
            await asyncio.sleep(0.6)  # in the middle of the next answers
            victim = house.pids[0]
            (left,) = (tmp_path / "data" / "spool").glob("worker-0-*")
            os.kill(victim, signal.SIGKILL)
            dead_at = len(load.received)
            await eventually(lambda: len(house.pids) == 2 and victim not in house.pids, "a new one")
            await load.until(12)
        await house.idle()
        await settled(house, load.received[dead_at:])
        await eventually(lambda: not left.exists(), "its note was handed in")
        found = audit(load.received, await house.rows())
        broken = [got for got in load.received if got.broke]
        assert 1 <= len(broken) <= 12
        assert {got.id for got in load.received[dead_at:] if got.broke} == set()
        lost = {name for name, _, _ in found.unbilled}
        assert lost <= {got.id for got in load.received[:dead_at]}
        # What its last note told of is billed: of answers under way too, and never too much.
        bill = {row.request_id: row for row in await house.rows()}
        noted = [(bill[got.id], got) for got in broken if got.id in bill]
        assert noted
        assert {row.finish_reason for row, _ in noted} == {"failed"}
        assert all(0 < row.output_tokens <= len(got.text) for row, got in noted)
        assert found.overbilled == []
        # Whatever is billed was judged as well, once: a promise that broke with its worker is one.
        judged = {record.id: record for record in await house.judged()}
        assert set(bill) <= set(judged)
        assert all(judged[got.id].met is not None for got in load.received if got.is_whole)
        assert {judged[row.request_id].outcome for row, _ in noted} == {Outcome.FAILED}
        assert not any(judged[row.request_id].met for row, _ in noted)


async def test_a_killed_engine(tmp_path: Path, redis_server: RedisServer) -> None:
    """Every stream ends with an error, each token that was delivered is billed, and it goes on."""
    async with open_house(tmp_path, redis_server.url, options={"step_s": STEP_S}) as house:
        async with load_on(house) as load:
            old = house.engine_pid
            os.kill(old, signal.SIGKILL)
            await eventually(lambda: house.engine_pid != old, "another engine")
            await load.until(24)
        await settled(house, load.received)
        cut = [got for got in load.received if got.text and not got.is_whole]
        assert cut
        assert {got.error for got in cut} <= {"engine_unavailable", "engine_failed"}
        assert not any(got.broke for got in load.received)
        found = audit(load.received, await house.rows())
        assert found.unbilled == []
        assert found.overbilled == []
        assert len(house.pids) == 2


Outage = Callable[[PostgresServer], None]


@pytest.mark.parametrize(
    "outage", [PostgresServer.kill, PostgresServer.stop_dead], ids=["killed", "frozen"]
)
async def test_postgres_goes_away(
    tmp_path: Path, redis_server: RedisServer, mortal_postgres: PostgresServer, outage: Outage
) -> None:
    """Known keys are served on without it, the bill waits on disk, and is complete afterwards."""
    settings = {"database_url": mortal_postgres.url}
    options = {"step_s": STEP_S}
    async with open_house(tmp_path, redis_server.url, settings=settings, options=options) as house:
        async with load_on(house) as load:
            await asyncio.to_thread(outage, mortal_postgres)
            # Its absence is longer than a flush, and every worker answers meanwhile.
            await load.until(60)
            if outage is PostgresServer.kill:
                await eventually(lambda: spooled(tmp_path), "usage goes to disk")
                await asyncio.to_thread(mortal_postgres.start)
            else:
                await asyncio.to_thread(mortal_postgres.go_on)
            await load.until(12)
        assert all(got.is_whole for got in load.received)
        await settled(house, load.received)
        found = audit(load.received, await house.rows())
        assert (found.unbilled, found.overbilled) == ([], [])
        assert found.billed_tokens == found.delivered_tokens
        await eventually(lambda: not spooled(tmp_path), "the disk is empty again")


def spooled(folder: Path) -> list[Path]:
    """Files that wait for the ledger; the note of what is under way is none."""
    return [p for p in (folder / "data" / "spool").rglob("usage.*") if ".open." not in p.name]


async def test_a_worker_killed_while_postgres_is_away(
    tmp_path: Path, redis_server: RedisServer, mortal_postgres: PostgresServer
) -> None:
    """What it had put on disk is handed in by another."""
    settings = {"database_url": mortal_postgres.url}
    options = {"step_s": STEP_S}
    async with open_house(tmp_path, redis_server.url, settings=settings, options=options) as house:
        async with load_on(house) as load:
            mortal_postgres.kill()
            await load.until(36)
            await eventually(lambda: len(spooled(tmp_path)) == 2, "both workers put usage on disk")
        before = {got.id for got in load.received if got.is_whole}
        await asyncio.sleep(1)  # the last flush has reached the disk
        for pid in house.pids:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(house.pids) == 2, "others in their place")
        await asyncio.sleep(1.5)  # they wait for the ledger, and do not die of its absence
        waiting = set(house.pids)
        await asyncio.to_thread(mortal_postgres.start)
        await settled(house, load.received)
        rows = {row.request_id for row in await house.rows()}
        assert before <= rows
        await eventually(lambda: not spooled(tmp_path), "the disk is empty again")
        assert set(house.pids) == waiting


async def test_redis_goes_away(
    tmp_path: Path, redis_server: RedisServer, mortal_redis: RedisServer
) -> None:
    """Answers go on, the bill is exact, and limits are counted again when it is back."""
    async with open_house(tmp_path, mortal_redis.url, options={"step_s": STEP_S}) as house:
        async with load_on(house) as load:
            mortal_redis.kill()
            await load.until(36)
            await asyncio.to_thread(mortal_redis.start)
            await load.until(12)
        assert all(got.is_whole for got in load.received)
        await settled(house, load.received)
        found = audit(load.received, await house.rows())
        assert (found.unbilled, found.overbilled) == ([], [])
        assert found.billed_tokens == found.delivered_tokens


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "plain"])
async def test_a_client_that_leaves(
    tmp_path: Path, redis_server: RedisServer, is_streamed: bool
) -> None:
    """Its seat is free within two steps, whichever worker it was at, and what it got is billed."""
    async with open_house(tmp_path, redis_server.url) as house, house.client() as http:
        got = Received()
        body: dict[str, Any] = endless(900, stream=is_streamed)
        (house.gate / "closed").touch()
        asking = asyncio.create_task(stream(http, house.auth(), body, got))
        for _ in range(3):
            await one_step(house)
        left_at = (await house.engine())["snapshot"]["step"]
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.2)  # the worker has seen it; the engine stands in a step
        for _ in range(2):
            await one_step(house, may_idle=True)
        state = await house.idle()
        assert state["snapshot"]["step"] - left_at <= 2
        (row,) = await house.usage(1)
        assert row.finish_reason == "cancelled"
        assert len(got.text) <= row.output_tokens <= 5


async def one_step(house: House, *, may_idle: bool = False) -> None:
    """Let the engine finish the step it is held in."""
    if may_idle and not step_held(house.gate):
        return
    await eventually(lambda: step_held(house.gate), "a step is held")
    before = step_held(house.gate)
    (house.gate / "step").touch()
    await eventually(lambda: step_held(house.gate) != before, "it goes on")
    await asyncio.sleep(0.05)


def step_held(gate: Path) -> str:
    """Return which step is held, empty where none is."""
    try:
        return (gate / "held").read_text()
    except FileNotFoundError:
        return ""
