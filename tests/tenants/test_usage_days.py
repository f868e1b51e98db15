"""Sums of usage by day: always what the usage rows add up to, whoever writes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from migrations import runner
from tenants.database import Database
from tenants.repository import Repository
from tenants.usage import insert_usage
from tenants.usage_days import DayUsage, Whose, days_of, spent_since, usage_of
from tenants.values import Scope, UsageRecord

BEGIN = datetime(2026, 10, 30, 22, 0, tzinfo=UTC)
LONG_AGO, FAR_AHEAD = BEGIN - timedelta(days=900), BEGIN + timedelta(days=900)


def some_usage(seed: int, count: int = 300) -> list[UsageRecord]:
    """Return rows of several tenants, keys, tiers and days, some near midnight."""
    draw = random.Random(seed)
    return [
        UsageRecord(
            request_id=f"r-{seed}-{draw.randrange(count)}",
            tenant_id=f"t-{draw.randrange(3)}",
            key_id=f"k-{draw.randrange(5)}",
            tier_requested="premium",
            tier_served=draw.choice(["premium", "free"]),
            model="builtin",
            prompt_tokens=(prompt := draw.randrange(1, 500)),
            cached_tokens=draw.randrange(prompt),
            output_tokens=draw.randrange(200),
            finish_reason="stop",
            stream=True,
            arrival=BEGIN + timedelta(seconds=draw.randrange(4 * 86_400)),
            total_ms=10.0,
            organisation_id=f"o-{draw.randrange(2)}",
            cost_nano=draw.randrange(10**12),
        )
        for _ in range(count)
    ]


async def sums_of_rows(database: Database) -> set[tuple[object, ...]]:
    """Add the usage rows up as the migration does not: row by row, outside the database."""
    found: dict[tuple[str, str, str, str], DayUsage] = {}
    async with database.read() as session:
        rows = (
            await session.execute(
                text(
                    "SELECT organisation_id, tenant_id, key_id, arrival, tier_served, "
                    "prompt_tokens, cached_tokens, output_tokens, cost_nano FROM usage"
                )
            )
        ).all()
    for payer, tenant, key, arrival, tier, *amounts in rows:
        day = str(arrival)[:10]
        for whose, target in (
            ("all", ""),
            ("organisation", payer),
            ("tenant", tenant),
            ("key", key),
        ):
            place = (whose, target, day, tier)
            found[place] = found.get(place, DayUsage()).plus(DayUsage(1, *amounts))
    return {(*place, used) for place, used in found.items()}


async def sums_kept(database: Database) -> set[tuple[object, ...]]:
    """Read the table of sums as it is."""
    query = "SELECT scope, target_id, day, tier, answers, prompt_tokens, cached_tokens, "
    async with database.read() as session:
        rows = (
            await session.execute(text(query + "output_tokens, cost_nano FROM usage_days"))
        ).all()
    return {(r[0], r[1], str(r[2])[:10], r[3], DayUsage(*map(int, r[4:]))) for r in rows}


@pytest.mark.parametrize("seed", range(3))
async def test_sums_are_those_of_the_rows_however_they_are_written(
    database: Database, seed: int
) -> None:
    """In batches of any size, with rows sent again, changed ones too, and rows twice in a batch."""
    rows, draw = some_usage(seed), random.Random(-seed)
    while rows:
        cut = draw.randrange(1, 80)
        part, rows = rows[:cut], rows[cut:]
        await insert_usage(database, part)
        again = [replace(row, output_tokens=9999) for row in draw.sample(part, len(part) // 2)]
        await insert_usage(database, again)
    kept = await sums_kept(database)
    assert kept
    assert kept == await sums_of_rows(database)


async def test_writers_at_once_lose_nothing(database: Database) -> None:
    """Ten writers whose batches meet in the same days; none waits for another for ever."""
    batches = [some_usage(seed, 60) for seed in range(10)]
    await asyncio.gather(*(insert_usage(database, batch) for batch in batches))
    assert await sums_kept(database) == await sums_of_rows(database)


async def test_what_cannot_be_written_is_in_no_sum(database: Database) -> None:
    """A batch that fails leaves neither rows nor sums."""
    bad = replace(some_usage(1, 1)[0], cached_tokens=10**6)
    with pytest.raises(Exception, match=r"(?i)constraint"):
        await insert_usage(database, [*some_usage(2, 5), bad])
    assert await sums_kept(database) == set()


async def test_the_migration_adds_up_what_is_there(empty_url: str, tmp_path: Path) -> None:
    """A ledger from before has its sums after the upgrade, as if they had always been kept."""
    await runner.upgrade(empty_url)
    database = await Database.open(empty_url)
    try:
        await insert_usage(database, some_usage(7))
        expected = await sums_kept(database)
        await runner.downgrade(empty_url, "0003")
        await runner.upgrade(empty_url)
        assert expected == await sums_kept(database) == await sums_of_rows(database)
    finally:
        await database.close()


def total(found: Sequence[DayUsage]) -> DayUsage:
    result = DayUsage()
    for one in found:
        result = result.plus(one)
    return result


async def test_questions_are_answered_by_whole_days(database: Database) -> None:
    """By target and tier, by day, and for the owner of a budget; days outside do not count."""
    await insert_usage(database, some_usage(4))
    month = datetime(2026, 11, 1, tzinfo=UTC)
    by_tenant = await usage_of(database, Whose.TENANT, ["t-0", "t-1", "t-2"], month, FAR_AHEAD)
    of_all = await usage_of(database, Whose.ALL, [""], month, FAR_AHEAD)
    assert total(list(by_tenant.values())) == total(list(of_all.values()))
    days = await days_of(database, Whose.TENANT, "t-1", month, FAR_AHEAD)
    assert min(day for day, _, _ in days) == month
    mine = total([used for (tenant, _), used in by_tenant.items() if tenant == "t-1"])
    assert total([used for _, _, used in days]) == mine
    spent = await spent_since(database, Scope.TENANT, ["t-1", "gone"], month, FAR_AHEAD)
    assert spent == {"t-1": mine}
    assert mine.tokens == mine.prompt_tokens + mine.output_tokens > 0


async def test_a_key_spends_with_all_of_its_chain(
    database: Database, repository: Repository, now: datetime
) -> None:
    """A rotation gives no second budget, so the bar of one does not begin anew either."""
    await repository.create_tenant("acme", "free", now)
    first = (await repository.create_key("acme", now)).record
    second = (await repository.rotate_key(first.id, now, timedelta(days=1))).issued.record
    row = some_usage(5, 1)[0]
    rows = [
        replace(row, request_id="a", key_id=first.id, output_tokens=3),
        replace(row, request_id="b", key_id=second.id, output_tokens=4),
    ]
    await insert_usage(database, rows)
    found = await spent_since(database, Scope.KEY, [first.id], LONG_AGO, FAR_AHEAD)
    spent = found[first.id]
    assert (spent.answers, spent.output_tokens) == (2, 7)
