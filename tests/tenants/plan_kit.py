"""Asks SQLite how it would answer every question that was put to it: by an index, or row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from tenants.database import Database

# Tables that grow with traffic; reading one of them whole is what no page may do.
GROWING = ("slo_records", "slo_counts", "usage", "usage_days", "audit")


class Questions:
    """The distinct SELECTs that were executed, with their parameters."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def hear(self, _c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            self.asked.setdefault(statement, parameters)


@contextmanager
def questions() -> Iterator[Questions]:
    """Listen to every engine of this process for the length of a block."""
    found = Questions()
    event.listen(Engine, "before_cursor_execute", found.hear)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", found.hear)


async def whole_tables_read(database: Database, asked: Questions) -> list[str]:
    """Return the steps of SQLite's plans that read all rows of a growing table, with the question.

    A walk along a whole index counts too, unless it ends after so many rows (LIMIT).
    """
    found = []
    async with database.read() as session:
        connection = await session.connection()
        for statement, parameters in asked.asked.items():
            plan = await connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {statement}", tuple(parameters)
            )
            for *_, step in plan.all():
                scan = re.match(r"SCAN (\w+)", step)
                if scan is None or scan[1] not in GROWING:
                    continue
                if "USING" not in step or " LIMIT " not in statement.replace("\n", " "):
                    found.append(f"{step}: {statement}")
    return found


async def analyse(database: Database) -> None:
    """Let SQLite know how many rows there are."""
    async with database.write() as session:
        await session.execute(text("ANALYZE"))
