"""How commands speak: results on stdout, everything else on stderr; it knows no command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """A command cannot do what was asked; the message is one clear line, the exit code is 2."""


def note(line: str) -> None:
    """Say something that is not the result: it must not end up in a pipe."""
    print(line, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Say what went wrong, in one line, however many the message had."""
    note(f"error: {' '.join(message.split())}")


def print_json(value: Any) -> None:
    """Print values as JSON: dataclasses as objects, moments as RFC 3339 in UTC."""
    print(json.dumps(_plain(value), indent=2))


def json_line(value: Any) -> str:
    """Return a value as one line of JSON, with its newline."""
    return json.dumps(_plain(value), separators=(",", ":")) + "\n"


def tell_difference(file: Path, difference: str, *, as_json: bool) -> None:
    """Print that a file is not what was checked, and the first thing in which it differs."""
    if as_json:
        print_json({"verified": False, "difference": difference})
    else:
        print(f"{file} differs: {difference}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns; the header is upper case, so that `tail -n +2` drops it."""
    table = [[name.upper() for name in header], *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def moment(value: datetime | None) -> str:
    """Return a moment to the second in UTC, empty for None."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%SZ")


def printable(text: str) -> str:
    """Return text without the control characters that could steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or ord(c) > 0x9F))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value
