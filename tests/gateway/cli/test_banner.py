"""What a start prints: secrets on a terminal, and elsewhere only where they are kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from engine.serving.client import EngineInfo
from gateway.cli.banner import print_banner
from gateway.settings import Settings
from tenants.keys import generate_admin_token, generate_key


class Start:
    """A gateway with its secrets, as the banner is told of it."""

    def __init__(self, data_dir: Path, **more: Any) -> None:
        self.settings = Settings(data_dir=data_dir, **more)
        given = self.settings.admin_token
        self.token = generate_admin_token() if given is None else given.get_secret_value()
        self.keys = {"premium": generate_key(), "free": generate_key()}
        self.admin_file = data_dir / "admin-token"
        self.keys_file = data_dir / "demo-keys.json"

    def shown(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        *,
        terminal: bool,
        demo: bool = True,
    ) -> str:
        """Return what is printed."""
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        info = EngineInfo(
            model="m", model_path="m", runner="generic", device="cpu", dtype="float32",
            policy="hybrid", max_model_len=64, block_size=16, num_blocks=8, max_batch_tokens=64,
            max_batch_requests=8, pid=1, load_s=0.1,
        )  # fmt: skip
        keys = self.keys if demo else {}
        kept = self.keys_file if demo else None
        print_banner(self.settings, info, self.token, self.admin_file, keys, kept)
        return capsys.readouterr().out


def test_a_terminal_is_shown_the_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts it by hand gets both keys, the token and the admin page to paste."""
    start = Start(tmp_path)
    shown = start.shown(capsys, monkeypatch, terminal=True)
    for word in (*start.keys.values(), start.token, f"{start.settings.url}/admin"):
        assert word in shown
    assert f'"Authorization: Bearer {start.keys["premium"]}"' in shown


@pytest.mark.parametrize("demo", [True, False])
def test_a_log_is_not_shown_any_secret(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    demo: bool,
) -> None:
    """Logs are kept and read by others: they are told where the secrets are."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes libraries believe in a terminal
    start = Start(tmp_path)
    shown = start.shown(capsys, monkeypatch, terminal=False, demo=demo)
    for secret in (*start.keys.values(), start.token):
        assert secret not in shown
    assert str(start.admin_file) in shown
    assert (str(start.keys_file) in shown) is demo


@pytest.mark.parametrize("terminal", [True, False])
def test_a_token_that_was_set_is_shown_to_nobody(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    """Whoever set it has it."""
    start = Start(tmp_path, admin_token=generate_admin_token())
    shown = start.shown(capsys, monkeypatch, terminal=terminal)
    assert start.token not in shown
    assert "as set" in shown
