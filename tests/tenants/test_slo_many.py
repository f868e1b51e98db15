"""Many windows asked at once are those windows asked one by one, on both databases."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from slo_kit import slo_record

from tenants.database import Database
from tenants.slo_many import counts_of_windows
from tenants.slo_overview import bounds_of
from tenants.slo_store import counts, insert_slo

NOW = datetime(2026, 11, 22, 4, 37, 11, tzinfo=UTC)


async def test_many_windows_at_once_are_each_of_them(database: Database) -> None:
    """Of every window that pages show, and of others; of one tenant and of all; and of none."""
    draw = random.Random(5)
    records = [
        replace(
            slo_record(number),
            tenant_id=f"t-{number % 3}",
            tier=draw.choice(["premium", "free"]),
            arrival=NOW - timedelta(seconds=draw.randrange(35 * 86_400) ** 2 // (35 * 86_400)),
        )
        for number in range(400)
    ]
    await insert_slo(database, records)
    windows = [(since, until) for _, _, since, until in bounds_of(NOW)]
    hour = NOW.replace(minute=0, second=0)
    for _ in range(20):
        since = hour - timedelta(hours=draw.randrange(1, 700))
        windows.append((since, since + timedelta(hours=draw.randrange(0, 100))))
    for tenant_id in (None, "t-1", "nobody"):
        expected = [await counts(database, *window, tenant_id=tenant_id) for window in windows]
        assert await counts_of_windows(database, windows, tenant_id=tenant_id) == expected
        assert any(expected) == (tenant_id != "nobody")
    assert await counts_of_windows(database, []) == []
    assert await counts_of_windows(database, [(hour, hour)]) == [{}]
