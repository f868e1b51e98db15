"""Opening databases: which URLs are understood, and that every failure has a name of ours."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from migrations import runner
from tenants.database import Database, display_name, parse_url, sqlite_file
from tenants.errors import (
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidValue,
    LedgerError,
    SchemaOutdated,
)


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite"),
        ("sqlite+pysqlite:////tmp/a.db", "sqlite+aiosqlite"),
        ("postgresql://u:p@h/n", "postgresql+asyncpg"),
        ("postgres://u:p@h/n", "postgresql+asyncpg"),
        ("postgresql+psycopg://u:p@h/n", "postgresql+asyncpg"),
    ],
)
def test_urls_get_the_drivers_of_the_house(given: str, driver: str) -> None:
    assert parse_url(given).drivername == driver


def test_libpq_spelling_of_tls_is_understood() -> None:
    assert parse_url("postgresql://h/n?sslmode=require").query == {"ssl": "require"}


@pytest.mark.parametrize(
    "given",
    ["", "a.db", "mysql://h/n", "sqlite://", "sqlite:///:memory:", "://", "postgresql",
     "postgresql://u:secret@h:port/n"],
)  # fmt: skip
def test_other_urls_are_one_clear_error_without_their_text(given: str) -> None:
    """A URL may hold a password, so the message does not repeat it."""
    with pytest.raises(InvalidValue, match=r"sqlite:///FILE"):
        parse_url(given)


def test_names_for_messages_hide_the_password() -> None:
    assert display_name(parse_url("postgresql://u:secret@h:5/n")) == "postgresql://u:***@h:5/n"
    assert display_name(parse_url("sqlite:////srv/a.db")) == "/srv/a.db"
    assert sqlite_file(parse_url("sqlite:///file:/srv/a.db?mode=ro&uri=true")) == Path("/srv/a.db")


async def test_a_missing_sqlite_file_is_not_made_by_opening(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"no database .*typo\.db.*tiergate migrate"):
        await Database.open(f"sqlite:///{tmp_path / 'typo.db'}")
    assert os.listdir(tmp_path) == []


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(DatabaseUnavailable, match=r"a\.db is not available"):
        await Database.open(f"sqlite:///{tmp_path / 'a.db'}")


async def test_no_answer_from_postgres_is_one_clear_error() -> None:
    with socket.socket() as nobody:  # bound but not listening: the port refuses
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(DatabaseUnavailable, match=r"postgresql://u:\*\*\*@127.* reached") as e:
            await Database.open(f"postgresql://u:secret@127.0.0.1:{port}/n")
    assert "secret" not in str(e.value)


async def test_an_unknown_database_or_role_of_postgres_is_one_clear_error(
    postgres: Any,
) -> None:
    for url in (
        postgres.url("nowhere"),
        postgres.url("postgres").replace("//ledger@", "//stranger@"),
    ):
        with pytest.raises(DatabaseUnavailable, match=r"does not exist"):
            await Database.open(url)


async def test_a_read_only_sqlite_file_is_named(migrated_sqlite: Path) -> None:
    database = await Database.open(f"sqlite:///file:{migrated_sqlite}?mode=ro&uri=true")
    try:
        await database.ping()
        with pytest.raises(DatabaseReadOnly, match=r"ledger\.db is read-only"):
            await database.check_writable()
    finally:
        await database.close()


async def test_a_read_only_postgres_is_named(postgres: Any) -> None:
    name = await postgres.create("migrated")
    await postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database = await Database.open(postgres.url(name))
    try:
        with pytest.raises(DatabaseReadOnly, match=r"is read-only"):
            await database.check_writable()
    finally:
        await database.close()
        await postgres.drop(name)


async def test_a_writable_database_is_left_as_it_was(database: Database) -> None:
    await database.check_writable()
    await database.check_revision(runner.head_revision())


async def test_a_schema_of_another_revision_is_refused(database: Database) -> None:
    here = runner.head_revision()
    with pytest.raises(SchemaOutdated, match=f"at revision {here}, this version needs 9999"):
        await database.check_revision("9999")


async def test_a_database_without_schema_is_refused(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        open(empty_url.removeprefix("sqlite:///"), "x").close()  # noqa: ASYNC230
    database = await Database.open(empty_url)
    try:
        assert await database.revision() is None
        with pytest.raises(SchemaOutdated, match=r"is empty.*run `tiergate migrate`"):
            await database.check_revision("0004")
        with pytest.raises(SchemaOutdated, match=r"lacks a table"):
            async with database.read() as session:
                await session.execute(text("SELECT * FROM tenants"))
    finally:
        await database.close()


async def test_a_faulty_statement_is_not_passed_off_as_an_outage(database: Database) -> None:
    """A programming error must stay one, or a bug would look like a database that is away."""
    with pytest.raises(Exception, match=r"(?i)syntax") as caught:
        async with database.read() as session:
            await session.execute(text("SELEC 1"))
    assert not isinstance(caught.value, LedgerError)


async def test_reads_change_nothing_on_sqlite(migrated_sqlite: Path) -> None:
    database = await Database.open(f"sqlite:///{migrated_sqlite}")
    try:
        with pytest.raises(DatabaseReadOnly):
            async with database.read() as session:
                await session.execute(text("UPDATE counters SET value = 7"))
    finally:
        await database.close()


async def test_a_failed_block_leaves_nothing_behind(database: Database) -> None:
    async def fail_late() -> None:
        async with database.write() as session:
            await session.execute(text("UPDATE counters SET value = 7"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_late()
    async with database.read() as session:
        assert await session.scalar(text("SELECT value FROM counters")) == 0


async def test_a_cancelled_write_gives_its_connection_back(database: Database) -> None:
    """A client that leaves cancels what ran for it; the one writer of SQLite must live on."""

    async def hang() -> None:
        async with database.write() as session:
            await session.execute(text("UPDATE counters SET value = 7"))
            await asyncio.sleep(3600)

    for _ in range(8):  # more than any pool holds
        task = asyncio.create_task(hang())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with database.write() as session:
        assert await session.scalar(text("SELECT value FROM counters")) == 0


async def test_closing_twice_is_harmless(url: str) -> None:
    database = await Database.open(url)
    await database.close()
    await database.close()


async def test_postgres_that_restarts_is_found_again(postgres: Any, database: Database) -> None:
    """A connection that died while it lay in the pool is replaced, not handed out."""
    await database.ping()
    if database.backend == "postgresql":
        await postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tiergate'"
        )
    await database.ping()
