"""`tiergate settings`: all of them, with the values in force, and no secret among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings


def test_every_setting_is_listed_with_its_value(
    tiergate: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERGATE_MAX_QUEUE", "7")
    rows = {row["variable"]: row for row in tiergate("settings", "--json").json}
    assert set(rows) == {f"TIERGATE_{name.upper()}" for name in Settings.model_fields}
    assert rows["TIERGATE_MAX_QUEUE"]["value"] == "7"
    assert rows["TIERGATE_DATABASE_URL"]["value"] == f"{home}/tiergate.db"
    assert rows["TIERGATE_THREADS"]["value"] == ""
    lines = tiergate("settings").out.splitlines()
    assert len(lines) == len(rows) + 1
    assert not home.exists()


def test_secrets_are_not_listed(tiergate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERGATE_PEPPER", "hushhush" * 8)
    monkeypatch.setenv("TIERGATE_ADMIN_TOKEN", "hushhush")
    monkeypatch.setenv("TIERGATE_DATABASE_URL", "postgresql://u:hushhush@h/n")
    for arguments in (("settings",), ("settings", "--json")):
        done = tiergate(*arguments)
        assert done.code == 0
        assert "hushhush" not in done.out
        assert "postgresql://u:***@h/n" in done.out
