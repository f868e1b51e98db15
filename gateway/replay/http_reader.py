"""Reads one HTTP/1.1 response from bytes as they come (RFC 9112); it knows no socket and no JSON.

Written for one purpose: a load generator that spends microseconds a token. It takes chunked
bodies, bodies of a stated length and bodies that end with the connection, and refuses the rest.
"""

from __future__ import annotations

from enum import Enum, auto

MOST_HEAD_BYTES = 64 * 1024
MOST_LINE_BYTES = 4096
HEAD_END, LINE_END = b"\r\n\r\n", b"\r\n"


class HttpFault(ValueError):
    """What came is no HTTP/1.1 response that can be read; a few words say why."""


class _State(Enum):
    HEAD = auto()
    COUNTED = auto()  # content-length bytes
    OPEN = auto()  # until the connection ends
    SIZE = auto()  # the line before a chunk
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    DONE = auto()


class ResponseReader:
    """One response: `status` and `headers` (names in lower case) are there once the head is."""

    __slots__ = ("_buffer", "_left", "_state", "headers", "keeps_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.keeps_alive = False
        self._buffer = bytearray()
        self._left = 0
        self._state = _State.HEAD

    @property
    def is_done(self) -> bool:
        """True when the response is whole."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came; return the pieces of the body in it. Raises HttpFault."""
        self._buffer += data
        pieces: list[bytes] = []
        while self._step(pieces):
            pass
        return pieces

    def end(self) -> None:
        """The connection ended. Raises HttpFault unless the response is whole with that."""
        if self._state is _State.OPEN:
            self._state = _State.DONE
        if self._state is not _State.DONE:
            where = "the answer began" if self._state is _State.HEAD else "it was whole"
            raise HttpFault(f"the connection ended before {where}")

    def _step(self, pieces: list[bytes]) -> bool:
        """Go on by one state; return whether anything may be left to do."""
        state = self._state
        if state is _State.HEAD:
            return self._read_head()
        if state is _State.SIZE:
            return self._read_size()
        if state is _State.CHUNK_END:
            return self._read_chunk_end()
        if state is _State.TRAILER:
            return self._read_trailer()
        if state is _State.DONE:
            if self._buffer:
                raise HttpFault("more bytes came than the answer had")
            return False
        return self._read_body(pieces)

    def _read_body(self, pieces: list[bytes]) -> bool:
        if not self._buffer:
            return False
        if self._state is _State.OPEN:
            pieces.append(bytes(self._buffer))
            self._buffer.clear()
            return False
        piece = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(piece)
        pieces.append(piece)
        if self._left:
            return False
        self._state = _State.DONE if self._state is _State.COUNTED else _State.CHUNK_END
        return True

    def _line(self, limit: int = MOST_LINE_BYTES) -> bytes | None:
        """Return the next line without its end, None where it is not all there."""
        at = self._buffer.find(LINE_END)
        if at < 0 and len(self._buffer) <= limit:
            return None
        if not 0 <= at <= limit:
            raise HttpFault("a line of the answer is too long")
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 2]
        return line

    def _read_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        digits = line.partition(b";")[0].strip()
        try:
            # int() takes signs, underscores and prefixes too; a size has none of them.
            if not digits.isalnum() or len(digits) > 8:
                raise ValueError
            self._left = int(digits, 16)
        except ValueError:
            raise HttpFault(f"a chunk of size {digits[:20]!r}") from None
        self._state = _State.CHUNK if self._left else _State.TRAILER
        return True

    def _read_chunk_end(self) -> bool:
        if len(self._buffer) < len(LINE_END):
            return False
        if not self._buffer.startswith(LINE_END):
            raise HttpFault("a chunk is longer than its size")
        del self._buffer[: len(LINE_END)]
        self._state = _State.SIZE
        return True

    def _read_trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            self._state = _State.DONE
        return True

    def _read_head(self) -> bool:
        end = self._buffer.find(HEAD_END)
        if end < 0 and len(self._buffer) <= MOST_HEAD_BYTES:
            return False
        if not 0 <= end <= MOST_HEAD_BYTES:
            raise HttpFault("the head of the answer is too long")
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + len(HEAD_END)]
        version, _, rest = lines[0].partition(" ")
        status = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (status.isascii() and status.isdigit()):
            raise HttpFault(f"not HTTP/1.1: {lines[0][:40]!r}")
        if status.startswith("1"):
            return True  # an interim response: the real one follows
        self.status = int(status)
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise HttpFault(f"not a header: {line[:40]!r}")
            self.headers[name.strip().lower()] = value.strip()
        self._choose_body(version)
        return True

    def _choose_body(self, version: str) -> None:
        connection = self.headers.get("connection", "").lower()
        self.keeps_alive = version == "HTTP/1.1" and "close" not in connection
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpFault("the answer is compressed, though that was not asked for")
        encoding = self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            self._state = _State.DONE
        elif encoding == "chunked":
            self._state = _State.SIZE
        elif encoding:
            raise HttpFault(f"transfer-encoding {encoding[:40]!r}")
        elif length is None:
            self._state, self.keeps_alive = _State.OPEN, False
        elif length.isascii() and length.isdigit() and len(length) < 16:
            self._left = int(length)
            self._state = _State.COUNTED if self._left else _State.DONE
        else:
            raise HttpFault(f"content-length {length[:40]!r}")
