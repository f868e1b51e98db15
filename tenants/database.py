"""Opens SQLite or Postgres and hands out transactions; it knows no table.

SQLite gets two engines. A transaction that reads first and writes later fails with "database is
locked" when another process wrote in between, whatever the time-out says; so everything that may
write begins with BEGIN IMMEDIATE on its own engine, and reads stay deferred. Postgres has one pool.
Whatever the driver throws leaves this file as an error of `tenants.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tenants.errors import DatabaseReadOnly, DatabaseUnavailable, InvalidValue, SchemaOutdated

CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30.0
BUSY_TIMEOUT_MS = 10_000
POOL_SIZE = 5
LISTENER_NAME = "tiergate listener"

# SQLSTATE (Postgres manual, appendix A): a whole class by its two characters, or one condition.
_UNAVAILABLE = ("08", "28", "3D", "42501", "53", "57P", "58", "XX")
_READ_ONLY = ("25006",)
_NO_TABLE = ("42P01", "42703")


def parse_url(url: str) -> URL:
    """Return `url` with the driver this house uses; raises `InvalidValue` for any other database.

    Accepts `sqlite:///FILE` and `postgresql://USER:PASSWORD@HOST/NAME` (also `postgres://`, and
    libpq's `sslmode`).
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise InvalidValue(
            "the database URL must look like sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InvalidValue("a SQLite database must be a file: sqlite:///FILE")
        return parsed.set(drivername="sqlite+aiosqlite")
    if kind in ("postgresql", "postgres"):
        query = dict(parsed.query)
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    raise InvalidValue(
        f"cannot keep the ledger in {kind!r}; use sqlite:///FILE or postgresql://..."
    )


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite URL, None for Postgres."""
    if url.get_backend_name() != "sqlite":
        return None
    name = url.database or ""
    return Path(name.removeprefix("file:").partition("?")[0])


def create_engine(url: URL, *, writes: bool, for_migrations: bool = False) -> AsyncEngine:
    """Return an engine; for SQLite one that begins every transaction as a writer, or never writes.

    Migrations may take long, and SQLite's batch mode drops and renames whole tables, so for them
    statements have no time-out and SQLite checks no foreign keys.
    """
    if url.get_backend_name() == "postgresql":
        connect_args = {
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": None if for_migrations else STATEMENT_TIMEOUT_S,
            "server_settings": {"application_name": "tiergate"},
        }
        return create_async_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=CONNECT_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args=connect_args,
        )
    # One connection writes at a time anyway: within a process they queue here, in order.
    engine = create_async_engine(
        url,
        pool_size=1 if writes else POOL_SIZE,
        max_overflow=0,
        pool_timeout=STATEMENT_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
    )

    def on_connect(connection: Any, _record: object) -> None:
        # The driver must not begin transactions by itself; the event below does.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _pragmas(writes=writes, foreign_keys=not for_migrations):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine


def _pragmas(*, writes: bool, foreign_keys: bool) -> list[str]:
    pragmas = [
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "synchronous=NORMAL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
    ]
    # WAL is a property of the file, set by whoever may write to it.
    return [*pragmas, "journal_mode=WAL"] if writes else [*pragmas, "query_only=ON"]


class Database:
    """An open database: transactions to read and to write, and its schema's revision."""

    def __init__(self, url: URL, reader: AsyncEngine, writer: AsyncEngine) -> None:
        self._url = url
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to an existing database.

        Raises `InvalidValue` for a URL that cannot be, `DatabaseUnavailable` when nothing answers.
        """
        parsed = parse_url(url)
        file = sqlite_file(parsed)
        if file is not None and not file.is_file():
            # SQLite would make an empty file, and a typo would look like a lost database.
            raise DatabaseUnavailable(f"there is no database {file}; create it: tiergate migrate")
        reader = create_engine(parsed, writes=False)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        writer = create_engine(parsed, writes=True) if is_sqlite else reader
        database = cls(parsed, reader, writer)
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(database.close)
            await database.ping()
            on_failure.pop_all()
        return database

    async def close(self) -> None:
        """Give all connections back; harmless when repeated."""
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()

    @property
    def name(self) -> str:
        """The URL without its password, for messages."""
        return display_name(self._url)

    @property
    def backend(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    def listening_engine(self) -> AsyncEngine | None:
        """Return an engine whose one connection is nobody else's; None where nobody is told."""
        if self.backend != "postgresql":
            return None
        return create_async_engine(
            self._url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "command_timeout": CONNECT_TIMEOUT_S,
                "server_settings": {"application_name": LISTENER_NAME},
            },
        )

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Yield a session that sees one state of the database and changes nothing."""
        with operating_errors(self.name):
            async with AsyncSession(self._reader, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Yield a session whose changes are kept together at the end, or not at all.

        `IntegrityError` passes through: what it means is for the caller to say.
        """
        with operating_errors(self.name):
            async with (
                AsyncSession(self._writer, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def check_writable(self) -> None:
        """Raise `DatabaseReadOnly` where nothing can be written; changes nothing.

        A write is tried, because a lock is given on a read-only file too.
        """
        async with self.write() as session:
            await session.execute(text("UPDATE alembic_version SET version_num = version_num"))

    async def revision(self) -> str | None:
        """Return the schema's revision, None for a database without one."""
        async with self.read() as session:
            connection = await session.connection()
            if not await connection.run_sync(lambda c: inspect(c).has_table("alembic_version")):
                return None
            rows = await session.scalars(text("SELECT version_num FROM alembic_version"))
            return max(rows.all(), default=None)

    async def check_revision(self, expected: str) -> None:
        """Raise `SchemaOutdated` unless the schema is at `expected`."""
        found = await self.revision()
        if found != expected:
            state = f"at revision {found}" if found else "empty"
            raise SchemaOutdated(
                f"database {self.name} is {state}, this version needs {expected}: "
                "run `tiergate migrate`"
            )


def display_name(url: URL) -> str:
    """Return the URL as people write it, without driver and password."""
    file = sqlite_file(url)
    if file is not None:
        return str(file)
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


@contextmanager
def operating_errors(name: str) -> Iterator[None]:
    """Turn what drivers throw into the ledger's own errors; `name` is the database's."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise _translate(error, name) from error
    except PoolTimeout as error:
        raise DatabaseUnavailable(f"all connections to database {name} are busy") from error
    except (OSError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise DatabaseUnavailable(f"database {name} cannot be reached: {reason}") from error


def _translate(error: DBAPIError, name: str) -> Exception:
    said = " ".join(str(error.orig).split())
    state = str(getattr(error.orig, "sqlstate", None) or "")
    lower = said.lower()
    if state.startswith(_READ_ONLY) or "readonly database" in lower:
        return DatabaseReadOnly(f"database {name} is read-only")
    if state.startswith(_NO_TABLE) or "no such table" in lower or "no such column" in lower:
        return SchemaOutdated(f"database {name} lacks a table or column: run `tiergate migrate`")
    if "database is locked" in lower:
        return DatabaseUnavailable(f"database {name} is held by another writer for too long")
    sqlite_away = ("unable to open", "not a database", "disk", "malformed")
    if error.connection_invalidated or state.startswith(_UNAVAILABLE):
        return DatabaseUnavailable(f"database {name} is not available: {said}")
    if any(sign in lower for sign in sqlite_away):
        return DatabaseUnavailable(f"database {name} is not available: {said}")
    return error  # a fault of ours: let it be seen whole
