"""Real databases for the tests of the ledger: a SQLite file, and a Postgres started just for them.

The cluster lives in a folder of its own, listens on a Unix socket only and is gone afterwards.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from migrations import runner
from tenants.database import Database
from tenants.pepper import Pepper, make_pepper
from tenants.repository import Repository

START_TIMEOUT_S = 60
ADMIN = "ledger"
TEMPLATE = "migrated"


def postgres_binaries() -> Path | None:
    """Return the folder of the newest Postgres, as Debian lays them out or on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


def unprivileged() -> dict[str, object]:
    """Return how to start a process that is not root: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise LookupError("no unprivileged user to run Postgres as")


def run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run in a thread: an async test may be the first to ask for a fixture of the session."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


class Cluster:
    """A running Postgres, and the databases made in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, database: str) -> str:
        return f"postgresql://{ADMIN}@/{database}?host={self.folder}"

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(
            host=str(self.folder), user=ADMIN, database="postgres", timeout=10
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def create(self, template: str = "template1") -> str:
        name = f"t_{uuid.uuid4().hex}"
        await self.execute(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return name

    async def drop(self, name: str) -> None:
        await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def wait_until_ready(cluster: Cluster, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            run_apart(cluster.execute("SELECT 1"))
            return
        except (OSError, asyncpg.PostgresError):
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"Postgres did not start:\n{log.read_text()}")
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A private Postgres with one migrated database to copy from."""
    binaries = postgres_binaries()
    if binaries is None:
        reason = "no Postgres here: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Not below pytest's folder: that one is closed to others, and too long for a socket's name.
    folder = Path(tempfile.mkdtemp(prefix="tg-pg-", dir="/tmp"))
    log = folder / "log"
    who = unprivileged()
    server: subprocess.Popen[bytes] | None = None
    try:
        if who:
            os.chown(folder, who["user"], who["group"])
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", ADMIN, "-A", "trust"]
        options = ["--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run([*initdb, *options], check=True, capture_output=True, cwd=folder, **who)
        settings = ["fsync=off", "listen_addresses=", f"unix_socket_directories={folder}"]
        flags = [part for setting in settings for part in ("-c", setting)]
        with log.open("wb") as out:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", folder / "data", *flags],
                cwd=folder,
                stdout=out,
                stderr=out,
                **who,
            )
        cluster = Cluster(folder)
        wait_until_ready(cluster, server, log)
        run_apart(cluster.execute(f"CREATE DATABASE {TEMPLATE}"))
        run_apart(runner.upgrade(cluster.url(TEMPLATE)))
        yield cluster
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # the fast way down: clients are sent away
            try:
                server.wait(START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to copy from."""
    file = tmp_path_factory.mktemp("template") / "ledger.db"
    run_apart(runner.upgrade(f"sqlite:///{file}"))
    return file


BACKENDS = ("sqlite", "postgresql")


@pytest.fixture(params=BACKENDS)
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without a schema; the SQLite file is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = await cluster.create()
    yield cluster.url(name)
    await cluster.drop(name)


@pytest.fixture(params=BACKENDS)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database with the schema, all its own."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("migrated_sqlite")
        shutil.copy(template, tmp_path / "ledger.db")
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = await cluster.create(TEMPLATE)
    yield cluster.url(name)
    await cluster.drop(name)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await Database.open(url)
    yield opened
    await opened.close()


@pytest.fixture
def pepper() -> Pepper:
    return make_pepper(bytes(range(32)))


@pytest.fixture
def repository(database: Database, pepper: Pepper) -> Repository:
    return Repository(database, pepper)


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
