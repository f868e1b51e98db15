"""Judged requests in real databases: nothing twice, sums equal to their rows, bounded answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from slo_kit import MOMENT, MS, slo_record

from tenants import slo_store
from tenants.database import Database
from tenants.slo import Outcome, SloRecord, add_up
from tenants.slo_windows import (
    BURN_WINDOWS,
    DAY,
    GRAINS,
    HOUR,
    MINUTE,
    calendar,
    floor_to,
    pieces,
    rolling,
)
from tenants.values import Period

MINUTES = st.integers(0, 60 * 24 * 70).map(
    lambda n: datetime(2026, 1, 30, tzinfo=UTC) + timedelta(minutes=n)
)


@given(MINUTES, MINUTES)
def test_a_window_is_its_pieces(since: datetime, until: datetime) -> None:
    """They follow each other without a gap, begin on their grain, and are few."""
    found = pieces(since, until)
    if since >= until:
        assert found == []
        return
    assert (found[0][1], found[-1][2]) == (since, until)
    assert all(a[2] == b[1] for a, b in pairwise(found))
    assert all(floor_to(m, grain) == m for grain, *ends in found for m in ends)
    assert len(found) <= 5
    rows = sum((last - first) // timedelta(seconds=grain) for grain, first, last in found)
    assert rows <= 2 * 59 + 2 * 23 + 71


def test_windows_end_with_the_minute_under_way() -> None:
    now = datetime(2026, 11, 18, 13, 47, 31, tzinfo=UTC)  # a Wednesday
    end = datetime(2026, 11, 18, 13, 48, tzinfo=UTC)
    assert rolling(now, BURN_WINDOWS["5m"]) == (end - timedelta(minutes=5), end)
    assert rolling(now, BURN_WINDOWS["30d"]) == (datetime(2026, 10, 19, 13, tzinfo=UTC), end)
    starts = [calendar(now, period)[0].day for period in (Period.DAY, Period.WEEK, Period.MONTH)]
    assert starts == [18, 16, 1]


def some(number: int, seed: int = 1) -> list[SloRecord]:
    """Return records over three days of three tenants, in no order."""
    random = Random(seed)
    return [
        slo_record(
            n,
            tenant_id=f"t{random.randrange(3)}",
            tier=random.choice(["premium", "free"]),
            outcome=random.choice(list(Outcome)),
            arrival=MOMENT - timedelta(seconds=random.uniform(0, 3 * 86_400)),
            ttft_ns=random.choice([None, 300 * MS, 900 * MS]),
            draw=random.randrange(1024),
        )
        for n in range(number)
    ]


def by_tier(records: list[SloRecord]) -> dict[str, object]:
    tiers = sorted({record.tier for record in records})
    return {tier: add_up(r for r in records if r.tier == tier) for tier in tiers}


async def test_sums_are_those_of_the_rows(database: Database) -> None:
    """For any window on minutes, for all and for one tenant: as if every row had been read."""
    records = some(600)
    assert await slo_store.insert_slo(database, records) == 600
    random = Random(2)
    for _ in range(20):
        since = floor_to(MOMENT - timedelta(minutes=random.randrange(4400)), MINUTE)
        until = since + timedelta(minutes=random.randrange(4400))
        inside = [r for r in records if since <= r.arrival < until]
        assert await slo_store.counts(database, since, until) == by_tier(inside)
        own = [r for r in inside if r.tenant_id == "t1"]
        assert await slo_store.counts(database, since, until, tenant_id="t1") == by_tier(own)
    days = MOMENT - timedelta(days=4), MOMENT + timedelta(days=1)
    listed = await slo_store.counts_by_tenant(database, *days, ["t0", "t2", "nobody"])
    assert listed == {
        (tenant, tier): add_up(r for r in records if (r.tenant_id, r.tier) == (tenant, tier))
        for tenant in ("t0", "t2")
        for tier in ("premium", "free")
    }
    for grain in GRAINS:
        points = await slo_store.series(database, grain, *days, tenant_id="t2", tier="free")
        assert [p[0] for p in points] == sorted(
            {floor_to(r.arrival, grain) for r in records if (r.tenant_id, r.tier) == ("t2", "free")}
        )


async def test_writing_twice_changes_nothing(database: Database) -> None:
    """Not again, not in one batch, not from two writers at once."""
    records = some(300)
    both = await asyncio.gather(
        slo_store.insert_slo(database, records[:200] + records[:50]),
        slo_store.insert_slo(database, list(reversed(records[100:]))),
    )
    assert sum(both) == 300
    assert await slo_store.insert_slo(database, records) == 0
    assert await slo_store.insert_slo(database, []) == 0
    span = MOMENT - timedelta(days=4), MOMENT + timedelta(hours=1)
    assert await slo_store.counts(database, *span) == by_tier(records)
    read = [r async for r in slo_store.read_records(database, since=span[0], until=span[1])]
    assert read == sorted(records, key=lambda r: (r.arrival, r.id))


async def test_lists_go_through_everything_once(database: Database) -> None:
    """Whatever the filters, page after page holds each record that they let pass, latest first."""
    records = some(2500)
    await slo_store.insert_slo(database, records)
    for filters in (
        {},
        {"tenant_id": "t1"},
        {"missed": True},
        {"tier": "free", "outcome": Outcome.FAILED},
        {"tenant_id": "t2", "missed": True, "tier": "premium"},
    ):
        expected = [
            r
            for r in sorted(records, key=lambda r: (r.arrival, r.id), reverse=True)
            if r.tenant_id == filters.get("tenant_id", r.tenant_id)
            and r.tier == filters.get("tier", r.tier)
            and r.outcome == filters.get("outcome", r.outcome)
            and (r.met is False or "missed" not in filters)
        ]
        found: list[SloRecord] = []
        cursor = None
        while True:
            page = await slo_store.newest_records(database, before=cursor, limit=77, **filters)  # type: ignore[arg-type]
            found += page.records
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == expected


async def test_a_record_is_found_by_both_its_names(database: Database) -> None:
    first, again = slo_record(1, request_id="mine"), slo_record(2, request_id="mine")
    await slo_store.insert_slo(database, [again, first])
    assert await slo_store.find_record(database, first.id) == first
    assert await slo_store.find_record(database, "mine") == again
    assert await slo_store.find_record(database, "else") is None


async def test_the_worst_come_first(database: Database) -> None:
    late = [slo_record(n, ttft_ns=(600 + n) * MS) for n in range(30)]
    in_vain = slo_record(99, outcome=Outcome.FAILED, ttft_ns=None, gaps=0, needed_tbt_ns=None)
    at_once = slo_record(98, outcome=Outcome.REFUSED, ttft_ns=None, gaps=0, total_ns=0)
    stuttered = slo_record(97, late_gaps=9, needed_tbt_ns=160 * MS)
    await slo_store.insert_slo(database, [slo_record(100), at_once, *late, in_vain, stuttered])
    since = MOMENT - timedelta(days=1)
    worst = await slo_store.worst_records(database, since=since, limit=4)
    assert worst == [in_vain, stuttered, *reversed(late[-2:])]
    assert await slo_store.worst_records(database, since=since, tenant_id="t2") == []


async def test_a_sample_is_fair_and_bounded(database: Database) -> None:
    """It is all of some draws, as many as are wanted of what there is, and says what share."""
    records = some(2000)
    await slo_store.insert_slo(database, records)
    span = {"since": MOMENT - timedelta(days=4), "until": MOMENT}
    found, share = await slo_store.sample_records(database, tier="free", want=200, **span)
    assert {r.id for r in found} == {
        r.id for r in records if r.tier == "free" and r.draw < share * 1024
    }
    assert 100 < len(found) <= 400
    everyone, whole = await slo_store.sample_records(database, tier="free", **span)
    assert (len(everyone), whole) == (sum(r.tier == "free" for r in records), 1.0)
    assert await slo_store.sample_records(database, tier="none", **span) == ([], 1.0)


async def test_of_a_long_series_the_latest_points_are_shown(database: Database) -> None:
    """A chart that ends yesterday because there are many tiers would hide what happens now."""
    asked = [
        slo_record(n, tier=f"tier-{n % 12:02d}", arrival=MOMENT - timedelta(hours=n // 12))
        for n in range(12 * 168)
    ]
    await slo_store.insert_slo(database, asked)
    span = MOMENT - timedelta(days=7), MOMENT + timedelta(minutes=1)
    points = [(start, tier) for start, tier, _ in await slo_store.series(database, HOUR, *span)]
    assert len(points) == slo_store.MOST_POINTS
    assert points == sorted((r.arrival, r.tier) for r in asked)[-slo_store.MOST_POINTS :]


async def test_old_minutes_go_and_their_hours_stay(database: Database) -> None:
    records = some(400)
    await slo_store.insert_slo(database, records)
    before = floor_to(MOMENT - timedelta(days=1), HOUR)
    assert await slo_store.prune_minutes(database, before) > 0
    assert await slo_store.prune_minutes(database, before) == 0
    span = floor_to(MOMENT - timedelta(days=4), DAY), MOMENT
    minutes = await slo_store.series(database, MINUTE, *span)
    assert min(start for start, *_ in minutes) >= before
    inside = [r for r in records if r.arrival < MOMENT]
    assert await slo_store.counts(database, *span) == by_tier(inside)
