"""Requests that count nowhere fill neither the ledger nor the disk, and push out nobody's bill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from door_kit import CHAT, chat_body, open_door
from hypothesis import given
from hypothesis import strategies as st

from engine.core.clock import NS_PER_S, utc_now
from gateway.crowd import Crowd
from gateway.slo_desk import SloDesk
from gateway.spool import Spool, encode_record
from migrations import runner
from tenants import slo_store
from tenants.database import Database
from tenants.errors import DatabaseUnavailable
from tenants.slo import Outcome, SloRecord
from tenants.usage import list_usage
from tenants.values import UsageRecord


def bill(number: int) -> UsageRecord:
    return UsageRecord(
        f"c-{number}", "t", "k", "p", "p", "m", 1, 0, 1, "stop", True, utc_now(), 1.0
    )


def judged(number: int, outcome: Outcome = Outcome.COMPLETED) -> SloRecord:
    return SloRecord(
        *(f"c-{number}", "r", "t", "k", "m", "chat", "p", "p", 1, utc_now(), outcome, "", True),
        *(1, 1, 9, None, 5, 10, 0, 0, 10, "gap", None, 7, True, True, None, True),
    )  # fmt: skip


def test_a_flood_of_nonsense_leaves_the_disk_to_bills(tmp_path: Path) -> None:
    """It has a sixteenth, judgements have a half, and whatever is billed has all of it."""
    spool = Spool(tmp_path, max_bytes=100_000)
    nonsense = [judged(n, Outcome.LIMITED) for n in range(500)]
    kept = spool.append(nonsense)
    assert 0 < kept * len(encode_record(nonsense[0])) <= 100_000 // 16
    assert spool.append(nonsense) == 0
    kept = spool.append([judged(n) for n in range(500)])
    assert 60 < kept < 500
    assert spool.size_bytes <= 50_000
    bills = [bill(n) for n in range(500)]
    assert spool.append([*nonsense, *bills]) > 90
    assert 99_000 < spool.size_bytes <= 100_000


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("ab")), max_size=200))
def test_in_no_minute_are_more_kept_than_so_many(steps: list[tuple[int, str]]) -> None:
    """Of each tenant by itself; what is left out is counted."""
    crowd, now_ns, kept = Crowd(most=3), 0, list[tuple[int, str]]()
    for seconds, tenant in steps:
        now_ns += seconds * NS_PER_S
        if crowd.has_room(tenant, now_ns):
            kept.append((now_ns, tenant))
    assert len(kept) + crowd.num_left_out == len(steps)
    for name in "ab":
        times = [at for at, tenant in kept if tenant == name]
        # Two windows may lie in any minute.
        assert all(b - a >= 0 for a, b in zip(times, times[6:], strict=False))
        for first in times:
            assert sum(first <= at < first + 60 * NS_PER_S for at in times) <= 6


async def test_what_is_left_out_is_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that count are always written down, whoever sends how many."""
    async with open_door(tmp_path) as door:
        desk: SloDesk = door.services.slo
        desk.crowd = Crowd(most=2)
        for _ in range(5):
            assert (await door.post(CHAT, b"{")).status_code == 400
            assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
        assert desk.crowd.num_left_out == 3
        metrics = (await door.http.get("/metrics")).text
        assert "tiergate_slo_left_out_total 3" in metrics


@pytest.mark.parametrize("breaks", ["bill", "judgement"])
async def test_a_bill_and_its_judgement_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """Whatever breaks in the middle, there is never one without the other."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    await runner.upgrade(url)
    database = await Database.open(url)

    async def broken(*_: object) -> int:
        raise OSError("the disk is gone")

    name = {"bill": "add_usage", "judgement": "add_slo"}[breaks]
    try:
        with monkeypatch.context() as patched:
            patched.setattr(slo_store, name, broken)
            with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
                await slo_store.insert_rows(database, [bill(1)], [judged(1)])
        assert await list_usage(database) == []
        assert (await slo_store.newest_records(database)).records == []
        record = judged(1)
        assert await slo_store.insert_rows(database, [bill(1)], [record]) == (1, [record])
        assert await slo_store.insert_rows(database, [bill(1)], [record]) == (0, [])
    finally:
        await database.close()


def test_lines_of_the_two_kinds_are_told_apart() -> None:
    for record in (bill(1), judged(1)):
        fields = json.loads(encode_record(record))
        assert ("outcome" in fields) == isinstance(record, SloRecord)
