"""Tenants, keys and migrations from the command line, against a real database."""

from __future__ import annotations

import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.output import CommandError
from gateway.cli.times import parse_duration
from tenants.keys import is_well_formed


def test_from_nothing_to_a_key(tiergate: Any, home: Path) -> None:
    """The first command makes the database and says so; the key is alone on stdout."""
    added = tiergate("tenant", "add", "acme", "--tier", "premium")
    assert (added.code, added.out) == (0, "added tenant acme in tier premium\n")
    assert f"created database {home}/tiergate.db" in added.err
    made = tiergate("key", "create", "--tenant", "acme")
    assert made.code == 0
    assert is_well_formed(made.out.strip())
    assert made.out.count("\n") == 1
    assert "shown only this once" in made.err
    assert "created database" not in made.err
    listed = tiergate("key", "list")
    assert made.out.strip() not in listed.out
    assert f"tgk_live_...{made.out.strip()[-4:]}" in listed.out


def test_tenants_are_listed_as_columns_and_as_json(tiergate: Any) -> None:
    tiergate("tenant", "add", "acme", "--tier", "premium")
    tiergate("tenant", "add", "beta")
    header, *rows = tiergate("tenant", "list").out.splitlines()
    assert header.split() == ["NAME", "TIER", "ORG", "CREATED", "DISABLED", "ID"]
    assert [row.split()[:2] for row in rows] == [["acme", "premium"], ["beta", "free"]]
    listed = tiergate("tenant", "list", "--json").json
    assert [(t["name"], t["tier"], t["disabled_at"]) for t in listed] == [
        ("acme", "premium", None),
        ("beta", "free", None),
    ]
    made = datetime.fromisoformat(listed[0]["created_at"])
    assert abs(datetime.now(UTC) - made) < timedelta(minutes=5)


def test_json_of_a_new_key_holds_the_key_and_its_record(tiergate: Any) -> None:
    assert tiergate("tenant", "add", "acme", "--json").json["tier"] == "free"
    done = tiergate(
        *("key", "create", "--tenant", "acme", "--name", "ci", "--json"),
        *("--expires-in", "90d", "--models", "a, b", "--env", "test"),
    )
    record = done.json["record"]
    assert done.json["key"].startswith("tgk_test_")
    assert (record["name"], record["models"]) == ("ci", ["a", "b"])
    made = datetime.fromisoformat(record["created_at"])
    assert datetime.fromisoformat(record["expires_at"]) - made == timedelta(days=90)
    assert "digest" not in record


def test_a_revoked_key_shows_it(tiergate: Any) -> None:
    tiergate("tenant", "add", "acme")
    key = tiergate("key", "create", "--tenant", "acme").out.strip()
    done = tiergate("key", "revoke", f"tgk_live_...{key[-4:]}")
    assert done.code == 0
    assert done.out.startswith(f"revoked tgk_live_...{key[-4:]} (default) at ")
    assert tiergate("key", "list", "--json").json[0]["revoked_at"] is not None


def test_a_tenant_is_disabled_and_enabled(tiergate: Any) -> None:
    tiergate("tenant", "add", "acme")
    assert tiergate("tenant", "disable", "acme").out == "disabled tenant acme\n"
    assert tiergate("tenant", "list", "--json").json[0]["disabled_at"] is not None
    assert tiergate("tenant", "enable", "acme").out == "enabled tenant acme\n"
    assert tiergate("tenant", "list", "--json").json[0]["disabled_at"] is None


def test_tiers_are_listed_changed_and_added(tiergate: Any) -> None:
    """What an operator promises is a row, changed in one line."""
    header, premium, _ = tiergate("tier", "list").out.splitlines()
    assert header.split()[:2] == ["NAME", "RANK"]
    assert premium.split() == [
        "premium",
        "0",
        "500",
        "250",
        "100",
        "gap",
        "0",
        "0.99",
        "queue",
        "0/0/0",
    ]
    done = tiergate("tier", "set", "free", "pace_ms=50", "tbt_ms=250")
    assert (done.code, done.out) == (0, "changed tier free: pace_ms=50, tbt_ms=250\n")
    added = tiergate("tier", "add", "batch", "rank=2", "ttft_ms=60000", "tbt_ms=2000", "--json")
    assert (added.json["name"], added.json["rank"], added.json["version"]) == ("batch", 2, 1)
    listed = {tier["name"]: tier for tier in tiergate("tier", "list", "--json").json}
    assert (listed["free"]["pace_ms"], listed["free"]["tbt_ms"]) == (50, 250)
    assert tiergate("tenant", "add", "acme", "--tier", "batch").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("tier set gold pace_ms=1", "there is no tier 'gold'; there are: premium, free"),
        ("tier set premium pace_ms=91", "nine tenths of tbt_ms 100, not 91"),
        ("tier set premium pace_ms", "'pace_ms' is not FIELD=VALUE, such as pace_ms=50"),
        ("tier set premium pace_ms=1 pace_ms=2", "pace_ms is given twice"),
        ("tier set premium", "Missing argument 'FIELD=VALUE...'"),
        ("tier add free rank=1 ttft_ms=1 tbt_ms=1", "there is a tier 'free' already"),
        ("tenant add acme", "there is a tenant 'acme' already"),
        ("tenant add b --tier gold", "there is no tier 'gold'; there are: premium, free"),
        ("tenant add a/b", "a tenant's name has 1 to 64 letters"),
        ("tenant disable gone", "there is no tenant 'gone'"),
        ("key create --tenant gone", "there is no tenant 'gone'"),
        ("key create --tenant acme --expires-in soon", "'soon' is not a time such as 90d"),
        ("key create --tenant acme --expires-in 99999999w", "after the end of the calendar"),
        ("key create --tenant acme --models ,", "1 to 64 models"),
        ("key create --tenant acme --env prod", "'prod' is neither live nor test"),
        ("key create", "Missing option '--tenant'"),
        ("key list --tenant gone", "there is no tenant 'gone'"),
        ("key revoke gone", "there is no such key"),
        ("tenant", "Missing command (see `tiergate tenant --help`)"),
        ("tenant list --database-url mysql://h/n", "cannot keep the ledger in 'mysql'"),
        ("tenant list --data-dir /dev/null/x", "cannot be reached: [Errno 20] Not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(tiergate: Any, arguments: str, said: str) -> None:
    tiergate("tenant", "add", "acme")
    done = tiergate(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_migrate_makes_checks_and_leaves_alone(tiergate: Any, home: Path) -> None:
    name = str(home / "tiergate.db")
    needed = tiergate("migrate", "--check")
    assert (needed.code, needed.out) == (
        1,
        f"{name} is at revision none, this version needs 0004\n",
    )
    assert not home.exists()
    assert tiergate("migrate").out == f"{name}: revision none -> 0004\n"
    assert tiergate("migrate", "--check").code == 0
    again = tiergate("migrate")
    assert (again.code, again.out) == (0, f"{name} is at revision 0004: nothing to do\n")


def test_a_database_of_a_later_version_is_refused_with_what_to_do(
    tiergate: Any, home: Path
) -> None:
    tiergate("migrate")
    with sqlite3.connect(home / "tiergate.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    done = tiergate("tenant", "list")
    assert done.code == 2
    assert "is at revision 9999, this version needs 0004: run `tiergate migrate`" in done.err
    assert "install the version of Tiergate that last ran on it" in tiergate("migrate").err


def test_variables_stand_in_for_flags(
    tiergate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIERGATE_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.setenv("TIERGATE_TENANT_TIER", "premium")
    monkeypatch.setenv("TIERGATE_JSON", "1")
    assert tiergate("tenant", "add", "acme").json["tier"] == "premium"
    assert (tmp_path / "other.db").exists()
    # A flag still wins.
    assert tiergate("tenant", "add", "beta", "--tier", "free").json["tier"] == "free"


@pytest.mark.parametrize(
    ("text", "hours"), [("30m", 0.5), ("12h", 12), ("90d", 2160), ("4w", 672), (" 1h ", 1)]
)
def test_durations(text: str, hours: float) -> None:
    assert parse_duration(text) == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1", "d", "1.5d", "1y", "1d2h", "٣d"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match=re.escape(repr(text))):
        parse_duration(text)
