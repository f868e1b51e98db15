"""A key revoked here is refused there: by notice, by polling, and when the line was cut."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from tenants.database import LISTENER_NAME, Database
from tenants.listener import ChangeListener
from tenants.pepper import Pepper
from tenants.repository import Repository

ROOT = Path(__file__).parent.parent.parent
LIVENESS_S = 60
NEVER_S = 3600.0

# What a worker does, as gateway/app.py wires it: it looks when told, or when it is time.
WORKER = """
import asyncio, sys
from engine.core.clock import MonotonicClock
from gateway.auth import Authenticator
from gateway.errors import ApiError
from tenants.database import Database
from tenants.listener import ChangeListener
from tenants.pepper import make_pepper
from tenants.repository import Repository

async def main(url, pepper, key, poll_s, listens):
    database = await Database.open(url)
    repository = Repository(database, make_pepper(bytes.fromhex(pepper)))
    auth = Authenticator(repository, MonotonicClock(), salt_secret=b"s", ttl_s=300, size=10)
    listener = ChangeListener(database, auth.hear, retry_max_s=0.1)

    async def follow():
        while True:
            await auth.poll()
            await auth.wait_for_change(float(poll_s))

    tasks = [asyncio.create_task(follow())]
    if listens == "yes":
        tasks.append(asyncio.create_task(listener.run()))
        while not listener.is_connected:
            await asyncio.sleep(0.01)
    await auth.authenticate("Bearer " + key)
    print("open", flush=True)
    try:
        while True:
            await auth.authenticate("Bearer " + key)
            await asyncio.sleep(0.002)
    except ApiError as error:
        print(error.problem.name, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

Refused = Callable[[], Awaitable[str]]


@asynccontextmanager
async def worker(
    url: str, pepper: Pepper, key: str, poll_s: float, *, listens: bool
) -> AsyncIterator[Refused]:
    """Run a worker that has let the key in; yields how to wait for its refusal."""
    arguments = (url, pepper.secret.hex(), key, str(poll_s), "yes" if listens else "no")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, *arguments), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out = process.stdout
    assert out is not None

    async def line() -> str:
        async with asyncio.timeout(LIVENESS_S):
            return (await out.readline()).decode().strip()

    try:
        assert await line() == "open"
        yield line
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def key(repository: Repository, now: datetime) -> str:
    await repository.create_tenant("acme", "free", now)
    return (await repository.create_key("acme", now)).plaintext


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIVENESS_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


def needs_postgres(database: Database) -> None:
    if database.backend != "postgresql":
        pytest.skip("SQLite tells nobody")


async def cut_lines(database: Database) -> int:
    """End the listeners' connections, as a restart of a proxy would; returns how many."""
    query = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = :name AND datname = current_database()"
    )
    async with database.read() as session:
        return int(await session.scalar(query, {"name": LISTENER_NAME}) or 0)


async def test_every_worker_refuses_a_revoked_key_by_polling_alone(
    url: str, repository: Repository, pepper: Pepper, key: str, now: datetime
) -> None:
    """The backstop on both databases: nobody is told, everybody looks once a second."""
    async with (
        worker(url, pepper, key, 1.0, listens=False) as first,
        worker(url, pepper, key, 1.0, listens=False) as second,
    ):
        await repository.revoke_key(key, now)
        assert await asyncio.gather(first(), second()) == ["UNAUTHENTICATED"] * 2


async def test_every_worker_is_told_by_postgres(
    url: str, repository: Repository, pepper: Pepper, key: str, now: datetime
) -> None:
    """Workers that would look once an hour refuse the key because they are told."""
    needs_postgres(repository.database)
    async with (
        worker(url, pepper, key, NEVER_S, listens=True) as first,
        worker(url, pepper, key, NEVER_S, listens=True) as second,
    ):
        await repository.revoke_key(key, now)
        assert await asyncio.gather(first(), second()) == ["UNAUTHENTICATED"] * 2


async def test_a_change_while_the_line_is_cut_is_not_missed(
    url: str, repository: Repository, pepper: Pepper, key: str, now: datetime
) -> None:
    """The listener's connection is killed, then the key revoked: the new line makes them look."""
    needs_postgres(repository.database)
    async with worker(url, pepper, key, NEVER_S, listens=True) as refused:
        assert await cut_lines(repository.database) == 1
        await repository.revoke_key(key, now)
        assert await refused() == "UNAUTHENTICATED"


async def test_a_line_is_made_again_and_again(
    repository: Repository, database: Database, now: datetime
) -> None:
    """However often it is cut; a cancelled listener leaves no connection behind."""
    needs_postgres(database)
    heard = asyncio.Event()
    listener = ChangeListener(database, heard.set, retry_max_s=0.1)
    task = asyncio.create_task(listener.run())
    for connections in (1, 2, 3):
        await until(lambda n=connections: listener.connections == n and heard.is_set())
        heard.clear()
        await repository.create_tenant(f"t{connections}", "free", now)
        await repository.create_key(f"t{connections}", now)
        await until(heard.is_set)
        heard.clear()
        assert await cut_lines(database) == 1
    await until(lambda: listener.connections == 4)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not listener.is_connected
    assert await cut_lines(database) == 0


async def test_a_listener_waits_for_a_database_that_is_away(
    repository: Repository, database: Database, postgres: object
) -> None:
    """Nothing is raised: it tries again until the database lets it in."""
    needs_postgres(database)
    async with database.write() as session:
        await session.execute(text("SELECT 1"))
    name = database.name.rpartition("/")[2].partition("?")[0]
    cluster = postgres
    await cluster.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # type: ignore[attr-defined]
    listener = ChangeListener(database, lambda: None, retry_max_s=0.05)
    task = asyncio.create_task(listener.run())
    await asyncio.sleep(0.3)
    assert not task.done()
    assert listener.connections == 0
    await cluster.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")  # type: ignore[attr-defined]
    await until(lambda: listener.is_connected)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_on_sqlite_there_is_nothing_to_listen_to(database: Database) -> None:
    if database.backend == "sqlite":
        await ChangeListener(database, lambda: None).run()
