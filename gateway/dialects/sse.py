"""Server-sent events as bytes, and the frame around a plain piece of text; it knows no API.

Format: WHATWG HTML, "Server-sent events". JSON has no line breaks here, so an event's data is one
line.
"""

from __future__ import annotations

from typing import Any

import orjson

MARK = "\0text\0"  # stands where the text will be; no model's name or id has such a thing


def event(value: Any, name: str | None = None) -> bytes:
    """Return one event with a JSON value, named where the API names its events."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + orjson.dumps(value) + b"\n\n"


class Frame:
    """An event of which only the text changes: made once, filled for every token."""

    __slots__ = ("_after", "_before")

    def __init__(self, sample: bytes) -> None:
        """`sample` is the event with `MARK` as its text."""
        self._before, _, self._after = sample.partition(orjson.dumps(MARK))

    def around(self, text: str) -> bytes:
        """Return the event with this text."""
        return self._before + orjson.dumps(text) + self._after
