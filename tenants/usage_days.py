"""Adds up what was used by the day, for lists and bars; what is billed are the usage rows.

A row is one day (UTC, of arrival) of a tier as it was served, for all, an organisation, a tenant
or a key. It grows in the very transaction that writes the usage rows, by those that are new in it:
so a month is read from a few dozen rows, and nothing counts twice. Requests are not counted here:
one may have several rows. Answers are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, String, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from tenants.database import Database
from tenants.models import ApiKey, Base, UtcDateTime
from tenants.slo_windows import DAY, floor_to
from tenants.values import Scope, UsageRecord

MOST_TARGETS = 200
MOST_DAYS = 4000
_KEY = ("scope", "target_id", "day", "tier")


class UsageDay(Base):
    """Usage rows added up (`DayUsage`); its primary key is all the index that it needs."""

    __tablename__ = "usage_days"

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    target_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    day: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    tier: Mapped[str] = mapped_column(String(64), primary_key=True)
    answers: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_nano: Mapped[int] = mapped_column(BigInteger)


class Whose(StrEnum):
    """Whose usage is added up; closed list. Of keys each has its own, not its chain's."""

    ALL = "all"
    ORGANISATION = "organisation"
    TENANT = "tenant"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class DayUsage:
    """Answers (usage rows), their tokens, and what they cost in billionths of the currency."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    @property
    def tokens(self) -> int:
        """Tokens as limits and budgets count them: of prompts, cached ones too, and of answers."""
        return self.prompt_tokens + self.output_tokens

    def plus(self, other: DayUsage) -> DayUsage:
        """Return the sum of two."""
        return DayUsage(*(getattr(self, name) + getattr(other, name) for name in FIELDS))


FIELDS = tuple(DayUsage.__dataclass_fields__)
_TABLE = UsageDay.metadata.tables[UsageDay.__tablename__]


async def add_days(
    connection: AsyncConnection, backend: str, records: Iterable[UsageRecord]
) -> None:
    """Add new usage rows to their days, within the transaction that writes them."""
    # Lists of numbers: this runs beside streams, and values that are made anew cost ten times that.
    sums: dict[tuple[str, str, datetime, str], list[int]] = {}
    for record in records:
        day, tier = floor_to(record.arrival, DAY), record.tier_served
        used = (
            1,
            record.prompt_tokens,
            record.cached_tokens,
            record.output_tokens,
            record.cost_nano,
        )
        for key in (
            ("all", "", day, tier),
            ("organisation", record.organisation_id, day, tier),
            ("tenant", record.tenant_id, day, tier),
            ("key", record.key_id, day, tier),
        ):
            row = sums.get(key)
            if row is None:
                sums[key] = list(used)
            else:
                for place, amount in enumerate(used):
                    row[place] += amount
    if not sums:
        return
    insert = postgresql.insert if backend == "postgresql" else sqlite.insert
    adding = insert(_TABLE)
    adding = adding.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: _TABLE.c[name] + adding.excluded[name] for name in FIELDS},
    )
    # In one order for all writers, so that two of them wait for each other and not for ever.
    rows: list[dict[str, Any]] = [
        dict(zip((*_KEY, *FIELDS), (*key, *sums[key]), strict=True)) for key in sorted(sums)
    ]
    await connection.execute(adding, rows)


async def usage_of(
    database: Database, whose: Whose, target_ids: Sequence[str], since: datetime, until: datetime
) -> dict[tuple[str, str], DayUsage]:
    """Return what these have used in whole days of [since, until), by (target, tier).

    At most 200 targets; of `Whose.ALL` the one target is the empty id.
    """
    assert len(target_ids) <= MOST_TARGETS, "a page of them at a time"
    query = (
        select(UsageDay.target_id, UsageDay.tier, *_sums())
        .where(
            UsageDay.scope == whose.value,
            UsageDay.target_id.in_(target_ids),
            UsageDay.day >= floor_to(since, DAY),
            UsageDay.day < until,
        )
        .group_by(UsageDay.target_id, UsageDay.tier)
    )
    async with database.read() as session:
        rows = (await session.execute(query)).all()
    return {(row[0], row[1]): DayUsage(*map(int, row[2:])) for row in rows}


async def days_of(
    database: Database, whose: Whose, target_id: str, since: datetime, until: datetime
) -> list[tuple[datetime, str, DayUsage]]:
    """Return (day, tier, usage) of each day of [since, until) on which there was any."""
    query = (
        select(UsageDay)
        .where(
            UsageDay.scope == whose.value,
            UsageDay.target_id == target_id,
            UsageDay.day >= floor_to(since, DAY),
            UsageDay.day < until,
        )
        .order_by(UsageDay.day, UsageDay.tier)
        .limit(MOST_DAYS)
    )
    async with database.read() as session:
        rows = (await session.scalars(query)).all()
    return [(r.day, r.tier, DayUsage(*(getattr(r, name) for name in FIELDS))) for r in rows]


async def spent_since(
    database: Database, scope: Scope, target_ids: Sequence[str], since: datetime, until: datetime
) -> dict[str, DayUsage]:
    """Return what owners of budgets have used in whole days; a key, by its chain, with all of it.

    At most 200 of one scope; who has used nothing is left out.
    """
    assert len(target_ids) <= MOST_TARGETS, "a page of them at a time"
    is_key = scope is Scope.KEY
    owner = ApiKey.chain_id if is_key else UsageDay.target_id
    query = select(owner, *_sums()).where(
        UsageDay.scope == scope.value,
        owner.in_(target_ids),
        UsageDay.day >= floor_to(since, DAY),
        UsageDay.day < until,
    )
    if is_key:
        query = query.join(ApiKey, ApiKey.id == UsageDay.target_id)
    async with database.read() as session:
        rows = (await session.execute(query.group_by(owner))).all()
    return {row[0]: DayUsage(*map(int, row[1:])) for row in rows}


def _sums() -> list[Any]:
    return [func.coalesce(func.sum(getattr(UsageDay, name)), 0) for name in FIELDS]
