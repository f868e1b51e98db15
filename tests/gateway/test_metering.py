"""Usage rows: what they count; none is lost while the ledger is away, none written twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from door_kit import CHAT, chat_body, eventually, open_door
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from engine.core.clock import NS_PER_MS, utc_now
from engine.core.request import FinishReason, Slo
from engine.core.stats import RequestStats
from gateway.metering import Meter
from gateway.spool import Spool, decode_record, encode_record
from gateway.stopwatch import Stopwatch
from gateway.usage_row import UsageContext, usage_row
from migrations.runner import upgrade
from tenants.database import Database
from tenants.usage import list_usage
from tenants.values import UsageRecord

SLO = Slo(rank=0, ttft_ns=500 * NS_PER_MS, tbt_ns=100 * NS_PER_MS)


def stats_of(request_id: str = "r", **changes: object) -> RequestStats:
    values: dict[str, object] = {
        "request_id": request_id, "tenant": "t", "tier": "premium",
        "finish_reason": FinishReason.LENGTH, "arrival_ns": 0, "finished_ns": 900 * NS_PER_MS,
        "first_scheduled_ns": 10, "first_token_ns": 200 * NS_PER_MS,
        "last_token_ns": 900 * NS_PER_MS, "num_prompt_tokens": 30, "num_cached_tokens": 16,
        "num_output_tokens": 8, "preemptions": 1,
    }  # fmt: skip
    return RequestStats(**(values | changes))  # type: ignore[arg-type]


def context_of(*, bills_prompt: bool = True, token_times_ms: tuple[int, ...] = ()) -> UsageContext:
    watch = Stopwatch(0, 30, SLO)
    for at_ms in token_times_ms:
        watch.tokens(1, at_ms * NS_PER_MS)
    return UsageContext("t", "k", "premium", "free", "m", True, utc_now(), watch, bills_prompt)


def test_a_row_counts_prompt_answer_and_what_the_cache_gave() -> None:
    """The plain case, with the tier that was served and the one that was paid for."""
    row = usage_row(stats_of(), context_of())
    assert row is not None
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens) == (30, 16, 8)
    assert (row.tier_requested, row.tier_served) == ("premium", "free")
    assert (row.ttft_ms, row.total_ms, row.preemptions) == (200.0, 900.0, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finish_reason": FinishReason.REJECTED, "num_output_tokens": 0}, None),
        ({"finish_reason": FinishReason.FAILED, "num_output_tokens": 0}, None),
        ({"finish_reason": FinishReason.FAILED, "num_output_tokens": 2}, (30, 2)),
        ({"finish_reason": FinishReason.CANCELLED, "num_output_tokens": 0,
          "first_scheduled_ns": None}, (0, 0)),
        ({"finish_reason": FinishReason.CANCELLED, "num_output_tokens": 0}, (30, 0)),
        ({"finish_reason": FinishReason.FAILED, "first_scheduled_ns": None}, (30, 8)),
    ],
)  # fmt: skip
def test_what_an_unhappy_end_costs(
    changes: dict[str, object], expected: tuple[int, int] | None
) -> None:
    """Refused or failed without a token: no row. A prompt counts once its computing began."""
    row = usage_row(stats_of(**changes), context_of())
    assert (None if row is None else (row.prompt_tokens, row.output_tokens)) == expected


def test_further_choices_do_not_pay_for_the_prompt_again() -> None:
    """Only one choice of a prompt carries its tokens, and never more cached than prompt."""
    row = usage_row(stats_of(), context_of(bills_prompt=False))
    assert row is not None
    assert (row.prompt_tokens, row.cached_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("times", "met"),
    [
        ((100, 150, 200), True),
        ((510, 520), False),  # first token late: due at 500 + 250 * 30 / 1000 = 507.5 ms
        ((507, 520), True),
        ((100, 300), False),  # one late gap of few is more than one in a hundred
    ],
)
def test_the_objective_is_judged_by_the_times_at_the_door(
    times: tuple[int, ...], met: bool
) -> None:
    """Where the door saw the tokens, its times count, not the engine's."""
    row = usage_row(stats_of(num_output_tokens=len(times)), context_of(token_times_ms=times))
    assert row is not None
    assert row.slo_met is met
    assert row.ttft_ms == times[0]


RECORDS = st.builds(
    UsageRecord,
    request_id=st.text(min_size=1, max_size=20),
    tenant_id=st.text(max_size=5),
    key_id=st.text(max_size=5),
    tier_requested=st.text(max_size=5),
    tier_served=st.text(max_size=5),
    model=st.text(max_size=5),
    prompt_tokens=st.integers(0, 2**31 - 1),
    cached_tokens=st.just(0),
    output_tokens=st.integers(0, 2**31 - 1),
    finish_reason=st.text(max_size=5),
    stream=st.booleans(),
    arrival=st.datetimes(timezones=st.just(utc_now().tzinfo)),
    total_ms=st.floats(0, 1e9),
    ttft_ms=st.none() | st.floats(0, 1e9),
    slo_met=st.none() | st.booleans(),
)


@given(RECORDS.filter(lambda r: r.request_id.isprintable()))
def test_a_record_survives_the_disk(record: UsageRecord) -> None:
    """What is written to the spool is read back equal."""
    try:
        line = encode_record(record)
    except TypeError:
        return  # lone surrogates are no text; ids never have any
    assert line.count(b"\n") == 1
    assert decode_record(line) == record


def test_the_spool_is_bounded_and_says_what_it_took(tmp_path: Path) -> None:
    """Beyond its room nothing is written, and the caller learns how many were."""
    row = usage_row(stats_of(), context_of())
    assert row is not None
    spool = Spool(tmp_path, max_bytes=len(encode_record(row)) * 3)
    assert spool.append([row, row]) == 2
    assert not spool.is_nearly_full
    assert spool.append([row, row]) == 1
    assert spool.is_nearly_full
    assert spool.append([row]) == 0


def test_a_crash_in_the_middle_of_a_line_loses_only_that_line(tmp_path: Path) -> None:
    """The damaged line is put aside; those before and after it are handed back."""
    rows = [usage_row(stats_of(f"r{i}"), context_of()) for i in range(2)]
    spool = Spool(tmp_path)
    spool.append([row for row in rows[:1] if row])
    with (tmp_path / "usage.jsonl").open("ab") as file:
        file.write(b'{"request_id": "cut sh')
    spool.append([row for row in rows[1:] if row])
    assert [row for batch in spool.batches() for row in batch] == rows
    assert (tmp_path / "usage.refused.jsonl").read_bytes().startswith(b'{"request_id": "cut sh')
    assert spool.size_bytes == 0


def test_a_replay_that_is_broken_off_begins_again(tmp_path: Path) -> None:
    """Nothing is deleted before all of it was taken."""
    rows = [usage_row(stats_of(f"r{i}"), context_of()) for i in range(3)]
    spool = Spool(tmp_path)
    spool.append([row for row in rows if row])
    assert next(spool.batches()) == rows
    assert next(Spool(tmp_path).batches()) == rows


@asynccontextmanager
async def metering(folder: Path, **options: object) -> AsyncIterator[tuple[Meter, Database, Path]]:
    """A running meter on a database whose file can be moved away."""
    path = folder / "l.db"
    await upgrade(f"sqlite:///{path}")
    database = await Database.open(f"sqlite:///{path}")
    values = {"max_buffer": 100_000, "flush_s": 0.01} | options
    meter = Meter(database, Spool(folder / "spool"), **values)  # type: ignore[arg-type]
    task = asyncio.create_task(meter.run())
    try:
        yield meter, database, path
    finally:
        meter.close()
        await task
        await database.close()


async def unplug(database: Database, path: Path) -> None:
    """Take the database away from under its connections."""
    await database.close()  # the pools; they open again at need
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(file.with_name("gone-" + file.name))
    await asyncio.to_thread(path.mkdir)  # now it cannot be opened, whatever is tried


def plug_in(path: Path) -> None:
    # The file itself comes last and at once: whoever asks in between would make an empty one.
    for suffix in ("-wal", "-shm"):
        gone = path.with_name(f"gone-{path.name}{suffix}")
        if gone.exists():
            gone.rename(path.with_name(path.name + suffix))
    path.rename(path.with_name("no-file"))
    path.with_name(f"gone-{path.name}").rename(path)


async def test_an_outage_of_the_ledger_loses_and_doubles_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before, during and after an outage: every request has exactly one row in the end."""
    async with metering(tmp_path) as (meter, database, path):

        def finish(first: int, last: int) -> None:
            for number in range(first, last):
                meter.open(f"r{number:05}", context_of())
                meter.on_finish(stats_of(f"r{number:05}"))

        finish(0, 700)
        await eventually(lambda: meter.state.written == 700, "written before")
        await unplug(database, path)
        finish(700, 2000)
        await eventually(lambda: meter.state.spooled == 1300, "kept on disk")
        assert not meter.state.database_ok
        assert meter.state.spooled_bytes > 0
        plug_in(path)
        finish(2000, 2100)
        await eventually(lambda: meter.state.spooled_bytes == 0, "handed over")
        assert meter.state.database_ok
        await eventually(lambda: meter.state.buffered == 0, "all is written")
        rows = await list_usage(database, limit=1000)
        assert len(rows) == 1000
        async with database.read() as session:
            total = await session.scalar(text("SELECT count(*) FROM usage"))
        assert total == 2100
        assert meter.state.lost == 0
    assert any("usage goes to disk" in record.message for record in caplog.records)


async def test_what_an_earlier_run_left_on_disk_is_handed_over(tmp_path: Path) -> None:
    """A gateway that stopped during an outage leaves its rows to the next one."""
    row = usage_row(stats_of("left"), context_of())
    assert row is not None
    Spool(tmp_path / "spool").append([row])
    async with metering(tmp_path) as (_meter, database, _path):

        async def arrived() -> bool:
            return [r.request_id for r in await list_usage(database)] == ["left"]

        await eventually(arrived, "the row was handed over")


async def test_closing_during_an_outage_keeps_the_rows(tmp_path: Path) -> None:
    """The last rows go to disk when the ledger does not take them."""
    async with metering(tmp_path, flush_s=30) as (meter, database, path):
        await unplug(database, path)
        for number in range(3):
            meter.open(f"r{number}", context_of())
            meter.on_finish(stats_of(f"r{number}"))
    kept = [row.request_id for batch in Spool(tmp_path / "spool").batches() for row in batch]
    assert kept == ["r0", "r1", "r2"]


async def test_a_lost_row_is_counted_and_shouted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the buffer is full the loss is a number and an error line, never silence."""
    async with metering(tmp_path, max_buffer=2, flush_s=30) as (meter, _database, _path):
        for number in range(3):
            meter.open(f"r{number}", context_of())
            meter.on_finish(stats_of(f"r{number}"))
        assert meter.state.lost == 1
    lost = [record for record in caplog.records if "LOST" in record.message]
    assert [record.levelno for record in lost] == [logging.ERROR]


async def test_a_row_the_ledger_will_never_take_does_not_hold_up_the_others(
    tmp_path: Path,
) -> None:
    """A poisoned row is put aside on disk; its neighbours are written."""
    async with metering(tmp_path) as (meter, _database, _path):
        for number, preemptions in enumerate((0, -1, 0)):  # the table refuses negative counts
            meter.open(f"r{number}", context_of())
            meter.on_finish(stats_of(f"r{number}", preemptions=preemptions))
        await eventually(lambda: meter.state.written == 2, "the good ones are written")
        assert meter.state.refused == 1
    assert b'"r1"' in (tmp_path / "spool" / "usage.refused.jsonl").read_bytes()


async def test_the_same_end_told_twice_is_one_row(tmp_path: Path) -> None:
    """The engine's word counts once per request, whoever repeats it."""
    async with metering(tmp_path) as (meter, _database, path):
        for _ in range(2):
            meter.open("r", context_of())
            meter.on_finish(stats_of("r"))
        meter.on_finish(stats_of("r"))
        await eventually(lambda: meter.state.written == 1, "it is written")
        meter.on_finish(stats_of("r"))
    database = await Database.open(f"sqlite:///{path}")
    assert len(await list_usage(database)) == 1
    await database.close()


async def test_an_outage_neither_stops_nor_fails_requests(tmp_path: Path) -> None:
    """With the ledger gone, known keys are served on; readiness says what is wrong."""
    async with open_door(tmp_path) as door:
        assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
        await door.usage()
        path = door.services.settings.data_dir / "tiergate.db"
        await unplug(door.ledger.database, path)
        for _ in range(5):
            assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
        await eventually(
            lambda: door.services.meter.state.spooled == 10, "rows of both kinds are on disk"
        )
        ready = await door.http.get("/readyz")
        assert (ready.status_code, ready.json()["degraded"]) == (200, ["database"])
        plug_in(path)
        assert len(await door.usage(6)) == 6

        async def is_whole() -> bool:
            return (await door.http.get("/readyz")).json()["degraded"] == []

        await eventually(is_whole, "all is well again")
