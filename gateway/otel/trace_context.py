"""W3C trace context: what a client says of its trace, and what this request is called in it.

Nothing that a client sends is taken further than 48 hexadecimal digits and one flag: a malformed or
repeated `traceparent` counts as none, and `tracestate`, which is free text, is never read. Whether
a request is traced is decided elsewhere (sampler.py).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import NamedTuple

HEADER = b"traceparent"
# https://www.w3.org/TR/trace-context/#traceparent-header: a version above 00 may bring more fields
# behind a dash, ff is no version, and ids of zeros only are no ids.
_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?"
)
_VERSION_00_LENGTH = 55
_MOST_LENGTH = 512
_SAMPLED = 1


class Parent(NamedTuple):
    """The caller's span: ids in lower-case hexadecimal digits."""

    trace_id: str
    span_id: str
    is_sampled: bool


class Trace(NamedTuple):
    """One request in its trace. `span_id` is that of its server span, `parent_id` the caller's.

    `started_unix_ns` is its arrival by the wall clock, 0 where it is not sampled.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    is_sampled: bool = False
    started_unix_ns: int = 0

    @property
    def header(self) -> str:
        """Return it in the form of a `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"


# The trace of the request that this task works for; log lines and exemplars read it.
CURRENT: ContextVar[Trace | None] = ContextVar("tiergate_trace", default=None)


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """Return what the caller's `traceparent` says; None without exactly one that is sound."""
    values = [value for name, value in headers if name == HEADER]
    if len(values) != 1 or len(values[0]) > _MOST_LENGTH:
        return None
    value = values[0].strip()
    found = _PARENT.fullmatch(value)
    if found is None or (value.startswith(b"00") and len(value) != _VERSION_00_LENGTH):
        return None
    flags = int(found[3], 16)
    return Parent(found[1].decode(), found[2].decode(), bool(flags & _SAMPLED))


def new_span_id() -> str:
    """Return a random span id."""
    return _not_zero(8)


def new_trace_id() -> str:
    """Return a random trace id."""
    return _not_zero(16)


def _not_zero(size: int) -> str:
    while not any(drawn := secrets.token_bytes(size)):
        pass
    return drawn.hex()
