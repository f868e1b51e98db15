"""What all parts of the repository share: looking things up by name, telling of a change."""

from __future__ import annotations

import re
import secrets
from datetime import datetime

from sqlalchemy import func, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.database import Database
from tenants.errors import InvalidValue, NotFound
from tenants.keys import TokenSource
from tenants.models import Counter, Organisation, Tenant, Tier, UtcDateTime
from tenants.pepper import Pepper

KEYS_COUNTER = "keys"
# The channel on which Postgres tells of a change as soon as it is committed.
CHANNEL = "tiergate_keys"
MAX_ROWS = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PAGE_OF_A_NEW_ONE = "new"
_LIKE_AN_ID = re.compile(r"[0-9A-Fa-f]{32}")


class Part:
    """Asks and changes one database; each part of the repository knows one kind of thing."""

    def __init__(
        self, database: Database, pepper: Pepper, token_source: TokenSource = secrets
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._token_source = token_source

    @property
    def database(self) -> Database:
        """The database that this repository asks."""
        return self._database


def check_name(what: str, name: str) -> None:
    """Raise `InvalidValue` for a name that cannot be typed or printed everywhere."""
    if _NAME.fullmatch(name) is None:
        raise InvalidValue(
            f"{what}'s name has 1 to 64 letters, digits, dots, dashes or underscores, "
            "and starts with a letter or a digit"
        )


def check_unambiguous(what: str, name: str) -> None:
    """Raise `InvalidValue` for a name that means something else where things are looked up.

    Names and ids are looked up by one word, and the admin pages have `new` in the place of a name.
    """
    if _LIKE_AN_ID.fullmatch(name) is not None:
        raise InvalidValue(f"{what}'s name cannot be 32 hexadecimal digits: ids look like that")
    if name == _PAGE_OF_A_NEW_ONE:
        raise InvalidValue(
            f"{what}'s name cannot be {name!r}: that is the address of the form for another one"
        )


def page_size(limit: int) -> int:
    """Return how many rows a page may have: `limit`, but never more than 1,000."""
    return max(1, min(limit, MAX_ROWS))


async def require_tier(session: AsyncSession, name: str) -> None:
    """Raise `NotFound`, with the names there are, for an unknown tier."""
    if await session.get(Tier, name) is None:
        known = await session.scalars(select(Tier.name).order_by(Tier.rank))
        raise NotFound(f"there is no tier {name!r}; there are: {', '.join(known)}")


async def find_tenant(session: AsyncSession, name_or_id: str) -> Tenant:
    """Return a tenant's row; raises `NotFound`."""
    # Ids go first here and below. Much is asked by the id of who may see it, and ledgers may hold
    # names of old that look like ids: none of them may stand before what has that id.
    for column in (Tenant.id, Tenant.name):
        row = await session.scalar(select(Tenant).where(column == name_or_id))
        if row is not None:
            return row
    raise NotFound(f"there is no tenant {name_or_id!r}")


async def find_organisation(session: AsyncSession, name_or_id: str) -> Organisation:
    """Return an organisation's row; raises `NotFound`."""
    for column in (Organisation.id, Organisation.name):
        row = await session.scalar(select(Organisation).where(column == name_or_id))
        if row is not None:
            return row
    raise NotFound(f"there is no organisation {name_or_id!r}")


async def tell_change(session: AsyncSession) -> None:
    """Let every gateway know, once this transaction is committed, that its memory is old.

    The counter is what counts; the notice, which only Postgres knows, just makes them look sooner.
    """
    change = update(Counter).where(Counter.name == KEYS_COUNTER).values(value=Counter.value + 1)
    await session.execute(change)
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(func.pg_notify(CHANNEL, "")))


async def database_now(session: AsyncSession) -> datetime:
    """Return the moment by the database's clock."""
    moment: datetime | None = await session.scalar(
        select(type_coerce(func.current_timestamp(), UtcDateTime))
    )
    assert moment is not None, "every database knows the time"
    return moment
