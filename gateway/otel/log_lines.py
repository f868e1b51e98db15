"""Log lines as OTLP records: the same lines and fields as on stderr, and nothing more.

Stack traces are places and types without messages, as there (gateway/logging.py). What the pushing
itself has to say is not pushed: a collector that is away must not make more to push.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from gateway.logging import FIELDS, describe
from gateway.otel import span_names as say
from gateway.otel.drawing import Value, known
from gateway.otel.trace_context import CURRENT, Trace

MOST_BODY = 4096  # characters of a message
_NOT_PUSHED = ("gateway.otel.", "opentelemetry", "requests", "urllib3", "httpx", "httpcore")
_SEVERITIES: Mapping[int, SeverityNumber] = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}


class Line(NamedTuple):
    """One line as it was logged; its message is made, its exception is described."""

    unix_ns: int
    level: int
    logger: str
    message: str
    fields: Mapping[str, Any]
    exception: tuple[str, ...]
    trace: Trace | None


class PushHandler(logging.Handler):
    """Hands on every line; never waits, never raises."""

    def __init__(self, take: Callable[[Line], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if record.name.startswith(_NOT_PUSHED):
            return
        error = record.exc_info[1] if record.exc_info else None
        self._take(
            Line(
                int(record.created * 1e9),
                record.levelno,
                record.name,
                record.getMessage(),
                getattr(record, FIELDS, {}),
                () if error is None else tuple(describe(error)),
                CURRENT.get(),
            )
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave it: the same line is on stderr."""


def log_record(line: Line) -> LogRecord:
    """Return a line as OTLP has it."""
    attributes: dict[str, Value | None] = {say.LOGGER: line.logger}
    for name, value in line.fields.items():
        if name == "trace_id":
            continue
        listed = say.LOG_FIELDS.get(name)
        attributes[say.OTHER_FIELD + name if listed is None else listed[0]] = _plain(value)
    if line.exception:
        attributes[say.EXCEPTION_TYPE] = line.exception[-1]
        attributes[say.EXCEPTION_PLACES] = "\n".join(line.exception)
    return LogRecord(
        timestamp=line.unix_ns,
        observed_timestamp=line.unix_ns,
        context=_context(line.trace),
        severity_number=_SEVERITIES.get(line.level, SeverityNumber.UNSPECIFIED),
        severity_text=logging.getLevelName(line.level).lower(),
        body=line.message[:MOST_BODY],
        attributes=known(attributes),
    )


def _context(trace: Trace | None) -> Context:
    if trace is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if trace.is_sampled else TraceFlags.DEFAULT)
    within = SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), False, flags)
    return set_span_in_context(NonRecordingSpan(within), Context())


def _plain(value: Any) -> Value | None:
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
