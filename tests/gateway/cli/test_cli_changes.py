"""Tenants, users and tiers that are there are changed from the command line, and from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TOML = """
[tiers.free]
ttft_ms = 1500
max_queue = "none"

[tiers.batch]
rank = 3
ttft_ms = 60000
tbt_ms = 2000
objective = 0.9
"""


def tiers(tiergate: Any) -> dict[str, Any]:
    return {tier["name"]: tier for tier in tiergate("tier", "list", "--json").json}


def test_a_tenant_is_given_another_tier_and_organisation(tiergate: Any) -> None:
    tiergate("org", "add", "umbrella")
    tiergate("tenant", "add", "acme")
    done = tiergate("tenant", "set", "acme", "--tier", "premium")
    assert (done.code, done.out.split(",")[0]) == (0, "tenant acme is in tier premium")
    changed = tiergate("tenant", "set", "acme", "--org", "umbrella", "--json").json
    assert changed["tier"] == "premium"
    assert [t["name"] for t in tiergate("tenant", "list", "--org", "umbrella", "--json").json] == [
        "acme"
    ]
    assert tiergate("tenant", "set", "acme").err.startswith("error: nothing to change")
    assert tiergate("tenant", "set", "acme", "--tier", "gold").code == 2


def test_a_key_is_narrowed_and_widened(tiergate: Any) -> None:
    """Only what is named changes; `all` and `never` open again."""
    tiergate("tenant", "add", "acme")
    key = tiergate("key", "create", "--tenant", "acme", "--json").json["record"]["id"]
    narrow = tiergate(
        "key", "set", key, "--scopes", "chat,models", "--models", "a, b", "--json"
    ).json
    assert (narrow["scopes"], narrow["models"]) == (["chat", "models"], ["a", "b"])
    said = tiergate("key", "set", key, "--models", "all", "--expires-in", "30d").out
    assert "scopes chat,models, models all, until 20" in said
    wide = tiergate("key", "set", key, "--scopes", "all", "--expires-in", "never", "--json").json
    assert (wide["scopes"], wide["expires_at"]) == (None, None)
    assert tiergate("key", "set", key).err.startswith("error: nothing to change")
    assert "is none of" in tiergate("key", "set", key, "--scopes", "root").err
    assert tiergate("key", "set", key, "--expires-in", "soon").code == 2
    tiergate("key", "revoke", key)
    assert "revoked or expired" in tiergate("key", "set", key, "--name", "x").err


def test_a_user_is_given_another_role(tiergate: Any) -> None:
    tiergate("user", "add", "ann", "--role", "owner", "--oidc-subject", "s1")
    assert "last owner" in tiergate("user", "role", "ann", "viewer").err
    tiergate("user", "add", "bob", "--role", "viewer", "--oidc-subject", "s2")
    assert tiergate("user", "role", "bob", "owner").out == "user bob is owner now\n"
    assert tiergate("user", "role", "bob", "king").code == 2


def test_a_file_of_tiers_is_checked_and_applied(tiergate: Any, tmp_path: Path) -> None:
    """`--check` says what would change and changes nothing; the same file twice is one change."""
    file = tmp_path / "tiers.toml"
    file.write_text(TOML)
    before = tiers(tiergate)
    checked = tiergate("tier", "apply", str(file), "--check")
    assert checked.out.splitlines() == [
        "free: ttft_ms 2000 -> 1500, max_queue 256 -> None",
        "batch: new",
    ]
    assert "nothing was changed" in checked.err
    assert tiers(tiergate) == before
    assert tiergate("tier", "apply", str(file)).code == 0
    after = tiers(tiergate)
    assert (after["free"]["ttft_ms"], after["free"]["max_queue"]) == (1500, None)
    assert (after["batch"]["objective"], after["batch"]["version"]) == (0.9, 1)
    assert after["premium"] == before["premium"]
    assert tiergate("tier", "apply", str(file)).out.splitlines() == ["free: same", "batch: same"]


def test_the_same_as_json_with_versions(tiergate: Any, tmp_path: Path) -> None:
    """A version that is over refuses the whole file."""
    file = tmp_path / "tiers.json"
    content: dict[str, Any] = {
        "tiers": {"free": {"ttft_ms": 1500, "max_queue": None, "version": 1}}
    }
    file.write_text(json.dumps(content))
    assert tiergate("tier", "apply", str(file), "--json").json == [
        {"tier": "free", "changes": {"ttft_ms": [2000, 1500], "max_queue": [256, None]}}
    ]
    content["tiers"]["premium"] = {"ttft_ms": 1}
    file.write_text(json.dumps(content))
    refused = tiergate("tier", "apply", str(file))
    assert (refused.code, "at version 2, not 1" in refused.err) == (2, True)
    assert tiers(tiergate)["premium"]["version"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must have tiers"),
        ("[tiers", "cannot be read"),
        ("tiers = 3", "table of tables"),
        ("[tiers]\nfree = 1", "tier free: it must be a table"),
        ("[tiers.free]\n", "tier free: nothing is set"),
        ("[tiers.free]\nttft_ms = true", "must be a number or a word"),
        ("[tiers.free]\nttft_ms = [1]", "must be a number or a word"),
        ("[tiers.free]\nttft = 1", "there is no field 'ttft'"),
        ("[tiers.free]\nversion = '1'\nrank = 1", "version must be a whole number"),
        ("[tiers.free]\nttft_ms = -1", "ttft_ms must be"),
        ("other = 1\n[tiers.free]\nrank = 1", "must have tiers and nothing else"),
    ],
)
def test_a_file_that_cannot_be_is_one_line_and_changes_nothing(
    tiergate: Any, tmp_path: Path, text: str, says: str
) -> None:
    before = tiers(tiergate)
    file = tmp_path / "tiers.toml"
    file.write_text(text)
    refused = tiergate("tier", "apply", str(file))
    assert refused.code == 2
    assert says in refused.err
    assert len(refused.err.splitlines()) == 1
    assert tiers(tiergate) == before


def test_a_file_that_is_not_there_is_one_line(tiergate: Any, tmp_path: Path) -> None:
    refused = tiergate("tier", "apply", str(tmp_path / "gone.toml"))
    assert (refused.code, "cannot be read" in refused.err) == (2, True)
