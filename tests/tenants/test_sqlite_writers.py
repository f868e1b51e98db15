"""Several processes and tasks write one SQLite file: everyone's work is kept, nobody is refused."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from migrations import runner
from tenants.database import Database
from tenants.pepper import make_pepper
from tenants.repository import Repository
from tenants.usage import insert_usage
from tenants.values import UsageRecord

ROOT = Path(runner.__file__).parent.parent
PROCESSES, ROUNDS = 4, 60

# Reads first and writes later in one transaction: what a deferred BEGIN loses to "locked".
WRITER = """
import asyncio, datetime, sys
from sqlalchemy import text
from tenants.database import Database
from tenants.pepper import make_pepper
from tenants.repository import Repository

async def main(url, name, rounds):
    database = await Database.open(url)
    repository = Repository(database, make_pepper(b"p" * 32))
    now = datetime.datetime.now(datetime.timezone.utc)
    await repository.create_tenant(name, "free", now)
    for i in range(rounds):
        await repository.create_key(name, now, f"k{i}")
        async with database.write() as session:
            value = await session.scalar(text("SELECT version FROM tiers WHERE name = 'free'"))
            await session.execute(
                text("UPDATE tiers SET version = :v WHERE name = 'free'"), {"v": value + 1}
            )
    await database.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def file(tmp_path: Path, migrated_sqlite: Path) -> Path:
    shutil.copy(migrated_sqlite, tmp_path / "ledger.db")
    return tmp_path / "ledger.db"


def test_processes_that_read_then_write_lose_nothing(file: Path) -> None:
    url = f"sqlite:///{file}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, f"tenant-{i}", str(ROUNDS)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, errors

    async def look() -> tuple[int, int, int]:
        database = await Database.open(url)
        async with database.read() as session:
            version = await session.scalar(text("SELECT version FROM tiers WHERE name = 'free'"))
            keys = await session.scalar(text("SELECT count(*) FROM api_keys"))
        counted = await Repository(database, make_pepper(b"p" * 32)).keys_version()
        await database.close()
        return version, keys, counted

    # No lost update: each of the read-then-write rounds counts, and so does each key.
    total = PROCESSES * ROUNDS
    assert asyncio.run(look()) == (1 + total, total, total)


async def test_tasks_of_one_process_write_and_read_side_by_side(file: Path, now: datetime) -> None:
    database = await Database.open(f"sqlite:///{file}")
    row = UsageRecord("r", "t", "k", "free", "free", "m", 2, 0, 3, "stop", True, now, 10.0, 1.0)

    async def write(part: int) -> int:
        return await insert_usage(
            database, [replace(row, request_id=f"{part}-{i}") for i in range(5)]
        )

    async def read() -> int:
        async with database.read() as session:
            count = await session.scalar(text("SELECT count(*) FROM usage"))
            return int(count or 0)

    results = await asyncio.gather(*(write(i) for i in range(40)), *(read() for _ in range(40)))
    assert results[:40] == [5] * 40
    assert await read() == 200
    await database.close()
