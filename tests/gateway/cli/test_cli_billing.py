"""Organisations, rotation, limits, budgets, users, audit and usage from the command line."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pwd
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.output import CommandError
from gateway.cli.times import parse_moment
from gateway.passwords import Passwords
from tenants.database import Database
from tenants.usage import insert_usage
from tenants.values import UsageRecord


@pytest.fixture
def acme(tiergate: Any) -> Any:
    """An organisation with a tenant."""
    assert tiergate("org", "add", "umbrella").code == 0
    added = tiergate("tenant", "add", "acme", "--org", "umbrella", "--json").json
    assert tiergate("tenant", "add", "beta").code == 0
    return added


def test_an_organisation_has_tenants(tiergate: Any, acme: Any) -> None:
    """Tenants are the default organisation's unless another one is named."""
    header, *rows = tiergate("org", "list").out.splitlines()
    assert header.split() == ["NAME", "TENANTS", "CREATED", "ID"]
    assert [row.split()[:2] for row in rows] == [["default", "1"], ["umbrella", "1"]]
    listed = tiergate("tenant", "list", "--org", "umbrella", "--json").json
    assert [t["name"] for t in listed] == ["acme"]
    assert listed == [acme]
    organisations = {o["name"]: o["id"] for o in tiergate("org", "list", "--json").json}
    assert acme["organisation_id"] == organisations["umbrella"]
    assert tiergate("tenant", "list").out.splitlines()[1].split()[:3] == [
        "acme",
        "free",
        "umbrella",
    ]


def test_a_key_is_made_with_scopes_limits_and_budgets(tiergate: Any, acme: Any) -> None:
    """All of it in one command, and shown again by the commands that show it."""
    made = tiergate(
        *("key", "create", "--tenant", "acme", "--json", "--scopes", "models, chat"),
        *("--rpm", "60", "--tpm", "1000", "--concurrent", "4", "--alert", "80"),
        *("--budget", "tokens=5000/day", "--budget", "money=12.50/month"),
    ).json
    assert made["record"]["scopes"] == ["chat", "models"]
    (shown,) = tiergate("limit", "show", "--key", made["key"], "--json").json
    assert shown["limits"]["requests_per_minute"] == 60
    assert shown["limits"]["concurrent_requests"] == 4
    assert shown["budgets"] == [
        {"period": "day", "unit": "tokens", "amount": 5000, "alert_percent": 80},
        {"period": "month", "unit": "nano", "amount": 12_500_000_000, "alert_percent": 80},
    ]
    assert "chat,models" in tiergate("key", "list").out
    table = tiergate("budget", "show", "--key", made["key"]).out.splitlines()
    name = f"tgk_live_...{made['key'][-4:]}"
    assert [row.split() for row in table[1:]] == [
        ["key", name, "all", "tokens=5000/day", "80%"],
        ["key", name, "all", "money=12.50/month", "80%"],
    ]


def test_limits_are_set_shown_and_taken_away(tiergate: Any, acme: Any) -> None:
    done = tiergate("limit", "set", "--tenant", "acme", "--rpm", "600", "--tpd", "0")
    assert (done.code, done.out) == (0, "set limits of tenant acme: rpm 600, tpd 0\n")
    tiergate("limit", "set", "--org", "umbrella", "--model", "m", "--concurrent", "9")
    assert [" ".join(row.split()) for row in tiergate("limit", "show").out.splitlines()] == [
        "SCOPE OF MODEL RPM TPM IPM OPM RPD TPD CONCURRENT",
        "tenant acme all 600 - - - - 0 -",
        "organisation umbrella m - - - - - - 9",
    ]
    tiergate("limit", "set", "--tenant", "acme", "--rpm", "none", "--tpd", "none")
    assert [r["scope"] for r in tiergate("limit", "show", "--json").json] == ["organisation"]


def test_budgets_are_set_and_taken_away(tiergate: Any, acme: Any) -> None:
    done = tiergate("budget", "set", "--org", "umbrella", "money=100/week", "tokens=1/day")
    assert done.out == "set budgets of organisation umbrella: money=100/week, tokens=1/day\n"
    left = tiergate("budget", "set", "--org", "umbrella", "tokens=none/day", "--json").json
    assert [(b["unit"], b["period"]) for b in left["budgets"]] == [("nano", "week")]
    assert len(tiergate("budget", "show", "--json").json) == 1


def test_a_key_is_rotated(tiergate: Any, acme: Any) -> None:
    """The new key is alone on stdout; the note says how long the old one goes on."""
    old = tiergate("key", "create", "--tenant", "acme", "--rpm", "5").out.strip()
    done = tiergate("key", "rotate", old, "--overlap", "12h")
    new = done.out.strip()
    assert new != old
    assert f"follows tgk_live_...{old[-4:]}, which works until" in done.err
    records = {k["id"]: k for k in tiergate("key", "list", "--json").json}
    assert {k["chain_id"] for k in records.values()} == {min(records)}
    ends = [k["expires_at"] for k in records.values() if k["expires_at"]]
    wait = datetime.fromisoformat(ends[0]) - datetime.now(UTC)
    assert timedelta(hours=11) < wait <= timedelta(hours=12)
    again = tiergate("key", "rotate", new)
    assert again.code == 2
    assert "is being rotated already" in again.err
    assert tiergate("limit", "show", "--key", new, "--json").json[0]["limits"]


def test_all_keys_are_revoked_in_two_steps(tiergate: Any, acme: Any) -> None:
    """The first step shows what and how; nothing is closed without its code."""
    for name in ("a", "b"):
        tiergate("key", "create", "--tenant", "acme", "--name", name)
    shown = tiergate("key", "revoke-all", "--tenant", "acme")
    assert len(shown.out.splitlines()) == 3
    command = shown.err.strip().partition(": tiergate ")[2]
    assert all(k["revoked_at"] is None for k in tiergate("key", "list", "--json").json)
    wrong = tiergate("key", "revoke-all", "--tenant", "acme", "--confirm", "00000000")
    assert (wrong.code, wrong.out) == (2, "")
    assert "that code does not confirm the 2 live keys" in wrong.err
    assert tiergate(*command.split()).out == "revoked 2 keys of acme\n"
    assert all(k["revoked_at"] for k in tiergate("key", "list", "--json").json)


def test_users_are_added_with_passwords_from_stdin(
    tiergate: Any, acme: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is in no argument and in no output, and it fits the digest that is kept."""
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery\n"))
    done = tiergate("user", "add", "ann@example.com", "--role", "owner", "--password-stdin")
    assert (done.code, done.out) == (0, "added user ann@example.com as owner\n")
    subject = ("--oidc-subject", "sub-1", "--tenant", "acme")
    tiergate("user", "add", "bob", "--role", "tenant-viewer", *subject)
    users = tiergate("user", "list", "--json").json
    assert [(u["name"], u["role"], u["has_password"]) for u in users] == [
        ("ann@example.com", "owner", True),
        ("bob", "tenant-viewer", False),
    ]
    rows = [row.split() for row in tiergate("user", "list").out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        ["ann@example.com", "owner", "-", "password"],
        ["bob", "tenant-viewer", "acme", "oidc"],
    ]

    async def digest() -> str | None:
        database = await Database.open(f"sqlite:///{home / 'tiergate.db'}")
        async with database.read() as session:
            connection = await session.connection()
            query = "SELECT password_digest FROM users WHERE name = 'ann@example.com'"
            found = (await connection.exec_driver_sql(query)).scalar_one()
        await database.close()
        return str(found)

    kept = asyncio.run(digest())
    assert asyncio.run(Passwords().fits("correct horse battery", kept))
    monkeypatch.setattr("sys.stdin", io.StringIO("another battery staple\n"))
    assert tiergate("user", "password", "ann@example.com", "--password-stdin").code == 0
    assert asyncio.run(digest()) != kept
    last = tiergate("user", "disable", "ann@example.com")
    assert (last.code, "ann@example.com is the last owner" in last.err) == (2, True)
    assert tiergate("user", "disable", "bob").out == "disabled user bob\n"
    assert tiergate("user", "enable", "bob").out == "enabled user bob\n"


def test_the_audit_names_the_account_and_what_it_did(
    tiergate: Any, acme: Any, tmp_path: Path
) -> None:
    """Listed as columns and as JSON, exported as JSON lines; a file that is there stays."""
    key = tiergate("key", "create", "--tenant", "acme").out.strip()
    tiergate("key", "revoke", key)
    account = pwd.getpwuid(os.getuid()).pw_name
    entries = tiergate("audit", "list", "--json").json
    assert [e["action"] for e in entries] == [
        *("key.revoke", "key.create", "tenant.create", "tenant.create", "organisation.create"),
    ]
    assert {(e["actor"], e["actor_kind"]) for e in entries} == {(account, "cli")}
    assert len(tiergate("audit", "list", "--tenant", "acme", "--json").json) == 3
    assert len(tiergate("audit", "list", "--action", "key.revoke").out.splitlines()) == 2
    file = tmp_path / "audit.jsonl"
    done = tiergate("audit", "export", "--out", str(file))
    assert (done.code, done.out, done.err) == (0, "", f"5 changes in {file}\n")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == entries[::-1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    again = tiergate("audit", "export", "--out", str(file))
    assert (again.code, "is there already" in again.err) == (2, True)
    assert tiergate("audit", "export").out == file.read_text()


@pytest.fixture
def used(tiergate: Any, acme: Any, home: Path) -> None:
    """Two requests of a tier with prices."""
    priced = tiergate("tier", "set", "free", "price_prompt_nano=100", "price_output_nano=7000")
    assert priced.code == 0
    rows = [
        UsageRecord(
            *(f"r-{i}", acme["id"], "k", "free", "free", "m", 10 + i, 0, 5, "stop", True),
            *(datetime(2026, 11, 1 + i, tzinfo=UTC), 1.0),
            organisation_id=acme["organisation_id"],
            tier_version=2,
            cost_nano=(10 + i) * 100 + 35_000,
        )
        for i in range(2)
    ]

    async def write() -> None:
        database = await Database.open(f"sqlite:///{home / 'tiergate.db'}")
        await insert_usage(database, rows)
        await database.close()

    asyncio.run(write())


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_usage_is_exported_and_verified(
    tiergate: Any, used: None, tmp_path: Path, form: str
) -> None:
    """To a file and to standard output alike; the checker agrees, and says what it has seen."""
    file = tmp_path / f"november.{form}"
    span = ("--since", "2026-11-01", "--until", "2026-11-22", "--format", form)
    done = tiergate("usage", "export", *span, "--out", str(file))
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("2 requests, cost 0.0000721; chain ")
    chain = done.err.split()[-1]
    assert tiergate("usage", "export", *span).out.encode() == file.read_bytes()
    seen = tiergate("usage", "verify", str(file))
    assert seen.code == 0
    assert "all " in seen.out
    assert "2 requests, 72100 billionths" in seen.out
    assert seen.out.strip().endswith(chain)
    assert tiergate("usage", "verify", str(file), "--json").json == {
        "verified": True,
        "export": {
            "lines": 6 if form == "csv" else 5,
            "requests": 2,
            "cost_nano": 72100,
            "chain": chain,
        },
    }


def test_an_export_of_a_span_that_is_not_over_says_so(tiergate: Any, used: None) -> None:
    """A warning beside the result, since what comes later would make the file differ."""
    done = tiergate("usage", "export", "--until", "9000-01-01")
    assert done.code == 0
    assert done.err.startswith("warning: --until is in the future")
    assert "warning" not in done.out
    assert "warning" not in tiergate("usage", "export", "--until", "2026-11-22").err
    assert "warning" not in tiergate("usage", "export").err


def test_a_difference_is_exit_code_1_and_the_line(
    tiergate: Any, used: None, tmp_path: Path
) -> None:
    """One line that names the first line which is not as it must be."""
    file = tmp_path / "bill.csv"
    tiergate("usage", "export", "--out", str(file))
    rows = list(csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))
    assert [row[0] for row in rows] == ["record", "export", "usage", "usage", "sum", "total"]
    file.write_bytes(file.read_bytes().replace(b",36000,", b",35999,"))
    done = tiergate("usage", "verify", str(file))
    assert (done.code, done.err) == (1, "")
    assert (
        done.out
        == f"{file} differs: line 3: its chain does not follow from it and from the "
        + ("line before\n")
    )
    as_json = tiergate("usage", "verify", str(file), "--json")
    assert (as_json.code, as_json.json["verified"]) == (1, False)
    assert tiergate("usage", "verify", str(tmp_path / "gone")).code == 2


def test_a_tiers_past_is_listed(tiergate: Any) -> None:
    tiergate("tier", "set", "free", "price_output_nano=7")
    rows = [row.split() for row in tiergate("tier", "versions", "free").out.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("1", "0/0/0"), ("2", "0/0/7")]
    versions = tiergate("tier", "versions", "free", "--json").json
    assert [v["tier"]["price_output_nano"] for v in versions] == [0, 7]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("org add a/b", "an organisation's name has 1 to 64 letters"),
        ("org add umbrella", "there is an organisation 'umbrella' already"),
        ("tenant add x --org gone", "there is no organisation 'gone'"),
        ("tenant list --org gone", "there is no organisation 'gone'"),
        ("key create --tenant acme --scopes chat,fly", "--scopes: 'fly' is none of chat, comple"),
        ("key create --tenant acme --rpm many", "--rpm must be a whole number or none, not 'many'"),
        ("key create --tenant acme --budget 5", "'5' is not a budget such as tokens=5000000/month"),
        ("key create --tenant acme --budget tokens=none/day", "takes away what a new key does not"),
        ("key create --tenant acme --budget tokens=1/day --alert 0", "1 to 100 percent, not 0"),
        ("key rotate gone", "there is no such key"),
        ("key rotate gone --overlap long", "--overlap: 'long' is not a time such as 90d"),
        ("key revoke-all --tenant gone", "there is no tenant 'gone'"),
        ("limit set --rpm 5", "whose? name one of --org, --tenant and --key"),
        ("limit set --tenant acme --org umbrella --rpm 5", "not several"),
        ("limit set --tenant acme", "nothing to set: name a limit, such as --rpm 600"),
        ("limit set --tenant acme --rpm -5", "--rpm must be a whole number or none, not '-5'"),
        ("limit set --tenant acme --tpd 9007199254740992", "must be 0 to 9007199254740991"),
        ("limit show --tenant gone", "there is no tenant 'gone'"),
        ("budget set --tenant acme tokens=5/year", "a budget is for a day, week or month"),
        ("budget set tokens=5/day", "whose? name one of"),
        ("tier set free price_prompt_nano=1000000001", "price_prompt_nano must be 0 to 1000000000"),
        ("tier set free on_limiter_away=hope", "on_limiter_away must be local or refuse"),
        ("tier versions gold", "there is no tier 'gold'"),
        ("user add ann --role king", "--role: 'king' is none of owner, operator, viewer"),
        ("user add ann", "there is no terminal to ask for a password at: use --password-stdin"),
        ("user add ann --role owner --oidc-subject s --tenant acme", "a tenant belongs to"),
        ("user disable gone", "there is no user 'gone'"),
        ("audit list --tenant gone", "there is no tenant 'gone'"),
        ("audit list --since soon", "--since: 'soon' is not a moment such as 2026-11-01"),
        ("audit export --out /no/such/folder/file", "cannot be written: No such file"),
        ("usage export --format xml", "--format: 'xml' is neither csv nor jsonl"),
        ("usage export --tenant gone", "there is no tenant 'gone'"),
        ("usage export --since 2026-12-01 --until 2026-11-01", "--since is after --until"),
    ],
)
def test_a_mistake_is_one_clear_line(
    tiergate: Any, acme: Any, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    done = tiergate(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_short_password_is_refused(
    tiergate: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a database is touched, and without repeating it."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2\n"))
    done = tiergate("user", "add", "ann", "--password-stdin")
    assert (done.code, done.err) == (2, "error: a password has 12 to 1024 characters\n")
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T08:00:00Z", datetime(2026, 11, 1, 8, tzinfo=UTC)),
        ("2026-11-01T08:00:00+02:00", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ],
)
def test_a_moment_is_in_utc_unless_it_says_otherwise(text: str, moment: datetime) -> None:
    assert parse_moment(text, "--since") == moment
    with pytest.raises(CommandError):
        parse_moment("0001-01-01T00:00:00+14:00", "--since")
