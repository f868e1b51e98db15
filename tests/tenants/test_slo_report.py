"""Reports on SLOs, on both databases: what they say is what was offered, in every form."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from plan_kit import questions, whole_tables_read
from slo_ledger_kit import CASES, FORMS, Slos

from tenants import slo_store
from tenants.database import Database
from tenants.errors import InvalidValue, NotFound
from tenants.repository import Repository
from tenants.slo_overview import overview
from tenants.slo_report import Report, ReportSpan
from tenants.slo_store import insert_slo
from tenants.usage import insert_usage
from tenants.values import UsageRecord

NOW = datetime(2026, 11, 20, 12, 34, tzinfo=UTC)
RATIOS = ("all", "ttft", "tbt", "availability")


@pytest.fixture
async def slos(database: Database, repository: Repository) -> Slos:
    made = Slos(database, repository, NOW)
    await made.open("acme", "beta", "idle")
    return made


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of CSV or JSON, as text; empty fields are left out."""
    if file.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(file.read_text(), newline=""))
        return [{name: text for name, text in row.items() if text} for row in rows]
    lines = json.loads(file.read_text())["lines"]
    return [
        {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in line.items()
            if value != ""
        }
        for line in lines
    ]


async def test_every_form_says_the_same_and_all_of_it(slos: Slos, tmp_path: Path) -> None:
    """One line for each request, sums that are known by hand, and one chain in all forms."""
    await slos.fill(len(CASES) * 24, names=("acme", "beta"))
    span = slos.span("acme")
    files = {form: await slos.report(tmp_path, form, span) for form in FORMS}
    lines = read(files["csv"])
    assert lines == read(files["json"])
    mine = [r for r in slos.records if r.tenant_id == slos.tenants["acme"]]
    assert {r.outcome for r in mine} == set(type(mine[0].outcome))
    assert sorted(line["id"] for line in lines if line["record"] == "request") == sorted(
        r.id for r in mine
    )
    known = slos.known(span.since, span.until, "acme")
    spans = {line["tier"]: line for line in lines if line.get("window") == "span"}
    assert set(spans) == set(known) == {"premium", "free"}
    for line in lines:
        if line["record"] == "counts" and line["window"] == "span":
            counts = known[line["tier"]]
            assert {n: int(line[n]) for n in counts if n in line} == dict(counts)
        if line["record"] == "budget" and line["window"] == "span":
            counts = known[line["tier"]]
            counted = counts[f"counted_{line['objective']}"]
            bad = counts[f"bad_{line['objective']}"]
            assert (int(line["counted"]), int(line["bad"])) == (counted, bad)
            share = Fraction(line["attainment"])
            assert share <= Fraction(counted - bad, counted) < share + Fraction(1, 10**6)
            slack = (1 - Fraction(line["target"])) * counted
            assert abs(Fraction(line["burn"]) - bad / slack) < Fraction(1, 10**6)
            assert line["kept"] == str(bad <= slack).lower()
    for form, file in files.items():
        for alone in (True, False):
            found = await slos.verify(file, alone=alone)
            assert (found.requests, found.chain) == (len(mine), lines[-1]["chain"]), form
            assert (found.figures > 200) is (form == "html")
            assert found.against_ledger is not alone
            said = {tier.tier: (tier.offered, tier.counted, tier.bad) for tier in found.tiers}
            assert said == {
                tier: (c["offered"], c["counted_all"], c["bad_all"]) for tier, c in known.items()
            }


@pytest.mark.parametrize("page", [1, 7, 1000])
async def test_pages_of_the_ledger_do_not_show(
    slos: Slos, tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where requests arrived at one moment."""
    await slos.fill(30, names=("acme",))
    monkeypatch.setattr(slo_store, "PAGE", page)
    at = NOW - timedelta(hours=1)
    more = [await slos.record(i, CASES[0], "acme", at) for i in range(100, 115)]
    await insert_slo(slos.database, more)
    found = await slos.verify(await slos.report(tmp_path, "csv", slos.span("acme")))
    assert found.requests == 45


async def test_windows_are_those_that_fit_and_count_what_is_in_them(
    slos: Slos, tmp_path: Path
) -> None:
    """Burn windows end with the span; calendar ones are cut at its ends; edges belong to one."""
    until = datetime(2026, 11, 18, 0, 0, tzinfo=UTC)  # a Wednesday
    for i, minutes in enumerate((0, 5, 30, 60, 120, 360, 1440, 4320)):
        for j, extra in enumerate((timedelta(0), timedelta(microseconds=1))):
            at = until - timedelta(minutes=minutes) - extra
            slos.records.append(await slos.record(2 * i + j, CASES[0], "acme", at))
    await insert_slo(slos.database, slos.records)
    span = ReportSpan(slos.tenants["acme"], until - timedelta(days=4), until)
    lines = read(await slos.report(tmp_path, "json", span))
    found: Counter[str] = Counter()
    for line in lines:
        if line["record"] == "counts":
            name = line["window"] + (line["since"][5:10] if line["window"] == "day" else "")
            found[name] += int(line["offered"])
    rolling = {"5m": 2, "30m": 4, "1h": 6, "2h": 8, "6h": 10, "1d": 12, "3d": 14}
    days = {"day11-14": 1, "day11-15": 1, "day11-16": 1, "day11-17": 12}
    assert found == {"span": 15, "month": 15, "week": 15} | rolling | days
    assert "30d" not in found
    await slos.verify(await slos.report(tmp_path, "html", span))


@pytest.mark.parametrize("form", FORMS)
async def test_of_nothing_there_is_a_report_too(slos: Slos, tmp_path: Path, form: str) -> None:
    """A tenant without traffic, and a span without length."""
    await slos.fill(19, names=("acme",))
    nothing = ReportSpan(slos.tenants["acme"], NOW, NOW)
    for span in (slos.span("idle"), nothing):
        found = await slos.verify(await slos.report(tmp_path, form, span))
        assert (found.requests, found.tiers, found.lines) == (0, (), 2)


async def test_a_promise_without_a_budget(slos: Slos, tmp_path: Path) -> None:
    """Objective 1: nothing may go wrong, so there is no share of it and no burn."""
    await slos.repository.change_tier("free", {"objective": "1"}, now=NOW - timedelta(days=1))
    await slos.fill(40 * len(CASES), names=("acme",))
    for form in FORMS:
        await slos.verify(await slos.report(tmp_path, form, slos.span("acme")))
    lines = read(await slos.report(tmp_path, "csv", slos.span("acme", 1)))
    (line,) = (
        line
        for line in lines
        if line["record"] == "budget"
        and (line["window"], line["tier"], line["objective"]) == ("span", "free", "all")
    )
    assert (line["target"], line["allowed"]) == ("1.0", "0.000000")
    assert line["left"] == f"-{line['bad']}.000000"
    assert line["kept"] == "false"
    assert "burn" not in line
    assert "left_share" not in line


@pytest.mark.parametrize("form", FORMS)
async def test_a_tier_that_nobody_knows_any_more(slos: Slos, tmp_path: Path, form: str) -> None:
    """Requests of an unknown tier or version are counted; what was promised is not made up."""
    await slos.fill(2 * len(CASES), names=("acme",))
    one = slos.records[0]
    strange = dataclasses.replace(one, id="strange", tier="gone", tier_asked="gone")
    older = dataclasses.replace(one, id="older", tier="premium", tier_version=99)
    await insert_slo(slos.database, [strange, older])
    file = await slos.report(tmp_path, form, slos.span("acme"))
    found = await slos.verify(file)
    assert found.requests == 2 * len(CASES) + 2
    gone = next(tier for tier in found.tiers if tier.tier == "gone")
    assert (gone.target, gone.counted) == ("", 1)
    if form != "html":
        promises = {line["id"]: line["promise"] for line in read(file) if "promise" in line}
        assert promises["strange"] == promises["older"] == "unknown"
        assert not any(line.get("target") for line in read(file) if line.get("tier") == "gone")


async def test_names_are_shown_and_do_nothing(slos: Slos, tmp_path: Path) -> None:
    """Whatever a name holds: it is text, and the page has no script but the facts."""
    evil = "</script><img src=x onerror=alert(1)>'\"&"
    await slos.fill(19, names=("acme",))
    record = dataclasses.replace(
        slos.records[2], id=f"x{evil}", reason=evil, model=evil, key_id=evil[:32], tier=evil
    )
    await insert_slo(slos.database, [record])
    quoted = evil.replace("'", "''")
    await slos.execute(f"UPDATE tenants SET name = '{quoted}' WHERE name = 'acme'")
    file = await slos.report(tmp_path, "html", slos.span("acme"))
    page = file.read_text()
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 1
    assert "&lt;/script&gt;&lt;img" in page
    assert (await slos.verify(file)).tenant == evil
    for form in ("csv", "json"):
        assert (
            await slos.verify(await slos.report(tmp_path, form, slos.span("acme")))
        ).tenant == evil


async def test_a_bill_without_a_judgement_is_told(slos: Slos, tmp_path: Path) -> None:
    """Bills from before judgements were kept are counted in the report; choices have one owner."""
    await slos.fill(19, days=5, names=("acme",))
    judged = slos.records[0].id

    def bill(name: str, at: datetime) -> UsageRecord:
        return UsageRecord(
            request_id=name,
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
            arrival=at,
            total_ms=1.0,
        )

    old = NOW - timedelta(days=20)
    recent = NOW - timedelta(days=1)
    bills = [bill(judged, recent), bill(f"{judged}-0", recent), bill(f"{judged}-17", recent)]
    await insert_usage(slos.database, [*bills, bill("old-1", old), bill("old", old)])
    file = await slos.report(tmp_path, "html", slos.span("acme"))
    assert (await slos.verify(file)).unrecorded == 2
    assert "have no judgement" in file.read_text()


async def test_what_is_no_span_is_refused(slos: Slos) -> None:
    whose = slos.tenants["acme"]
    for since, until in (
        (NOW, NOW - timedelta(minutes=1)),
        (NOW - timedelta(days=401), NOW),
        (NOW - timedelta(seconds=1), NOW),
        (NOW, NOW + timedelta(microseconds=1)),
    ):
        with pytest.raises(InvalidValue, match="a report"):
            ReportSpan(whose, since, until)
    with pytest.raises(NotFound):
        async for _ in Report(slos.database, ReportSpan("nobody", NOW, NOW)).lines():
            pass


async def test_no_growing_table_is_read_whole(slos: Slos, tmp_path: Path) -> None:
    """By the overview, the report and its checker: each question is led by an index."""
    if slos.database.backend != "sqlite":
        pytest.skip("SQLite tells its plans in words that are read here")
    await slos.fill(400, names=("acme", "beta"))
    with questions() as asked:
        await overview(slos.database, NOW, {"premium": 0.99, "free": 0.95})
        await overview(slos.database, NOW, {"premium": 0.99}, tenant_id=slos.tenants["acme"])
        file = await slos.report(tmp_path, "html", slos.span("acme"))
        await slos.verify(file)
    assert len(asked.asked) > 10
    assert await whole_tables_read(slos.database, asked) == []
