"""Keeps what was used, one row a request, written in batches; what makes a price is not known here.

Writing a row again changes nothing, so a writer that does not know whether its last batch arrived
simply sends it again (laws of metering: nothing twice, nothing lost).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.database import Database
from tenants.models import Usage
from tenants.usage_days import add_days
from tenants.values import UsageRecord

ROWS_PER_STATEMENT = 500  # 20 columns each: under the 32,766 parameters that both databases allow
MAX_ROWS = 1000

_TABLE = Usage.metadata.tables[Usage.__tablename__]
_FIELDS = tuple(field.name for field in dataclasses.fields(UsageRecord))


async def insert_usage(database: Database, records: Sequence[UsageRecord]) -> int:
    """Write `records` and add them to their days in one transaction; return how many were new.

    A record whose request id is in the ledger already is left as it is. Raises
    `DatabaseUnavailable` with nothing written.
    """
    async with database.write() as session:
        return await add_usage(await session.connection(), database.backend, records)


async def add_usage(
    connection: AsyncConnection, backend: str, records: Sequence[UsageRecord]
) -> int:
    """Do so within the transaction of a connection."""
    firsts: dict[str, UsageRecord] = {}
    for record in records:
        firsts.setdefault(record.request_id, record)
    new: list[UsageRecord] = []
    make = postgresql.insert if backend == "postgresql" else sqlite.insert
    # Rows go as parameters of one statement that is compiled once: as part of the statement they
    # would cost the caller's thread a quarter of a millisecond each.
    statement = make(_TABLE).on_conflict_do_nothing().returning(_TABLE.c.request_id)
    # In one order for all writers: no two wait for each other for ever.
    names = sorted(firsts)
    for start in range(0, len(names), ROWS_PER_STATEMENT):
        part = [firsts[name] for name in names[start : start + ROWS_PER_STATEMENT]]
        rows = [{name: getattr(record, name) for name in _FIELDS} for record in part]
        new += [firsts[name] for name in (await connection.execute(statement, rows)).scalars()]
    await add_days(connection, backend, new)
    return len(new)


async def list_usage(
    database: Database,
    *,
    tenant_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 100,
) -> list[UsageRecord]:
    """Return up to `limit` (at most 1,000) records of [since, until), the latest arrival first."""
    query = select(Usage).order_by(Usage.arrival.desc(), Usage.request_id.desc())
    if tenant_id is not None:
        query = query.where(Usage.tenant_id == tenant_id)
    if since is not None:
        query = query.where(Usage.arrival >= since)
    if until is not None:
        query = query.where(Usage.arrival < until)
    async with database.read() as session:
        rows = await session.scalars(query.limit(min(limit, MAX_ROWS)))
        return [UsageRecord(**{name: getattr(row, name) for name in _FIELDS}) for row in rows]
