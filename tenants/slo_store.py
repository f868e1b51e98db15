"""Keeps judged requests and their sums, in one transaction; and answers what pages and reports ask.

A request that is in the ledger already is left as it is, and is not added to the sums again, so
writing twice changes nothing. Every question is answered by an index and a bound: the sums give
windows of any length in a few hundred rows (tenants/slo_windows.py says which), lists look at no
more than `MOST_LOOKED` rows a call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, false, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.database import Database
from tenants.slo import COUNT_FIELDS, DRAWS, Outcome, SloCounts, SloRecord, count_names, overrun
from tenants.slo_models import SloCount, SloRow
from tenants.slo_windows import DAY, GRAINS, HOUR, MINUTE, ceil_to, floor_to, pieces
from tenants.usage import add_usage
from tenants.values import UsageRecord

# Rows are made ready in the caller's thread, which has streams to serve: a few at a time.
ROWS_PER_STATEMENT = 50
PAGE = 200  # rows made into records at once: others wait for the loop meanwhile
MOST_LOOKED = 2000
MOST_POINTS = 2000
WORST_OF = 500
EVERYONE = ""  # the tenant id of the sums of all

_RECORDS = SloRow.metadata.tables[SloRow.__tablename__]
_COUNTS = SloCount.metadata.tables[SloCount.__tablename__]
_FIELDS = tuple(field.name for field in dataclasses.fields(SloRecord))
_OUTCOME = _FIELDS.index("outcome")
# Rows are read as plain columns: as mapped objects they would cost three times as much.
_R = _RECORDS.c
_RECORD = [_R[name] for name in _FIELDS]
_KEY = ("tenant_id", "grain", "start", "tier")

Cursor = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, the latest first; `next_cursor` goes on. It was looked back to `looked_to`."""

    records: list[SloRecord]
    next_cursor: Cursor | None
    looked_to: datetime | None


async def insert_slo(database: Database, records: Sequence[SloRecord]) -> int:
    """Write `records` and add them to the sums in one transaction; return how many were new.

    Raises `DatabaseUnavailable` with nothing written.
    """
    async with database.write() as session:
        return len(await add_slo(await session.connection(), database.backend, records))


async def insert_rows(
    database: Database, usage: Sequence[UsageRecord], records: Sequence[SloRecord]
) -> tuple[int, list[SloRecord]]:
    """Write bills and judgements together or not at all; return what was new.

    Of bills how many. What is billed is judged, whoever is killed in between. Raises
    `DatabaseUnavailable`.
    """
    async with database.write() as session:
        connection = await session.connection()
        billed = await add_usage(connection, database.backend, usage) if usage else 0
        return billed, await add_slo(connection, database.backend, records)


async def add_slo(
    connection: AsyncConnection, backend: str, records: Sequence[SloRecord]
) -> list[SloRecord]:
    """Write `records` and add them to the sums within the transaction of a connection.

    Returns those that were new.
    """
    if not records:
        return []
    insert = postgresql.insert if backend == "postgresql" else sqlite.insert
    statement = insert(_RECORDS).on_conflict_do_nothing().returning(_R.id)
    adding = insert(_COUNTS)
    adding = adding.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: _COUNTS.c[name] + adding.excluded[name] for name in COUNT_FIELDS},
    )
    by_id: dict[str, SloRecord] = {}
    for record in records:
        by_id.setdefault(record.id, record)
    # In one order for all writers: no two wait for each other for ever.
    names, new = sorted(by_id), list[SloRecord]()
    for start in range(0, len(names), ROWS_PER_STATEMENT):
        part = [by_id[name] for name in names[start : start + ROWS_PER_STATEMENT]]
        rows = [{name: getattr(record, name) for name in _FIELDS} for record in part]
        new += [by_id[name] for name in (await connection.execute(statement, rows)).scalars()]
    sums = _sums(new)
    for start in range(0, len(sums), ROWS_PER_STATEMENT):
        await connection.execute(adding, sums[start : start + ROWS_PER_STATEMENT])
    return new


def _sums(records: Iterable[SloRecord]) -> list[dict[str, Any]]:
    """Return what these add to which rows of the sums."""
    sums: dict[tuple[str, int, int, str], dict[str, int]] = {}
    for record in records:
        names = count_names(record)
        at_s = int(record.arrival.timestamp())
        for grain in GRAINS:
            start = at_s - at_s % grain
            for tenant_id in (EVERYONE, record.tenant_id):
                key = (tenant_id, grain, start, record.tier)
                counts = sums.setdefault(key, dict.fromkeys(COUNT_FIELDS, 0))
                for name in names:
                    counts[name] += 1
                if record.tbt_met is not None:
                    counts["gaps"] += record.gaps
                    counts["late_gaps"] += record.late_gaps
    return [
        {
            **dict(zip(_KEY, key, strict=True)),
            "start": datetime.fromtimestamp(key[2], UTC),
            **sums[key],
        }
        for key in sorted(sums)
    ]


async def counts(
    database: Database,
    since: datetime,
    until: datetime,
    *,
    tenant_id: str | None = None,
    tier: str | None = None,
) -> dict[str, SloCounts]:
    """Return the sums of [since, until) by tier; both are whole minutes (UTC).

    Minutes are kept for four days: a window that begins earlier has to begin on an hour.
    """
    found: dict[str, SloCounts] = {}
    async with database.read() as session:
        for grain, first, last in pieces(since, until):
            query = _summed(SloCount.tier).where(*_within(grain, first, last, tenant_id, tier))
            for name, *values in await session.execute(query.group_by(SloCount.tier)):
                found[name] = found.get(name, SloCounts()).plus(SloCounts(*map(int, values)))
    return found


async def counts_by_tenant(
    database: Database, since: datetime, until: datetime, tenant_ids: Sequence[str]
) -> dict[tuple[str, str], SloCounts]:
    """Return the sums of whole days by (tenant, tier), for the tenants of one page."""
    query = (
        _summed(SloCount.tenant_id, SloCount.tier)
        .where(
            SloCount.tenant_id.in_(tenant_ids),
            SloCount.grain == DAY,
            SloCount.start >= floor_to(since, DAY),
            SloCount.start < until,
        )
        .group_by(SloCount.tenant_id, SloCount.tier)
    )
    async with database.read() as session:
        rows = (await session.execute(query)).all()
    return {(row[0], row[1]): SloCounts(*map(int, row[2:])) for row in rows}


async def series(
    database: Database,
    grain_s: int,
    since: datetime,
    until: datetime,
    *,
    tenant_id: str | None = None,
    tier: str | None = None,
) -> list[tuple[datetime, str, SloCounts]]:
    """Return (start, tier, sums) of each minute, hour or day with requests, the oldest first.

    `grain_s` is 60, 3600 or 86400. No more than the latest 2,000.
    """
    query = (
        select(SloCount)
        .where(*_within(grain_s, floor_to(since, grain_s), until, tenant_id, tier))
        .order_by(SloCount.start.desc(), SloCount.tier.desc())
        .limit(MOST_POINTS)
    )
    async with database.read() as session:
        rows = (await session.scalars(query)).all()
    return [(row.start, row.tier, _counts_of(row)) for row in reversed(rows)]


def _summed(*groups: Any) -> Select[Any]:
    return select(*groups, *(func.sum(getattr(SloCount, name)) for name in COUNT_FIELDS))


def _within(
    grain: int, since: datetime, until: datetime, tenant_id: str | None, tier: str | None
) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [
        SloCount.tenant_id == (EVERYONE if tenant_id is None else tenant_id),
        SloCount.grain == grain,
        SloCount.start >= since,
        SloCount.start < until,
    ]
    return found if tier is None else [*found, SloCount.tier == tier]


async def read_records(
    database: Database, *, tenant_id: str | None = None, since: datetime, until: datetime
) -> AsyncIterator[SloRecord]:
    """Yield the records of [since, until), the oldest first, read a page at a time."""
    last: Cursor | None = None
    while True:
        query = select(*_RECORD).where(_R.arrival < until)
        if tenant_id is not None:
            query = query.where(_R.tenant_id == tenant_id)
        if last is None:
            query = query.where(_R.arrival >= since)
        else:
            after = or_(_R.arrival > last[0], _R.id > last[1])
            query = query.where(and_(_R.arrival >= last[0], after))
        page = await _read(database, query.order_by(_R.arrival, _R.id).limit(PAGE))
        for record in page:
            yield record
        if len(page) < PAGE:
            return
        last = (page[-1].arrival, page[-1].id)


async def find_record(database: Database, name: str) -> SloRecord | None:
    """Return a record by its id, or the latest with that `x-request-id`; None for no record."""
    by_request = select(*_RECORD).where(_R.request_id == name).order_by(_R.arrival.desc())
    for query in (select(*_RECORD).where(_R.id == name), by_request.limit(1)):
        if found := await _read(database, query):
            return found[0]
    return None


async def newest_records(
    database: Database,
    *,
    tenant_id: str | None = None,
    tier: str | None = None,
    outcome: Outcome | None = None,
    missed: bool = False,
    before: Cursor | None = None,
    limit: int = 50,
) -> Page:
    """Return records from the latest back, before a cursor; filters hold together.

    By tenant and by `missed` an index leads; tier and outcome are looked for among the next 2,000
    rows, so a page may hold few records, or none, and still go on.
    """
    looked = select(*_RECORD).order_by(_R.arrival.desc(), _R.id.desc()).limit(MOST_LOOKED)
    if tenant_id is not None:
        looked = looked.where(_R.tenant_id == tenant_id)
    if missed:
        looked = looked.where(_R.met == false())
    if before is not None:
        earlier = or_(_R.arrival < before[0], _R.id < before[1])
        looked = looked.where(and_(_R.arrival <= before[0], earlier))
    query: Select[Any] = looked.limit(limit)
    if tier is not None or outcome is not None:
        near = looked.subquery()
        query = select(near).order_by(near.c.arrival.desc(), near.c.id.desc()).limit(limit)
        if tier is not None:
            query = query.where(near.c.tier == tier)
        if outcome is not None:
            query = query.where(near.c.outcome == outcome.value)
    found = await _read(database, query)
    if len(found) == limit:
        return Page(found, (found[-1].arrival, found[-1].id), found[-1].arrival)
    last = looked.with_only_columns(_R.arrival, _R.id).offset(MOST_LOOKED - 1).limit(1)
    async with database.read() as session:
        end = (await session.execute(last)).first()
    return Page(found, None, None) if end is None else Page(found, (end[0], end[1]), end[0])


async def worst_records(
    database: Database,
    *,
    tenant_id: str | None = None,
    tier: str | None = None,
    since: datetime,
    limit: int = 20,
) -> list[SloRecord]:
    """Return the worst of the latest 500 misses since a moment, the worst first.

    A tier's are looked for among the latest 2,000.

    The worst is who took, or waited in vain, the most times its promise, as in a report.
    """
    looked = select(*_RECORD).where(_R.met == false(), _R.arrival >= since)
    if tenant_id is not None:
        looked = looked.where(_R.tenant_id == tenant_id)
    looked = looked.order_by(_R.arrival.desc())
    query: Select[Any] = looked.limit(WORST_OF)
    if tier is not None:
        near = looked.limit(MOST_LOOKED).subquery()
        query = select(near).where(near.c.tier == tier)
        query = query.order_by(near.c.arrival.desc()).limit(WORST_OF)
    found = await _read(database, query)
    return sorted(found, key=overrun, reverse=True)[:limit]


async def sample_records(
    database: Database, *, tier: str, since: datetime, until: datetime, want: int = 5000
) -> tuple[list[SloRecord], float]:
    """Return a fair sample of a tier's records since an hour, and what share of them it is.

    It reads the records of so many `draw` numbers as `want` needs, each by the index.
    """
    span = floor_to(since, HOUR), ceil_to(until, MINUTE)
    total = (await counts(database, *span, tier=tier)).get(tier)
    offered = 0 if total is None else total.offered
    if offered == 0:
        return [], 1.0
    draws = min(DRAWS, -(-want * DRAWS // offered))
    query = select(*_RECORD).where(
        _R.tier == tier,
        _R.draw.in_(range(draws)),
        _R.arrival >= floor_to(since, HOUR),
        _R.arrival < until,
    )
    return await _read(database, query.limit(2 * want)), draws / DRAWS


async def prune_minutes(database: Database, before: datetime) -> int:
    """Delete the sums of minutes before a moment, an hour at a time; return how many rows.

    The sums of their hours and days stay.
    """
    pruned = 0
    oldest = select(func.min(SloCount.start)).where(SloCount.grain == MINUTE)
    while True:
        async with database.read() as session:
            first = await session.scalar(oldest)
        if first is None or first >= before:
            return pruned
        until = min(floor_to(first, HOUR) + timedelta(hours=1), before)
        gone = delete(SloCount).where(SloCount.grain == MINUTE, SloCount.start < until)
        async with database.write() as session:
            pruned += (await session.execute(gone)).rowcount  # type: ignore[attr-defined]


async def _read(database: Database, query: Select[Any]) -> list[SloRecord]:
    async with database.read() as session:
        rows = (await session.execute(query)).all()
    return [_record_of(list(row)) for row in rows]


def _record_of(values: list[Any]) -> SloRecord:
    values[_OUTCOME] = Outcome(values[_OUTCOME])
    return SloRecord(*values)


def _counts_of(row: SloCount) -> SloCounts:
    return SloCounts(*(getattr(row, name) for name in COUNT_FIELDS))
