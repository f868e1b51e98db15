"""`tiergate slo show | report | verify` as an operator and as a customer would use them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import slo_ledger_kit as kit

from tenants.database import Database
from tenants.pepper import make_pepper
from tenants.repository import Repository

FORMS = ("html", "csv", "json")


@pytest.fixture
def ledger(tiergate: Any, home: Path) -> str:
    """A ledger with requests of two tenants up to this minute; returns its URL."""
    assert tiergate("tenant", "list").code == 0
    url = f"sqlite:///{home / 'tiergate.db'}"

    async def fill() -> None:
        database = await Database.open(url)
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        slos = kit.Slos(database, Repository(database, make_pepper(b"x")), now)
        await slos.open("acme", "beta")
        await slos.fill(400, days=20, names=("acme",))
        await database.close()

    asyncio.run(fill())
    return url


@pytest.mark.parametrize("form", FORMS)
def test_a_report_is_written_and_found_right(
    tiergate: Any, ledger: str, tmp_path: Path, form: str
) -> None:
    """With the ledger, and by a customer who has the file only."""
    file = tmp_path / f"report.{form}"
    made = tiergate("slo", "report", "--tenant", "acme", "--format", form, "--out", str(file))
    assert (made.code, made.out) == (0, "")
    assert made.err.startswith("400 requests; chain ")
    assert file.stat().st_mode & 0o777 == 0o600
    checked = tiergate("slo", "verify", str(file))
    assert checked.code == 0, checked.out
    assert "follow from the ledger: 400 requests of acme" in checked.out
    assert "promised 0.985" in checked.out
    assert ("the page shows" in checked.out) is (form == "html")
    alone = tiergate("slo", "verify", str(file), "--alone", "--json")
    assert alone.json["verified"] is True
    assert alone.json["report"]["against_ledger"] is False
    assert alone.json["report"]["chain"] == made.err.split()[-1]
    elsewhere = tiergate("slo", "verify", str(file), "--data-dir", str(tmp_path / "none"))
    assert elsewhere.code == 0
    assert "no ledger is asked" in elsewhere.err
    assert not (tmp_path / "none").exists()
    assert tiergate("slo", "report", "--tenant", "acme", "--out", str(file)).code == 2
    changed = file.read_bytes()
    file.write_bytes(changed.replace(b"acme", b"acne", 1))
    for arguments in ([], ["--alone"]):
        differs = tiergate("slo", "verify", str(file), *arguments)
        assert differs.code == 1
        assert differs.out.startswith(f"{file} differs: ")
    said = tiergate("slo", "verify", str(file), "--json")
    assert (said.code, said.json["verified"]) == (1, False)


def test_a_report_of_a_span_goes_to_standard_output(tiergate: Any, ledger: str) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    span = ("--from", "2026-01-01", "--to", today)
    made = tiergate("slo", "report", "--tenant", "acme", "--format", "json", *span)
    lines = json.loads(made.out)["lines"]
    assert (lines[0]["since"], lines[-1]["record"]) == ("2026-01-01T00:00:00.000000Z", "total")
    ahead = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    early = tiergate("slo", "report", "--tenant", "acme", "--to", ahead)
    assert "warning: --to is in the future" in early.err


def test_a_report_of_nothing_says_where_it_ends(tiergate: Any, ledger: str) -> None:
    """Who has just asked something finds that a report ends with the last full minute."""
    span = ("--from", "2001-01-01", "--to", "2001-01-02")
    made = tiergate("slo", "report", "--tenant", "acme", "--format", "csv", *span)
    assert made.code == 0
    assert "nothing was asked in this span, which ends at 2001-01-02 00:00 UTC" in made.err


def test_the_table_shows_each_tier(tiergate: Any, ledger: str) -> None:
    """Of all tenants and of one; nothing counted is no share."""
    header, *rows = tiergate("slo", "show").out.splitlines()
    assert header.split()[:5] == ["TIER", "PROMISED", "COUNTED", "KEPT", "BUDGET"]
    assert [row.split()[:2] for row in rows] == [["premium", "0.985"], ["free", "0.95"]]
    shown = tiergate("slo", "show", "--tenant", "acme", "--json").json
    premium = shown["tiers"][0]
    month = next(w for w in premium["windows"] if w["window"] == "30d")
    assert rows[0].split()[2:4] == [
        str(month["objectives"]["all"]["counted"]),
        month["objectives"]["all"]["attainment"],
    ]
    assert month["counts"]["offered"] > 100
    assert {w["kind"] for w in premium["windows"]} == {"rolling", "calendar"}
    idle = tiergate("slo", "show", "--tenant", "beta").out.splitlines()[1]
    assert idle.split() == ["premium", "0.985", "0", *["-"] * 10]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "--tenant", "nobody"), "nobody"),
        (("report",), "Missing option '--tenant'"),
        (("report", "--tenant", "acme", "--format", "pdf"), "is none of html, csv and json"),
        (("report", "--tenant", "acme", "--from", "2026-13-01"), "--from: '2026-13-01'"),
        (("report", "--tenant", "acme", "--to", "2020-01-01T00:00:30"), "on a whole minute"),
        (("report", "--tenant", "acme", "--from", "2099-01-01"), "--from is after --to"),
        (("report", "--tenant", "acme", "--from", "2020-01-01"), "at most 400 days"),
        (("show", "--tenant", "nobody"), "nobody"),
        (("verify", "no-such-file"), "cannot be read"),
        (("verify", "/etc/hostname"), "is no report of SLOs"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiergate: Any, ledger: str, arguments: tuple[str, ...], said: str
) -> None:
    done = tiergate("slo", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
