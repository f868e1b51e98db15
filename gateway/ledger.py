"""Opens the ledger that the settings name, ready for use; it asks it nothing and serves nobody.

A SQLite file that is not there yet is made, because a first run should just work. Any other
database is changed only by `tiergate migrate`: a gateway never alters a schema behind its operator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from gateway.settings import Settings
from tenants.database import Database, parse_url, sqlite_file
from tenants.pepper import Pepper, load_or_create_pepper, make_pepper
from tenants.repository import Repository

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ledger:
    """An open database at the right revision, what asks it, and the pepper of its keys."""

    database: Database
    repository: Repository
    pepper: Pepper
    revision: str = ""  # that the database was found at, and has to stay at


def read_pepper(settings: Settings) -> Pepper:
    """Return the pepper of the settings, else that of its file, which is made where there is none.

    Raises `PepperUnusable`.
    """
    if settings.pepper is not None:
        return make_pepper(settings.pepper.get_secret_value().encode())
    return load_or_create_pepper(settings.pepper_file)


def existing_pepper(settings: Settings) -> Pepper:
    """Return the pepper as `read_pepper` does, but make no file: one that nobody keeps instead.

    Raises `PepperUnusable` where a file is there and cannot be used.
    """
    if settings.pepper is None and not settings.pepper_file.exists():
        return make_pepper(b"")
    return read_pepper(settings)


async def open_ledger(settings: Settings, say: Say) -> Ledger:
    """Open the ledger; `say` is told, in one line, when a database was made. The caller closes it.

    Raises errors of `tenants.errors`: no database, not at the head revision, not our pepper.
    """
    # Alembic takes half a second to import.
    from migrations.runner import current_revision, earlier_revisions, head_revision, upgrade

    url = settings.database_url
    file = sqlite_file(parse_url(url))
    # Without a revision it is new, or another process is making it at this moment: the upgrade
    # waits for that one and then finds nothing to do.
    found = None if file is None or not file.exists() else await current_revision(url)
    if file is not None and found is None:
        await upgrade(url)
        say(f"created database {file} at revision {head_revision()}")
    elif settings.demo and found is not None and found in earlier_revisions():
        # Whoever tries it out again after an update should not have to know of migrations.
        await upgrade(url)
        say(f"upgraded database {file} from revision {found} to {head_revision()}")
    async with AsyncExitStack() as on_failure:
        database = await Database.open(url)
        on_failure.push_async_callback(database.close)
        await database.check_revision(head_revision())
        pepper = read_pepper(settings)
        repository = Repository(database, pepper)
        await repository.check_pepper()
        on_failure.pop_all()
    return Ledger(database, repository, pepper, head_revision())


@asynccontextmanager
async def ledger(settings: Settings, say: Say) -> AsyncIterator[Ledger]:
    """Open the ledger for the length of a block."""
    opened = await open_ledger(settings, say)
    try:
        yield opened
    finally:
        await opened.database.close()
