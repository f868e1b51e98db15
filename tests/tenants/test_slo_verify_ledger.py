"""The checker of reports on SLOs finds every change of the ledger: rows, sums, bills, promises."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from slo_ledger_kit import CASES, Slos

from tenants.database import Database
from tenants.repository import Repository
from tenants.slo import COUNT_FIELDS
from tenants.slo_store import insert_slo, prune_minutes
from tenants.slo_verify import Differs, verify_report
from tenants.slo_verify_file import FACTS
from tenants.slo_verify_ledger import LedgerCheck
from tenants.usage import insert_usage
from tenants.values import UsageRecord

NOW = datetime(2026, 11, 20, 12, 34, tzinfo=UTC)
# What a request is called and by whom it was asked can be checked by the ledger only.
NAMES = (
    *("id", "request_id", "key_id", "model", "operation", "queue_ns", "output_tokens", "draw"),
    *("trace_id", "arrival"),
)


@pytest.fixture
async def slos(database: Database, repository: Repository) -> Slos:
    made = Slos(database, repository, NOW)
    await made.open("acme", "beta")
    await made.fill(3 * len(CASES) * 4, days=20, names=("acme", "beta"))
    return made


STRANGE = {
    "stream": "NOT stream",
    "arrival": None,
    "met": "NOT COALESCE(met, false)",
    "ttft_met": "NOT COALESCE(ttft_met, false)",
    "tbt_met": "NOT COALESCE(tbt_met, false)",
    "available": "NOT COALESCE(available, false)",
    "eased": "NOT eased",
    "outcome": "'invalid'",
    "tbt_mode": "CASE tbt_mode WHEN 'gap' THEN 'stream' ELSE 'gap' END",
    "trace_id": "'ffff'",
}
TEXTS = ("id", "request_id", "key_id", "model", "operation", "tier_asked", "tier", "reason")


@pytest.mark.parametrize("column", [name for name in FACTS if name != "arrival"])
async def test_a_changed_row_of_the_ledger_is_found(
    slos: Slos, tmp_path: Path, column: str
) -> None:
    """Each column of a judged request: in an older report, and in one made after the change."""
    name = column
    before = await slos.report(tmp_path, "json", slos.span("acme"))
    shutil.move(before, tmp_path / "before.json")
    whose = slos.tenants["acme"]
    mine = [r for r in slos.records if r.tenant_id == whose and r.met and r.gaps]
    victim = mine[3].id
    to = STRANGE.get(name) or ("'changed'" if name in TEXTS else f"COALESCE({name}, 0) + 1")
    await slos.execute(f"UPDATE slo_records SET {name} = {to} WHERE id = '{victim}'")
    with pytest.raises(Differs, match=name if name != "id" else "the ledger has request"):
        await slos.verify(tmp_path / "before.json")
    after = await slos.report(tmp_path, "json", slos.span("acme"))
    told_only_by_a_file_of_before = {
        *(*NAMES, "reason", "total_ns", "stream", "prompt_tokens", "ttft_ns", "gaps", "eased"),
        *("tier_version", "ttft_due_ns", "late_gaps", "tbt_mode", "needed_tbt_ns"),
    }
    if name not in told_only_by_a_file_of_before:
        with pytest.raises(Differs):
            await slos.verify(after)


@pytest.mark.parametrize("name", COUNT_FIELDS)
async def test_a_changed_sum_of_the_ledger_is_found(slos: Slos, tmp_path: Path, name: str) -> None:
    """Each column of the sums that pages and alerts are made from, by day, hour and minute."""
    file = await slos.report(tmp_path, "csv", slos.span("acme", 25))
    await slos.verify(file)
    whose = slos.tenants["acme"]
    # Of minutes the latest: those of long ago are nobody's any more.
    for grain, word, which in (
        (86_400, "day", "min"),
        (3600, "hour", "min"),
        (60, "minute", "max"),
    ):
        where = f"WHERE grain = {grain} AND tenant_id = '{whose}'"
        one = f"{where} AND start = (SELECT {which}(start) FROM slo_counts {where})"
        await slos.execute(f"UPDATE slo_counts SET {name} = {name} + 1 {one}")
        with pytest.raises(Differs, match=f"sums of the {word} .*{name} is 1 too high"):
            await slos.verify(file)
        await slos.execute(f"UPDATE slo_counts SET {name} = {name} - 1 {one}")
    # What is not whole in the span is checked against the other tenants' only.
    half = f"WHERE grain = 3600 AND tenant_id = '{whose}'"
    last = f"{half} AND start = (SELECT max(start) FROM slo_counts {half})"
    await slos.execute(f"UPDATE slo_counts SET {name} = {name} + 1 {last}")
    with pytest.raises(Differs, match=f"{name} of all tenants together is not the sum"):
        await slos.verify(file)


async def test_sums_of_all_tenants_are_the_tenants_together(slos: Slos, tmp_path: Path) -> None:
    """And a row of sums that is not there is missed, but for minutes that were thrown away."""
    file = await slos.report(tmp_path, "csv", slos.span("acme", 25))
    everyone = "WHERE tenant_id = '' AND grain = 3600 AND tier = 'free'"
    one = f"{everyone} AND start = (SELECT min(start) FROM slo_counts {everyone})"
    await slos.execute(f"UPDATE slo_counts SET bad_tbt = bad_tbt + 1 {one}")
    with pytest.raises(Differs, match="bad_tbt of all tenants together is not the sum"):
        await slos.verify(file)
    await slos.execute(f"UPDATE slo_counts SET bad_tbt = bad_tbt - 1 {one}")
    for grain, word in ((3600, "hour"), (86_400, "day")):
        kept = f"grain = {grain} AND start < '2026-11-05'"
        await slos.execute(f"CREATE TABLE kept AS SELECT * FROM slo_counts WHERE {kept}")
        await slos.execute(f"DELETE FROM slo_counts WHERE {kept}")
        with pytest.raises(Differs, match=f"the ledger lacks sums of the {word}"):
            await slos.verify(file)
        await slos.execute("INSERT INTO slo_counts SELECT * FROM kept")
        await slos.execute("DROP TABLE kept")
    await slos.verify(file)


async def test_minutes_that_were_thrown_away_are_not_missed(slos: Slos, tmp_path: Path) -> None:
    """Only those older than four days by the clock."""
    file = await slos.report(tmp_path, "csv", slos.span("acme", 25))
    await prune_minutes(slos.database, NOW - timedelta(days=4))
    await verify_report(file, LedgerCheck(slos.database, NOW))
    # A gateway hands in what it had kept on disk: of that minute only this one is in the sums.
    old = max(r.arrival for r in slos.records if r.arrival < NOW - timedelta(days=5))
    late = await slos.record(9000, CASES[0], "acme", old)
    await insert_slo(slos.database, [late])
    file = await slos.report(tmp_path, "csv", slos.span("acme", 25))
    await verify_report(file, LedgerCheck(slos.database, NOW))
    await prune_minutes(slos.database, NOW - timedelta(minutes=1))
    with pytest.raises(Differs, match="the ledger lacks sums of the minute"):
        await verify_report(file, LedgerCheck(slos.database, NOW))


async def test_a_request_that_came_late_to_the_ledger_or_left_it_is_found(
    slos: Slos, tmp_path: Path
) -> None:
    """A gateway had kept it on disk while the report was made: the report lacks it."""
    file = await slos.report(tmp_path, "html", slos.span("acme"))
    mine = [r for r in slos.records if r.tenant_id == slos.tenants["acme"]]
    late = dataclasses.replace(mine[3], id="late")
    await insert_slo(slos.database, [late])
    with pytest.raises(Differs, match="the ledger has request late, the file has"):
        await slos.verify(file)
    await slos.execute("DELETE FROM slo_records WHERE id = 'late'")
    with pytest.raises(Differs, match="too high in the ledger"):
        await slos.verify(file)
    last = max(mine, key=lambda r: (r.arrival, r.id))
    await slos.execute(f"DELETE FROM slo_records WHERE id = '{last.id}'")
    with pytest.raises(Differs, match="the ledger has none, the file has request"):
        await slos.verify(file)
    # It ends what it has found nothing wrong with as well as what it has.
    await verify_report(file)


async def test_a_bill_without_a_judgement_is_found(slos: Slos, tmp_path: Path) -> None:
    """A request was billed after judging began, and nobody says how it went."""
    bill = UsageRecord(
        request_id="billed",
        tenant_id=slos.tenants["acme"],
        key_id="k",
        tier_requested="premium",
        tier_served="premium",
        model="m",
        prompt_tokens=1,
        cached_tokens=0,
        output_tokens=1,
        finish_reason="stop",
        stream=False,
        arrival=NOW - timedelta(minutes=1),
        total_ms=1.0,
    )
    await insert_usage(slos.database, [bill])
    file = await slos.report(tmp_path, "json", slos.span("acme"))
    with pytest.raises(Differs, match="the ledger bills request billed, and has no judgement"):
        await slos.verify(file)


async def test_a_promise_is_that_of_the_tiers_version(slos: Slos, tmp_path: Path) -> None:
    """Judged more strictly, more loosely without the client's wish, or timed otherwise: found."""
    mine = [r for r in slos.records if r.tenant_id == slos.tenants["acme"] and r.met and r.gaps]
    plain = next(r for r in mine if not r.eased and r.stream and r.tier == "premium")
    for changes, said in (
        ({"ttft_due_ns": plain.ttft_due_ns - 1, "ttft_ns": 5}, "more strictly than the"),
        ({"ttft_due_ns": plain.ttft_due_ns + 1, "ttft_ns": 5}, "its client did not ask"),
        ({"tbt_ns": plain.tbt_ns + 1}, "its client did not ask"),
        ({"tbt_mode": "stream"}, "its tokens are timed by 'stream', the promise is 'gap'"),
    ):
        wrong = dataclasses.replace(plain, id="wrong", **changes)
        await insert_slo(slos.database, [wrong])
        file = await slos.report(tmp_path, "csv", slos.span("acme"))
        with pytest.raises(Differs, match=said):
            await verify_report(file)
        await slos.execute("DELETE FROM slo_records WHERE id = 'wrong'")
    wanted = dataclasses.replace(
        plain, id="wanted", ttft_due_ns=plain.ttft_due_ns + 1, ttft_ns=5, eased=True
    )
    await insert_slo(slos.database, [wanted])
    await verify_report(await slos.report(tmp_path, "csv", slos.span("acme")))


async def test_a_tenant_may_be_called_otherwise_today(slos: Slos, tmp_path: Path) -> None:
    """It has another name since, or belongs to another organisation: the checker says so."""
    file = await slos.report(tmp_path, "csv", slos.span("acme"))
    assert (await slos.verify(file)).notes == ()
    await slos.repository.create_organisation("payer", NOW)
    await slos.repository.change_tenant("acme", now=NOW, organisation="payer")
    await slos.execute("UPDATE tenants SET name = 'gamma' WHERE name = 'acme'")
    renamed, moved = (await slos.verify(file)).notes
    assert renamed.startswith("the tenant is 'acme' in the file, and 'gamma' in the ledger today")
    assert moved.startswith(
        "the organisation is 'default' in the file, and 'payer' in the ledger today"
    )
    assert (await slos.verify(file, alone=True)).notes == ()
    await slos.execute("UPDATE tenants SET id = 'other' WHERE name = 'gamma'")
    with pytest.raises(Differs, match="the ledger has no tenant"):
        await slos.verify(file)


async def test_a_promise_may_not_have_changed_since(slos: Slos, tmp_path: Path) -> None:
    file = await slos.report(tmp_path, "csv", slos.span("acme"))
    await slos.repository.change_tier("free", {"ttft_ms": "9"}, now=NOW - timedelta(hours=1))
    with pytest.raises(Differs, match="until is '' in the file"):
        await slos.verify(file)
