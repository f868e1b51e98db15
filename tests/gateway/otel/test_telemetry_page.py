"""docs/telemetry.md tells of every metric, span, attribute and log field, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from door_kit import open_door
from telemetry_page import PAGE, with_tables

from gateway.push_settings import STANDARD_VARIABLES, PushSettings


async def test_the_tables_are_those_of_the_code(tmp_path: Path) -> None:
    """Written anew by `python tests/gateway/otel/telemetry_page.py`."""
    settings = {"otlp_endpoint": "http://127.0.0.1:9", "otlp_timeout_s": 0.1}
    async with open_door(tmp_path, settings=settings) as door:
        made = door.services.telemetry.instruments
        page = PAGE.read_text()
        assert with_tables(page, made) == page


def test_every_setting_is_told_with_the_standard_variable_behind_it() -> None:
    page = PAGE.read_text()
    told = set(re.findall(r"`([A-Z_]+)`", page)) | set(re.findall(r"`([A-Z_]+) ", page))
    wanted = {name.upper() for name in PushSettings.model_fields}
    assert {name for name in wanted if name not in page} == set(), told
    standard = {name for name in STANDARD_VARIABLES.values() if "TRACES_E" not in name}
    assert {name for name in standard if name not in page and "LOGS_E" not in name} == set()
