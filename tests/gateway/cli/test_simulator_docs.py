"""docs/simulator.md names every flag, field and column there is, and no flag there is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from engine.sim.comparison import CAPACITY_FORMAT
from engine.sim.point import PointSpec, run_point
from engine.sim.record_file import COLUMNS
from engine.sim.report import FAIRNESS_COLUMNS, FORMAT, KEY_COLUMNS, TIER_COLUMNS, TOTAL_COLUMNS
from engine.sim.trace import TraceRow
from gateway.cli.main import build_app
from gateway.cli.simulate import FAULTS

DOCS = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text()
NAMED = set(re.findall(r"`([^`\s]+)`", DOCS))
COMMANDS = ("simulate", "compare", "capacity")


def flags() -> set[str]:
    command: Any = typer.main.get_command(build_app())
    return {
        option
        for name in COMMANDS
        for param in command.commands[name].params
        for option in param.opts
    } - {"--help"}


def test_every_flag_is_described_and_every_flag_described_exists() -> None:
    described = set(re.findall(r"--[a-z][a-z0-9-]+", DOCS))
    assert flags() == described


def test_every_field_of_a_point_is_described() -> None:
    point = run_point(PointSpec("", "fcfs", 1.0, 3), [TraceRow(10, 3)]).point
    tier = point["tiers"]["free"]
    fields = {*point, *tier, *point["tenants"], *tier["ttft_ms"], *tier["normalised_latency_ms"]}
    assert sorted(fields - NAMED) == []


@pytest.mark.parametrize(
    "columns", [KEY_COLUMNS, tuple(TIER_COLUMNS), TOTAL_COLUMNS, FAIRNESS_COLUMNS, COLUMNS]
)
def test_every_column_is_described(columns: tuple[str, ...]) -> None:
    assert sorted(set(columns) - NAMED) == []


def test_faults_and_formats_are_described() -> None:
    assert {*FAULTS, FORMAT, CAPACITY_FORMAT} <= NAMED
