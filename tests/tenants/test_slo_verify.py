"""The checker of reports on SLOs finds every change of the file, of the page and of the ledger."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from slo_ledger_kit import CASES, FORMS, Slos

from tenants.database import Database
from tenants.errors import InvalidValue
from tenants.repository import Repository
from tenants.slo_report import COLUMNS
from tenants.slo_verify import Differs, verify_report
from tenants.slo_verify_file import FACTS

NOW = datetime(2026, 11, 20, 12, 34, tzinfo=UTC)
NAMES = (("report", "tenant"), ("report", "organisation"))
VERDICTS = ("met", "ttft_met", "tbt_met", "available", "promise")


@pytest.fixture
async def slos(database: Database, repository: Repository) -> Slos:
    made = Slos(database, repository, NOW)
    await made.open("acme", "beta")
    await made.fill(3 * len(CASES) * 4, days=20, names=("acme", "beta"))
    return made


@pytest.fixture
async def few(database: Database, repository: Repository) -> Slos:
    """A ledger with each case twice, for walks through every line of a report."""
    made = Slos(database, repository, NOW)
    await made.open("acme")
    await made.fill(2 * len(CASES), days=2, every=1)
    return made


@pytest.fixture
async def written(few: Slos, tmp_path: Path) -> list[dict[str, Any]]:
    """The lines of a report of acme."""
    file = await few.report(tmp_path, "json", few.span("acme", 2))
    lines: list[dict[str, Any]] = json.loads(file.read_text())["lines"]
    return lines


def chained(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a forger does who knows how the file is made."""
    chain = hashlib.sha256(b"tiergate slo report 1").hexdigest()
    found = []
    for line in lines:
        cells = [line.get(name, "") for name in COLUMNS[:-1]]
        said = [str(c).lower() if isinstance(c, bool) else str(c) for c in cells]
        content = json.dumps([chain, *said], separators=(",", ":"))
        chain = hashlib.sha256(content.encode()).hexdigest()
        found.append({**line, "chain": chain})
    return found


def forge(file: Path, lines: list[dict[str, Any]]) -> Path:
    """Write lines as a document whose chain is right."""
    body = ",\n".join(json.dumps(line, separators=(",", ":")) for line in chained(lines))
    file.write_text('{"format":"tiergate slo report 1","lines":[\n' + body + "\n]}\n")
    return file


def sealed(page: str) -> str:
    """Return a page with the seal that fits it."""
    body = page[: page.rindex("<!-- tiergate slo seal")]
    return f"{body}<!-- tiergate slo seal {hashlib.sha256(body.encode()).hexdigest()} -->\n"


def other(value: Any) -> Any:
    """Return something else of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", value):
        return f"{value[:-2]}{(int(value[-2]) + 1) % 10}Z"
    if isinstance(value, str) and re.fullmatch(r"-?\d+\.\d+", value):
        return f"{float(value) / 2 + 0.001:.6f}"
    return "other" if value != "other" else "another"


async def test_a_forger_can_change_no_field_of_any_line(
    few: Slos, written: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Each field of one line of each kind, chained anew: the ledger shows it, at that line.

    What follows from the facts is found without a ledger, too.
    """
    file = tmp_path / "forged.json"
    await few.verify(forge(file, written))
    seen: set[tuple[str, str]] = set()
    alone: set[tuple[str, str]] = set()
    for place, line in enumerate(written):
        kind = line["record"] + ("span" if line.get("window") == "span" else "")
        for name, value in line.items():
            if name == "chain" or (kind, name) in seen:
                continue
            seen.add((kind, name))
            forged = [*written[:place], {**line, name: other(value)}, *written[place + 1 :]]
            forge(file, forged)
            if (kind, name) in NAMES:  # it may have been another once, so the ledger's is told
                (note,) = (await few.verify(file)).notes
                assert f"and {value!r} in the ledger today" in note
            else:
                with pytest.raises((Differs, InvalidValue)):
                    await few.verify(file)
            try:
                await few.verify(file, alone=True)
            except (Differs, InvalidValue):
                alone.add((kind, name))
    requests = {name for kind, name in seen if kind == "request"}
    assert requests >= set(FACTS) - {"ttft_ns", "needed_tbt_ns", "reason", "trace_id", "queue_ns"}
    assert {kind for kind, _ in seen} == {
        *("report", "request", "tier", "counts", "countsspan", "budget", "budgetspan"),
        *("percentiles", "reason", "downgrade", "total"),
    }
    free = {name for kind, name in seen - alone if kind == "request"}
    # Such as a name, or a time that is far from its border; a verdict or a sum never is free.
    assert free.isdisjoint({*VERDICTS, "outcome", "tier", "tier_asked", "ttft_due_ns", "tbt_ns"})
    assert {kind for kind, _ in seen - alone} <= {"request", "tier", "report", "total"}


async def test_a_field_added_or_emptied_is_found(
    few: Slos, written: list[dict[str, Any]], tmp_path: Path
) -> None:
    """In a line of each kind: any column that it does not have, and any that it has."""
    file = tmp_path / "forged.json"
    kinds: dict[str, int] = {}
    for place, line in enumerate(written):
        kinds.setdefault(line["record"], place)
    for place in kinds.values():
        line = written[place]
        for column, name in enumerate(COLUMNS[:-1]):
            if line.get(name, "") == "":
                if (column + place) % 4:  # one in four, another four in each kind: it takes long
                    continue
                changed = {**line, name: 3}
            elif name == "record":
                continue
            else:
                changed = {n: v for n, v in line.items() if n != name}
            forge(file, [*written[:place], changed, *written[place + 1 :]])
            try:
                await verify_report(file)
            except (Differs, InvalidValue):
                continue
            with pytest.raises(Differs):
                await few.verify(file)


async def test_a_line_left_out_twice_or_moved_is_found_also_without_a_ledger(
    written: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Every line of the file, chained anew; but for a request, the last of its sums change too."""
    file = tmp_path / "forged.json"
    for place in range(len(written)):
        without = written[:place] + written[place + 1 :]
        twice = written[: place + 1] + written[place:]
        moved = [*without[: place + 1], written[place], *without[place + 1 :]]
        for forged in (without, twice, *([moved] if moved != written else [])):
            forge(file, forged)
            with pytest.raises((Differs, InvalidValue)):
                await verify_report(file)


@pytest.mark.parametrize("form", FORMS)
async def test_a_changed_character_is_found(few: Slos, tmp_path: Path, form: str) -> None:
    """Wherever in the file, without a ledger."""
    file = await few.report(tmp_path, form, few.span("acme"))
    whole = file.read_bytes().decode()
    step = max(1, len(whole) // 250)
    for place in range(0, len(whole), step):
        letter = "x" if whole[place] != "x" else "y"
        file.write_bytes((whole[:place] + letter + whole[place + 1 :]).encode())
        with pytest.raises((Differs, InvalidValue)):
            await verify_report(file)
    for cut in (len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut].encode())
        if form != "csv" or cut < len(whole) - 1:
            with pytest.raises((Differs, InvalidValue)):
                await verify_report(file)
    file.write_bytes((whole + "x").encode())
    with pytest.raises((Differs, InvalidValue)):
        await verify_report(file)


async def test_a_page_may_show_nothing_but_its_lines(slos: Slos, tmp_path: Path) -> None:
    """Each figure changed, and the page sealed anew by the forger: it is named."""
    file = await slos.report(tmp_path, "html", slos.span("acme"))
    page = file.read_text()
    figures = list(re.finditer(r'<data value="(\d+):(\w+)" data-as="\w+">([^<]*)</data>', page))
    assert len(figures) > 300
    for found in figures[:: max(1, len(figures) // 60)]:
        forged = page[: found.start(3)] + "100.000 %" + page[found.end(3) :]
        if found[3] == "100.000 %":
            continue
        file.write_text(sealed(forged))
        with pytest.raises(Differs, match=f"for {found[2]} of fact {found[1]}, which is"):
            await verify_report(file)
    for forged, said in (
        (page.replace("kept both promises", "kept all", 1), "its seal does not fit"),
        (page[:-40] + "\n", "does not end with its seal"),
        (sealed(page.replace('value="1:', 'value="9999999:', 1)), "fact 9999999: there is none"),
        (sealed(page.replace('data-as="text"', 'data-as="hidden"', 1)), "a form that is none"),
        (sealed(page.replace(':tenant"', ':nothing"', 1)), "figure of no line"),
        (sealed(page.replace('text/plain" id', 'text/javascript" id')), "holds no facts"),
        (sealed(page.replace("<main>", "<main>" + FACTS_TAG + "</script>", 1)), "more than once"),
    ):
        file.write_text(forged)
        with pytest.raises((Differs, InvalidValue), match=said):
            await verify_report(file)


FACTS_TAG = '<script type="text/plain" id="tiergate-slo-facts">'


async def test_facts_of_a_page_cannot_be_exchanged(slos: Slos, tmp_path: Path) -> None:
    """Another report's facts under this page, sealed anew: the figures do not fit."""
    mine = (await slos.report(tmp_path, "html", slos.span("acme"))).read_text()
    theirs = (await slos.report(tmp_path, "html", slos.span("beta"))).read_text()
    start = mine.index(FACTS_TAG)
    file = tmp_path / "mixed.html"
    file.write_text(sealed(mine[:start] + theirs[theirs.index(FACTS_TAG) :]))
    with pytest.raises(Differs, match="the page shows 'acme' for tenant of fact 1"):
        await verify_report(file)
    packed = base64.b64encode(gzip.compress(b"[1]\n")).decode()
    for facts, said in (("####", "cannot be unpacked"), (packed, "fact 1: it is no object")):
        file.write_text(sealed(f"{mine[:start]}{FACTS_TAG}{facts}</script><!-- tiergate slo seal"))
        with pytest.raises(Differs, match=said):
            await verify_report(file)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("", InvalidValue, "is no report of SLOs"),
        ("hello\n", InvalidValue, "is no report of SLOs"),
        ("<!doctype html><p>", InvalidValue, "holds no facts"),
        ("{not json\n", Differs, "line 1: it must be"),
        ("record,chain\nreport\n", Differs, "these are not the columns"),
        ('{"format":"tiergate slo report 1","lines":[\n', Differs, "has no end"),
        ('{"format":"tiergate slo report 1","lines":[\n[]\n]}\n', Differs, "no object of JSON"),
        ('{"format":"tiergate slo report 1","lines":[\n{"a":1}\n]}\n', Differs, "no field 'a'"),
        ('{"format":"tiergate slo report 1","lines":[\n{"id":1,"id":2}\n]}\n', Differs, "twice"),
        ('{"format":"tiergate slo report 1","lines":[\n{"id":1.5}\n]}\n', Differs, "neither text"),
        ('{"format":"tiergate slo report 1","lines":[\n{"id":"x"}\n]}\n', Differs, "its chain"),
        (",".join(COLUMNS) + "\r\nreport\r\n", Differs, "not as many cells"),
    ],
)
async def test_what_is_no_report_is_told_in_one_line(
    tmp_path: Path, content: str, error: type[Exception], said: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content, newline="")
    with pytest.raises(error, match=said):
        await verify_report(file)
    with pytest.raises(InvalidValue, match="cannot be read"):
        await verify_report(tmp_path / "gone")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidValue, match="cannot be read"):
        await verify_report(file)
