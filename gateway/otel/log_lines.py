"""Log lines as OTLP records: the same lines and fields as on stderr, and nothing more.

Stack traces are places and types without messages, as there (gateway/logging.py). What the pushing
itself has to say is not pushed: a collector that is away must not make more to push.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber

from gateway.logging import FIELDS, describe
from gateway.otel import span_names as say
from gateway.otel.protobuf import Value, any_value, key_values
from gateway.otel.pusher import Queue
from gateway.otel.trace_context import CURRENT, Trace

MOST_BODY = 4096  # characters of a message
_NOT_PUSHED = ("gateway.otel.", "httpx", "httpcore", "opentelemetry")
_SEVERITIES: Mapping[int, SeverityNumber.ValueType] = {
    logging.DEBUG: SeverityNumber.SEVERITY_NUMBER_DEBUG,
    logging.INFO: SeverityNumber.SEVERITY_NUMBER_INFO,
    logging.WARNING: SeverityNumber.SEVERITY_NUMBER_WARN,
    logging.ERROR: SeverityNumber.SEVERITY_NUMBER_ERROR,
    logging.CRITICAL: SeverityNumber.SEVERITY_NUMBER_FATAL,
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
    """Puts every line into a queue; never waits, never raises."""

    def __init__(self, queue: Queue[Line]) -> None:
        super().__init__()
        self._queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if record.name.startswith(_NOT_PUSHED):
            return
        error = record.exc_info[1] if record.exc_info else None
        self._queue.put(
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
        known = say.LOG_FIELDS.get(name)
        attributes[say.OTHER_FIELD + name if known is None else known[0]] = _plain(value)
    if line.exception:
        attributes[say.EXCEPTION_TYPE] = line.exception[-1]
        attributes[say.EXCEPTION_PLACES] = "\n".join(line.exception)
    record = LogRecord(
        time_unix_nano=line.unix_ns,
        observed_time_unix_nano=line.unix_ns,
        severity_number=_SEVERITIES.get(line.level, SeverityNumber.SEVERITY_NUMBER_UNSPECIFIED),
        severity_text=logging.getLevelName(line.level).lower(),
        body=any_value(line.message[:MOST_BODY]),
        attributes=key_values(attributes),
    )
    if line.trace is not None:
        record.trace_id = bytes.fromhex(line.trace.trace_id)
        record.span_id = bytes.fromhex(line.trace.span_id)
        record.flags = int(line.trace.is_sampled)
    return record


def _plain(value: Any) -> Value | None:
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
