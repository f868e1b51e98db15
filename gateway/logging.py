"""Log lines as JSON on stderr: what happened, never what was said; it knows no prompt and no key.

A stack trace is written as places and exception types only: messages of unforeseen exceptions may
carry values, and values may be somebody's prompt.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

# What a library of ours says over and over while something is away: once a minute is enough.
REPEATING = ("opentelemetry",)
REPEAT_S = 60.0
MOST_SAID = 100
FIELDS = "fields"  # the key under which `extra` carries a line's own fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


class Repeated(logging.Filter):
    """Lets a line of a library that repeats itself pass once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for what is to be logged."""
        if not record.name.startswith(REPEATING):
            return True
        key = (record.name, str(record.msg))
        if record.created - self._said.get(key, -REPEAT_S) < REPEAT_S:
            return False
        if len(self._said) >= MOST_SAID:
            self._said.clear()
        self._said[key] = record.created
        return True


def describe(error: BaseException) -> list[str]:
    """Return an exception as places and types, innermost last, without any message."""
    lines: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        lines[:0] = [*places, type(seen).__name__]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return lines


def set_up(level: str) -> None:
    """Send every log line of this process to stderr, in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Repeated())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "alembic", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
