"""No question about judged requests reads a table that grows with traffic from end to end."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from plan_kit import analyse, questions, whole_tables_read
from slo_kit import MOMENT
from sqlalchemy import text
from test_slo_store import some

from migrations import runner
from tenants import slo_store
from tenants.database import Database
from tenants.slo import Outcome
from tenants.slo_windows import GRAINS, MINUTE, floor_to, rolling


async def filled(folder: Path) -> Database:
    url = f"sqlite:///{folder / 'tiergate.db'}"
    await runner.upgrade(url)
    database = await Database.open(url)
    await slo_store.insert_slo(database, some(2000))
    await analyse(database)
    return database


async def test_every_question_goes_by_an_index(tmp_path: Path) -> None:
    database = await filled(tmp_path)
    now = floor_to(MOMENT, MINUTE)
    span = rolling(now, timedelta(days=30))
    before = (MOMENT, "z")
    try:
        with questions() as asked:
            for tenant_id in (None, "t1"):
                for tier in (None, "free"):
                    await slo_store.counts(database, *span, tenant_id=tenant_id, tier=tier)
                    for grain in GRAINS:
                        names = {"tenant_id": tenant_id, "tier": tier}
                        await slo_store.series(database, grain, *span, **names)
                    for missed in (False, True):
                        for cursor in (None, before):
                            await slo_store.newest_records(
                                database,
                                tenant_id=tenant_id,
                                tier=tier,
                                outcome=Outcome.FAILED,
                                missed=missed,
                                before=cursor,
                            )
                    await slo_store.worst_records(
                        database, tenant_id=tenant_id, tier=tier, since=span[0]
                    )
                async for _ in slo_store.read_records(
                    database, tenant_id=tenant_id, since=span[0], until=span[1]
                ):
                    pass
            await slo_store.counts_by_tenant(database, *span, ["t1", "t2"])
            await slo_store.find_record(database, "chatcmpl-7")
            await slo_store.find_record(database, "nobody")
            await slo_store.sample_records(database, tier="free", since=span[0], until=span[1])
            await slo_store.prune_minutes(database, MOMENT - timedelta(days=4))
        assert len(asked.asked) > 20
        assert await whole_tables_read(database, asked) == []
    finally:
        await database.close()


@pytest.mark.parametrize(
    "question",
    [
        "SELECT count(*) FROM slo_records",
        "SELECT id FROM slo_records WHERE model = 'm'",
        "SELECT id FROM slo_records WHERE outcome = 'failed' ORDER BY total_ns LIMIT 5",
        "SELECT sum(offered) FROM slo_counts",
    ],
)
async def test_reading_it_all_is_noticed(tmp_path: Path, question: str) -> None:
    database = await filled(tmp_path)
    try:
        with questions() as asked:
            async with database.read() as session:
                await session.execute(text(question))
        assert await whole_tables_read(database, asked) != []
    finally:
        await database.close()
