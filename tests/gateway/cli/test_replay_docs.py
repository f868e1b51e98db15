"""docs/replay.md names every flag and field there is, and no flag there is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from engine.core.request import Slo
from engine.sim.workload import SimRequest, SimTier
from gateway.cli.main import build_app
from gateway.replay.answer_watch import CountedBy
from gateway.replay.dialect import Dialect, Form, Pin
from gateway.replay.evidence import Client, evidence
from gateway.replay.folder import CLIENT_COLUMNS
from gateway.replay.player import Seen

DOCS = (Path(__file__).parents[3] / "docs" / "replay.md").read_text()
NAMED = set(re.findall(r"`([^`\s]+)`", DOCS))


def test_every_flag_is_described_and_every_flag_described_exists() -> None:
    command: Any = typer.main.get_command(build_app())
    flags = {
        name: {option for param in command.commands[name].params for option in param.opts}
        for name in ("replay", "report", "compare", "profile", "serve")
    }
    wanted = {f for n in ("replay", "report") for f in flags[n] if f.startswith("--")} - {"--help"}
    described = set(re.findall(r"--[a-z][a-z0-9-]+", DOCS))
    assert wanted - described == set()
    assert described - set.union(*flags.values()) == set()


def test_every_field_and_column_is_described() -> None:
    tier = SimTier("t", Slo(), 1.0, 1.0)
    seen = [Seen(SimRequest("r", 0, 1, 1, tier, "x"), 1, 2)]
    fields = evidence(
        seen, Client(0, 10, 1, 1, 1, 0, [1]), Dialect("m", Form.TOKENS, Pin.BOTH), url="",
        server="", served_tiers={}, started="", asked_requests=1, was_stopped=False,
    )  # fmt: skip
    names = {*fields, *fields["client"], *fields["tokens"], *fields["client"]["lag_ms"]}
    assert sorted(names - NAMED) == []
    assert sorted({*CLIENT_COLUMNS[1:], *CountedBy, *Pin} - {"none"} - NAMED) == []
    assert {form.value for form in Form} <= {*NAMED, "tokens"}
