"""Wires what is pushed over OTLP: which signals, to where, as whom; off unless an endpoint is set.

Each signal has a thread, a queue and a connection of its own, so one collector that hangs holds up
nothing else. Every process is an instance of its own, also among workers; what all of them read off
the one engine is pushed by the first worker alone.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from engine.core.clock import NS_PER_S, Clock
from gateway import metric_names as names
from gateway.instruments import Attributes, Instruments
from gateway.otel.drawing import Ended, draw
from gateway.otel.link import Link
from gateway.otel.log_lines import Line, PushHandler, log_record
from gateway.otel.metric_points import MetricSource
from gateway.otel.protobuf import SCHEMA_URL, resource, scope
from gateway.otel.pusher import Pusher, Queue, Source
from gateway.otel.sampler import Sampler
from gateway.otel.tracing import Explain, FindDoor, Tracing, unix_ns
from gateway.settings import Settings
from gateway.workers.metrics import COMMON
from gateway.workers.place import Place

METRICS, TRACES, LOGS = "metrics", "traces", "logs"
PATHS: Mapping[str, str] = {METRICS: "/v1/metrics", TRACES: "/v1/traces", LOGS: "/v1/logs"}
# A minute without a collector at 60 traced requests a second, and a few MB.
MOST_TRACES, TRACES_AT_ONCE = 4_000, 128
MOST_LINES, LINES_AT_ONCE = 8_000, 512
QUEUE_INTERVAL_S = 1.0  # spans and lines wait no longer than this
CLOSE_LIMIT_S = 3.0


class Push:
    """What one gateway pushes; `start` and `close` it once. Without endpoints it does nothing."""

    def __init__(
        self,
        settings: Settings,
        instruments: Instruments,
        clock: Clock,
        place: Place,
        find_door: FindDoor,
        explain: Explain,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.attributes = resource_attributes(settings, place)
        self._resource = resource(self.attributes)
        self._scope = scope(version())
        self._handler: PushHandler | None = None
        self.pushers: dict[str, Pusher] = {}
        self.tracing = Tracing(clock)
        for signal in settings.pushed_signals:
            if signal == METRICS:
                left_out = frozenset(COMMON) if place.index else frozenset()
                source = MetricSource(
                    instruments, self.attributes, version(), unix_ns, left_out=left_out
                )
                self._add(METRICS, source, settings.otlp_interval_s)
            elif signal == TRACES:
                traces = Queue(self._spans, MOST_TRACES, TRACES_AT_ONCE)
                traces.on_full = self._add(TRACES, traces, QUEUE_INTERVAL_S).wake
                sampler = Sampler(settings.trace_sample, settings.trace_forced_per_s, clock)
                self.tracing = Tracing(clock, sampler, traces.put, find_door, explain)
            else:
                lines = Queue(self._lines, MOST_LINES, LINES_AT_ONCE)
                lines.on_full = self._add(LOGS, lines, QUEUE_INTERVAL_S).wake
                self._handler = PushHandler(lines)
        if self.pushers:
            instruments.observe(names.TELEMETRY_ITEMS, self._items, is_counter=True)

    def _add(self, signal: str, source: Source, interval_s: float) -> Pusher:
        settings = self._settings
        link = Link(
            settings.otlp_url(signal, PATHS[signal]),
            settings.otlp_header_pairs,
            _REJECTED[signal],
            None if settings.otlp_certificate is None else str(settings.otlp_certificate),
        )
        timeout_s = settings.otlp_timeout_s
        pusher = Pusher(signal, link, source, interval_s=interval_s, timeout_s=timeout_s)
        self.pushers[signal] = pusher
        return pusher

    def start(self) -> None:
        """Begin to push."""
        for pusher in self.pushers.values():
            pusher.start()
        if self._handler is not None:
            logging.getLogger().addHandler(self._handler)

    def close(self) -> None:
        """Push what is left, and end; blocks for at most three seconds, whatever a collector does.

        Call it in a thread.
        """
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        until_ns = self._clock.now_ns() + int(CLOSE_LIMIT_S * NS_PER_S)
        for pusher in self.pushers.values():
            pusher.end(until_ns)
        for pusher in self.pushers.values():
            pusher.join()

    def _spans(self, batch: list[Ended]) -> bytes:
        offset_ns = unix_ns() - self._clock.now_ns()
        spans: list[Span] = []
        for ended in batch:
            spans.extend(draw(ended, offset_ns))
        within = ScopeSpans(scope=self._scope, spans=spans, schema_url=SCHEMA_URL)
        of_us = ResourceSpans(resource=self._resource, scope_spans=[within], schema_url=SCHEMA_URL)
        return bytes(ExportTraceServiceRequest(resource_spans=[of_us]).SerializeToString())

    def _lines(self, batch: list[Line]) -> bytes:
        records = list(map(log_record, batch))
        within = ScopeLogs(scope=self._scope, log_records=records, schema_url=SCHEMA_URL)
        of_us = ResourceLogs(resource=self._resource, scope_logs=[within], schema_url=SCHEMA_URL)
        return bytes(ExportLogsServiceRequest(resource_logs=[of_us]).SerializeToString())

    def _items(self) -> Iterator[tuple[float, Attributes]]:
        for signal, pusher in self.pushers.items():
            state = pusher.state
            counts = {"sent": state.sent, "failed": state.failed, "dropped": state.dropped}
            for name, count in counts.items():
                yield count, {names.SIGNAL: signal, names.STATE: name}


def version() -> str:
    """Return Tiergate's version, empty where it is not installed as a package."""
    try:
        return metadata.version("tiergate")
    except metadata.PackageNotFoundError:
        return ""


def resource_attributes(settings: Settings, place: Place) -> dict[str, str]:
    """Return who sends: the operator's own words first, but each process its own instance."""
    said = settings.otlp_resource_pairs
    found = {"service.name": settings.service_name, "service.version": version(), **said}
    instance = said.get("service.instance.id", "")
    if place.count > 1:
        instance = f"{instance}-{place.index}" if instance else ""
        found["tiergate.worker"] = str(place.index)
    return found | {"service.instance.id": instance or str(uuid.uuid4())}


def _rejected_points(answer: bytes) -> int:
    return int(ExportMetricsServiceResponse.FromString(answer).partial_success.rejected_data_points)


def _rejected_spans(answer: bytes) -> int:
    return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)


def _rejected_lines(answer: bytes) -> int:
    return int(ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records)


_REJECTED = {METRICS: _rejected_points, TRACES: _rejected_spans, LOGS: _rejected_lines}
