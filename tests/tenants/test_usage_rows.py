"""Usage rows: nothing written twice, nothing lost, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tenants.database import Database
from tenants.usage import ROWS_PER_STATEMENT, insert_usage, list_usage
from tenants.values import UsageRecord


@pytest.fixture
def record(now: datetime) -> UsageRecord:
    return UsageRecord(
        request_id="r-0",
        tenant_id="t-1",
        key_id="k-1",
        tier_requested="premium",
        tier_served="free",
        model="builtin",
        prompt_tokens=100,
        cached_tokens=64,
        output_tokens=20,
        finish_reason="stop",
        stream=True,
        arrival=now,
        total_ms=812.345678,
        ttft_ms=212.000001,
        late_tokens=1,
        preemptions=2,
        slo_met=True,
    )


async def test_a_record_comes_back_as_it_was(database: Database, record: UsageRecord) -> None:
    empty = replace(record, request_id="r-1", ttft_ms=None, slo_met=None, stream=False)
    assert await insert_usage(database, [record, empty]) == 2
    assert await list_usage(database) == [empty, record]


async def test_writing_again_changes_nothing(database: Database, record: UsageRecord) -> None:
    """A writer that lost the answer to its first try sends the batch again."""
    batch = [replace(record, request_id=f"r-{i}") for i in range(10)]
    assert await insert_usage(database, batch[:6]) == 6
    changed = [replace(r, output_tokens=999) for r in batch]
    assert await insert_usage(database, changed) == 4
    rows = {r.request_id: r.output_tokens for r in await list_usage(database)}
    assert rows == {f"r-{i}": 20 if i < 6 else 999 for i in range(10)}


async def test_a_request_twice_in_one_batch_counts_once(
    database: Database, record: UsageRecord
) -> None:
    assert await insert_usage(database, [record, replace(record, output_tokens=1)]) == 1
    assert [r.output_tokens for r in await list_usage(database)] == [20]


async def test_a_batch_may_be_of_any_size(database: Database, record: UsageRecord) -> None:
    """More rows than one statement may have parameters go in one transaction all the same."""
    many = [replace(record, request_id=f"r-{i}") for i in range(2 * ROWS_PER_STATEMENT + 1)]
    assert await insert_usage(database, many) == len(many)
    assert await insert_usage(database, []) == 0
    async with database.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM usage")) == len(many)


async def test_a_batch_is_written_whole_or_not_at_all(
    database: Database, record: UsageRecord
) -> None:
    many = [replace(record, request_id=f"r-{i}") for i in range(ROWS_PER_STATEMENT + 1)]
    many[-1] = replace(many[-1], cached_tokens=101)  # more cached than there were
    with pytest.raises(IntegrityError):
        await insert_usage(database, many)
    assert await list_usage(database) == []


async def test_the_list_is_of_one_tenant_and_of_a_time(
    database: Database, record: UsageRecord, now: datetime
) -> None:
    hours = [
        replace(
            record,
            request_id=f"{tenant}-{hour}",
            tenant_id=tenant,
            arrival=now + timedelta(hours=hour),
        )
        for tenant in ("a", "b")
        for hour in range(5)
    ]
    await insert_usage(database, hours)
    found = await list_usage(
        database,
        tenant_id="a",
        since=now + timedelta(hours=1),
        until=now + timedelta(hours=4),
    )
    assert [r.request_id for r in found] == ["a-3", "a-2", "a-1"]
    assert len(await list_usage(database, limit=4)) == 4
    assert await list_usage(database, tenant_id="c") == []
