"""The page on the HTTP surface says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.errors import Problem
from gateway.schemas import ChatBody, CompletionBody

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()


def test_the_table_of_errors_is_the_table_in_the_code() -> None:
    """Every problem has its row, in order, and no row is made up."""
    rows = re.findall(
        r"^\| (\d{3}) \| `(\w+)` \| `(\w+)` \| (?:`([\w-]+)` )?\|$", PAGE, re.MULTILINE
    )
    specs = [problem.value for problem in Problem]
    assert rows == [(str(s.status), s.type, s.code, s.reason or "") for s in specs]


def test_every_field_that_is_checked_is_named() -> None:
    """No field has a meaning that the page does not mention."""
    fields = {*ChatBody.model_fields, *CompletionBody.model_fields} - {"best_of", "stream_options"}
    assert {name for name in fields if f"`{name}`" not in PAGE} == set()
