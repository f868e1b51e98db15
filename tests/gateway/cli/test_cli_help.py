"""What the command line says of itself: true, complete, and quick to come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli.main import build_app
from gateway.settings import COMMAND_VARIABLES, ENV_PREFIX, Settings

ROOT = Path(__file__).parents[3]


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that can be run, with its name."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield name, command
            return
        for child_name, child in children.items():
            yield from walk(f"{name} {child_name}".strip(), child)

    yield from walk("", typer.main.get_command(build_app()))


def flags(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


COMMANDS = dict(commands())


def test_every_command_is_there() -> None:
    assert set(COMMANDS) == {
        "serve",
        "chat",
        "doctor",
        "migrate",
        "settings",
        "profile",
        "predict-eval",
        "simulate",
        "compare",
        "capacity",
        "replay",
        "report",
        "tier list",
        "tier set",
        "tier add",
        "tier versions",
        "tier apply",
        "org add",
        "org list",
        "tenant add",
        "tenant list",
        "tenant set",
        "tenant disable",
        "tenant enable",
        "key create",
        "key list",
        "key set",
        "key revoke",
        "key rotate",
        "key revoke-all",
        "limit set",
        "limit show",
        "budget set",
        "budget show",
        "usage export",
        "usage verify",
        "slo openslo",
        "slo report",
        "slo rules",
        "slo show",
        "slo verify",
        "user add",
        "user list",
        "user disable",
        "user enable",
        "user password",
        "user role",
        "audit list",
        "audit export",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_line_of_help_and_a_variable_that_is_shown(
    tiergate: Any, name: str
) -> None:
    shown = tiergate(*name.split(), "--help")
    assert shown.code == 0
    words = " ".join(shown.out.split())
    for flag in flags(COMMANDS[name]):
        assert flag.help, flag.name
        assert flag.envvar.startswith(ENV_PREFIX), flag.name
        assert flag.envvar in words.replace("env var: ", ""), flag.name


def test_every_variable_of_a_flag_is_a_setting_or_known_as_a_commands() -> None:
    """Or the doctor would call it misspelt."""
    settings = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    used = {flag.envvar for command in COMMANDS.values() for flag in flags(command)}
    assert used - settings == COMMAND_VARIABLES


def test_the_flags_of_serve_are_settings_and_their_defaults_are_told_truly(tiergate: Any) -> None:
    words = " ".join(tiergate("serve", "--help").out.split())
    assert "--model" in words
    for flag in flags(COMMANDS["serve"]):
        field = Settings.model_fields[flag.name]
        assert flag.envvar == ENV_PREFIX + flag.name.upper()
        default = field.default
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert f"default {shown}." in flag.help, flag.name


def test_without_a_command_it_teaches(tiergate: Any) -> None:
    done = tiergate()
    assert done.code == 0
    assert "tiergate serve --demo" in done.out
    assert tiergate("--help").out == done.out


@pytest.mark.parametrize("arguments", [("bogus",), ("--bogus",), ("serve", "--bogus")])
def test_what_is_not_there_is_one_line(tiergate: Any, arguments: tuple[str, ...]) -> None:
    done = tiergate(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: No such ")
    assert "--help`)" in done.err
    assert done.err.count("\n") == 1


def test_a_bad_setting_of_serve_is_refused_before_anything_starts(
    tiergate: Any, home: Path
) -> None:
    done = tiergate("serve", "--port", "70000")
    assert done.code == 2
    assert "error: --port (TIERGATE_PORT): input should be less than" in done.err
    assert not home.exists()


def test_help_and_version_import_nothing_heavy() -> None:
    """`tiergate --help` must answer at once: the time goes where the imports are."""
    script = (
        "import sys; from gateway.cli import main; main.run(['--help']); main.run(['--version'])\n"
        "heavy = {'sqlalchemy', 'alembic', 'pydantic_settings', 'httpx', 'fastapi', 'torch',"
        " 'asyncio', 'transformers', 'opentelemetry', 'rich'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert any(line.startswith("tiergate ") for line in done.stdout.splitlines())


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`tiergate ... | head -1` must not end in a traceback."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "serve", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    said = writer.stderr.read()
    writer.stderr.close()
    writer.wait(timeout=60)
    assert said == b""
