"""The export of usage and its checker: a change of the file or of the ledger is found."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tenants import usage_export
from tenants.database import Database
from tenants.errors import InvalidValue
from tenants.repository import Repository
from tenants.usage import insert_usage
from tenants.usage_export import COLUMNS, WRITERS, Span, export_usage
from tenants.usage_verify import Differs, verify_usage
from tenants.values import DEFAULT_ORGANISATION_ID, TierRecord, UsageRecord

MINUTE = timedelta(minutes=1)
FORMATS = ("csv", "jsonl")


class Office:
    """A ledger with usage of two tenants in two tiers, of which one has changed its prices."""

    def __init__(self, database: Database, repository: Repository, folder: Path) -> None:
        self.database = database
        self.repository = repository
        self.folder = folder
        self.tenants: list[str] = []
        self.rows: list[UsageRecord] = []

    async def fill(self, now: datetime, count: int) -> None:
        organisation = await self.repository.create_organisation("umbrella", now)
        tiers: list[TierRecord] = await self.repository.list_tiers()
        for prices in ("3", "0"), ("7", "2"):
            changes = {"price_prompt_nano": prices[0], "price_cached_nano": prices[1]}
            tiers.append(await self.repository.change_tier("free", changes))
        tiers.append(await self.repository.change_tier("premium", {"price_output_nano": "1000000"}))
        for name, owner in (("acme", "umbrella"), ("beta", "default")):
            made = await self.repository.create_tenant(name, "free", now, organisation=owner)
            self.tenants.append(made.id)
        for i in range(count):
            tier, whose = tiers[i % len(tiers)], i % 2
            tokens = (10 * i + 1, 4 * i, 3 * i)
            record = UsageRecord(
                request_id=f"r-{i}",
                tenant_id=self.tenants[whose],
                key_id=f"k-{i % 3}",
                tier_requested="premium",
                tier_served=tier.name,
                model='m "1",2',
                prompt_tokens=tokens[0],
                cached_tokens=tokens[1],
                output_tokens=tokens[2],
                finish_reason="stop",
                stream=i % 3 == 0,
                arrival=now + (i // 2) * MINUTE,  # two at a time arrive together
                total_ms=1.5,
                organisation_id=organisation.id if whose == 0 else DEFAULT_ORGANISATION_ID,
                tier_version=tier.version,
                cost_nano=tier.cost_nano(*tokens),
            )
            self.rows.append(record)
        await insert_usage(self.database, self.rows)

    async def export(self, span: Span, form: str = "jsonl") -> Path:
        header, write = WRITERS[form]
        lines = [write(line) async for line in export_usage(self.database, span)]
        file = self.folder / f"usage.{form}"
        file.write_text(header() + "".join(lines), newline="")
        return file

    async def execute(self, statement: str) -> None:
        async with self.database.write() as session:
            await session.execute(text(statement))


@pytest.fixture
async def office(
    database: Database, repository: Repository, tmp_path: Path, now: datetime
) -> Office:
    office = Office(database, repository, tmp_path)
    await office.fill(now, 12)
    return office


@pytest.fixture
def span(now: datetime) -> Span:
    return Span(until=now + timedelta(days=1))


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    return [json.loads(line) for line in file.read_text().splitlines()]


def chained_again(lines: list[dict[str, Any]]) -> str:
    """What a forger does who knows how the file is made."""
    chain = hashlib.sha256(b"tiergate usage export 1").hexdigest()
    out = ""
    for line in lines:
        cells = [line.get(name, "") for name in COLUMNS[:-1]]
        said = [str(c).lower() if isinstance(c, bool) else str(c) for c in cells]
        chain = hashlib.sha256("\x1f".join([chain, *said]).encode()).hexdigest()
        out += json.dumps(line | {"chain": chain}) + "\n"
    return out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("page", [1, 5, 1000])
async def test_every_request_is_a_line_and_every_line_is_true(
    office: Office, span: Span, form: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of a page: all rows, in order of arrival, then sums that add up."""
    monkeypatch.setattr(usage_export, "PAGE", page)
    file = await office.export(span, form)
    lines = read(file)
    assert [line["record"] for line in lines] == [
        *("export", *["usage"] * 12),
        *(*["sum"] * 4, "total"),
    ]
    assert sorted(line["request_id"] for line in lines[1:13]) == sorted(f"r-{i}" for i in range(12))
    assert [line["arrival"] for line in lines[1:13]] == sorted(
        line["arrival"] for line in lines[1:13]
    )
    cost = sum(row.cost_nano for row in office.rows)
    assert cost > 0
    assert int(lines[-1]["cost_nano"]) == cost == sum(int(s["cost_nano"]) for s in lines[13:17])
    assert int(lines[-1]["requests"]) == 12
    assert Decimal(lines[-1]["cost"]) == Decimal(cost) / 10**9
    assert [(s["organisation"], s["tenant"], s["tier_served"]) for s in lines[13:17]] == [
        ("default", "beta", "free"),
        ("default", "beta", "premium"),
        ("umbrella", "acme", "free"),
        ("umbrella", "acme", "premium"),
    ]
    verified = await verify_usage(office.database, file)
    assert (verified.requests, verified.cost_nano) == (12, cost)
    assert verified.chain == lines[-1]["chain"]


@pytest.mark.parametrize("form", FORMATS)
async def test_a_part_is_verified_as_the_part_it_is(
    office: Office, now: datetime, form: str
) -> None:
    """Of one tenant, of a span of time, of nothing at all."""
    until = now + 4 * MINUTE
    for span, count in (
        (Span(until, now + MINUTE), 6),
        (Span(until, now + MINUTE, office.tenants[0]), 3),
        (Span(now, now), 0),
    ):
        file = await office.export(span, form)
        assert (await verify_usage(office.database, file)).requests == count
        assert sum(line["record"] == "usage" for line in read(file)) == count


async def test_both_forms_have_one_chain(office: Office, span: Span) -> None:
    """The chain is over what is said, not over how it is written."""
    files = [await office.export(span, form) for form in FORMATS]
    chains = [[line["chain"] for line in read(file)] for file in files]
    assert chains[0] == chains[1]


@pytest.mark.parametrize("form", FORMATS)
async def test_a_changed_character_breaks_the_chain(office: Office, span: Span, form: str) -> None:
    """In whichever line: it is that line that is named."""
    file = await office.export(span, form)
    whole = file.read_bytes().decode().splitlines(keepends=True)
    first = 1 if form == "csv" else 0
    for place in range(first, len(whole)):
        changed = list(whole)
        digit = max(i for i, c in enumerate(changed[place]) if c.isdigit())
        other = "1" if changed[place][digit] != "1" else "2"
        changed[place] = changed[place][:digit] + other + changed[place][digit + 1 :]
        file.write_bytes("".join(changed).encode())
        with pytest.raises(Differs, match=rf"^line {place + 1}: its chain does not follow"):
            await verify_usage(office.database, file)


@pytest.mark.parametrize("field", [c for c in COLUMNS if c not in ("chain", "until", "record")])
async def test_a_forged_field_is_found_though_the_chain_is_right(
    office: Office, span: Span, field: str
) -> None:
    """A forger who chains the file anew is found out by the ledger, at the very line."""
    file = await office.export(span)
    lines = read(file)
    lines[5][field] = 7 if isinstance(lines[5].get(field), int) else "forged"
    file.write_text(chained_again(lines))
    with pytest.raises(Differs, match=r"^line 6: ") as found:
        await verify_usage(office.database, file)
    assert field in str(found.value) or field == "request_id"


@pytest.mark.parametrize("place", [1, 7, 12, 13, 17])
async def test_a_line_left_out_added_or_moved_is_found(
    office: Office, span: Span, place: int
) -> None:
    """Also where the chain was made anew."""
    file = await office.export(span)
    lines = read(file)
    without = lines[:place] + lines[place + 1 :]
    twice = [*lines[: place + 1], *lines[place:]]
    for forged in (without, twice, [*lines, lines[-1]]):
        file.write_text(chained_again(forged))
        with pytest.raises(Differs, match=r"^line \d+: "):
            await verify_usage(office.database, file)
    file.write_text(chained_again(lines))
    await verify_usage(office.database, file)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE usage SET cost_nano = cost_nano + 1 WHERE request_id = 'r-6'", r"it costs \d+$"),
        ("UPDATE usage SET output_tokens = 99 WHERE request_id = 'r-4'", r"costs .* it costs"),
        ("UPDATE usage SET tier_version = 9 WHERE request_id = 'r-6'", "no version 9 of tier"),
        ("UPDATE usage SET tier_version = 0 WHERE request_id = 'r-4'", "it costs 0"),
        ("UPDATE usage SET model = 'other' WHERE request_id = 'r-6'", "model is"),
        ("DELETE FROM usage WHERE request_id = 'r-6'", "the file has request r-6"),
        ("DELETE FROM usage WHERE request_id IN ('r-10', 'r-11')", "record is 'usage'"),
        ("UPDATE tenants SET name = 'gamma' WHERE name = 'acme'", "must be 'gamma'"),
    ],
)
async def test_a_ledger_that_was_changed_afterwards_is_found(
    office: Office, span: Span, statement: str, said: str
) -> None:
    """The file is what it was; the rows are not, or do not make their cost any more."""
    file = await office.export(span)
    await office.execute(statement)
    with pytest.raises(Differs, match=said):
        await verify_usage(office.database, file)


async def test_a_request_that_came_late_to_the_ledger_is_found(office: Office, span: Span) -> None:
    """A gateway had kept it on disk while the bill was made: the bill lacks it."""
    file = await office.export(span)
    await insert_usage(office.database, [replace(office.rows[3], request_id="r-late")])
    with pytest.raises(Differs, match="the ledger has request r-late, the file has request"):
        await verify_usage(office.database, file)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("", InvalidValue, "is no export of usage"),
        ("hello\n", InvalidValue, "is no export of usage"),
        ("{not json\n", Differs, "line 1: it is no object of JSON"),
        ("[]\n", InvalidValue, "is no export"),
        ('{"record":"export"}\n', Differs, "line 1: its chain"),
        ("record,chain\nexport\n", Differs, "line 2: it has not as many cells"),
    ],
)
async def test_what_is_no_export_is_told_in_one_line(
    office: Office, tmp_path: Path, content: str, error: type[Exception], said: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(error, match=said):
        await verify_usage(office.database, file)
    with pytest.raises(InvalidValue, match="cannot be read"):
        await verify_usage(office.database, tmp_path / "gone")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidValue, match="cannot be read"):
        await verify_usage(office.database, file)
