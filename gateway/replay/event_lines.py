"""Splits a stream of server-sent events into their data; it knows no JSON and no time.

The format is the HTML standard's (https://html.spec.whatwg.org/multipage/server-sent-events.html):
lines end with LF or CR LF, an empty line ends an event. Comments and other fields are passed over.
"""

from __future__ import annotations

MOST_EVENT_BYTES = 4 * 1024 * 1024


class EventLines:
    """Bytes in, the data of whole events out."""

    __slots__ = ("_data", "_rest", "_size")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that are whole now; raises ValueError for an endless one.

        What stands before the last line's end waits for more.
        """
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        found: list[bytes] = []
        for line in lines:
            text = line[:-1] if line.endswith(b"\r") else line
            if not text:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
            elif text.startswith(b"data:"):
                value = text[5:].removeprefix(b" ")
                self._data.append(value)
                self._size += len(value)
        if self._size + len(self._rest) > MOST_EVENT_BYTES:
            raise ValueError("an event of the stream is too long")
        return found
