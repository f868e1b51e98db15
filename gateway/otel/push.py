"""Wires what is pushed over OTLP: which signals, to where, as whom; off unless an endpoint is set.

The OpenTelemetry SDK does the work in threads of its own, one for each signal, so a collector that
hangs holds up nothing else. Every process is an instance of its own, also among workers; what all
of them read off the one engine is pushed by the first worker alone.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk._logs import ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope as Scope

from engine.core.clock import NS_PER_S, Clock
from gateway import metric_names as names
from gateway.instruments import MAX_SERIES, Attributes, Instruments, Observed
from gateway.otel.drawing import Ended
from gateway.otel.exporters import (
    Counts,
    LogExporter,
    MeasureExporter,
    RequestSpan,
    Sender,
    TraceExporter,
    line_record,
)
from gateway.otel.log_lines import Line, PushHandler
from gateway.otel.sampler import Sampler
from gateway.otel.tracing import Explain, FindDoor, Tracing, unix_ns
from gateway.settings import Settings
from gateway.workers.metrics import COMMON
from gateway.workers.place import Place

METRICS, TRACES, LOGS = "metrics", "traces", "logs"
PATHS: Mapping[str, str] = {METRICS: "/v1/metrics", TRACES: "/v1/traces", LOGS: "/v1/logs"}
SCOPE = "tiergate"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"  # what names were checked against
# A minute without a collector at 60 traced requests a second, and a few MB.
MOST_TRACES, TRACES_AT_ONCE = 4_000, 128
MOST_LINES, LINES_AT_ONCE = 8_000, 512
QUEUE_INTERVAL_MS = 1_000  # spans and lines wait no longer than this
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
        self._instruments = instruments
        self._clock = clock
        self._left_out = frozenset(COMMON) if place.index else frozenset()
        self._place = place
        self._handler: PushHandler | None = None
        self._ends: list[Callable[[], object]] = []
        self._traces: BatchSpanProcessor | None = None
        self._logs: BatchLogRecordProcessor | None = None
        self._resource: Resource | None = None
        self._scope = Scope(SCOPE, version(), SCHEMA_URL)
        most = {METRICS: 0, TRACES: MOST_TRACES, LOGS: MOST_LINES}
        self.counts = {signal: Counts(most[signal]) for signal in settings.pushed_signals}
        self.tracing = Tracing(clock)
        if TRACES in self.counts:
            sampler = Sampler(settings.trace_sample, settings.trace_forced_per_s, clock)
            self.tracing = Tracing(clock, sampler, self._take_request, find_door, explain)
        if self.counts:
            instruments.observe(names.TELEMETRY_ITEMS, self._items, is_counter=True)

    def start(self) -> None:
        """Begin to push; what there is to measure is known by now."""
        if not self.counts:
            return
        # A second and 20 MB, which a gateway that pushes nothing need not pay.
        from gateway.otel.otlp import log_exporter, metric_exporter, span_exporter

        attributes = resource_attributes(self._settings, self._place)
        resource = self._resource = Sender(Resource.create(attributes, SCHEMA_URL))
        if METRICS in self.counts:
            self._measure(metric_exporter(self._settings, PATHS[METRICS]), resource)
        if TRACES in self.counts:
            inner = span_exporter(self._settings, PATHS[TRACES])
            exporter = TraceExporter(inner, self.counts[TRACES], self._offset_ns, self._scope)
            self._traces = BatchSpanProcessor(
                exporter,
                max_queue_size=MOST_TRACES + TRACES_AT_ONCE,
                schedule_delay_millis=QUEUE_INTERVAL_MS,
                max_export_batch_size=TRACES_AT_ONCE,
            )
            self._ends.append(self._traces.shutdown)
        if LOGS in self.counts:
            self._logs = BatchLogRecordProcessor(
                LogExporter(log_exporter(self._settings, PATHS[LOGS]), self.counts[LOGS]),
                max_queue_size=MOST_LINES + LINES_AT_ONCE,
                schedule_delay_millis=QUEUE_INTERVAL_MS,
                max_export_batch_size=LINES_AT_ONCE,
            )
            self._ends.append(self._logs.shutdown)
            self._handler = PushHandler(self._take_line)
            logging.getLogger().addHandler(self._handler)

    def _measure(self, inner: Any, resource: Resource) -> None:
        exporter = MeasureExporter(inner, self.counts[METRICS], self._instruments, unix_ns)
        reader = PeriodicExportingMetricReader(
            exporter,
            export_interval_millis=self._settings.otlp_interval_s * 1000,
            export_timeout_millis=self._settings.otlp_timeout_s * 1000,
            # Instruments bound themselves; the SDK need not do it again.
            cardinality_limits={
                ObservableCounter: MAX_SERIES + 2,
                ObservableGauge: MAX_SERIES + 2,
            },
        )
        provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = provider.get_meter(SCOPE, version(), SCHEMA_URL)
        for one in list(self._instruments.observed.values()):
            # Names with a colon are not OpenTelemetry's to have: vLLM's, for scrapers.
            if one.name not in self._left_out and ":" not in one.name:
                _observe(meter, one)
        self._ends.append(lambda: provider.shutdown(timeout_millis=int(CLOSE_LIMIT_S * 1000)))

    def _take_request(self, ended: Ended) -> None:
        if self._traces is not None and self.counts[TRACES].offer():
            assert self._resource is not None
            self._traces.on_end(RequestSpan(ended, self._resource))

    def _take_line(self, line: Line) -> None:
        if self._logs is not None and self.counts[LOGS].offer():
            record = ReadWriteLogRecord(line_record(line), self._resource, self._scope)
            self._logs.on_emit(record)

    def _offset_ns(self) -> int:
        return unix_ns() - self._clock.now_ns()

    def close(self) -> None:
        """Push what is left, and end; blocks for at most three seconds, whatever a collector does.

        Call it in a thread. The SDK's own time limits are not kept while a try hangs, so each end
        has a thread that can be left alone.
        """
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        until_ns = self._clock.now_ns() + int(CLOSE_LIMIT_S * NS_PER_S)
        ending = [threading.Thread(target=end, daemon=True) for end in self._ends]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(max(until_ns - self._clock.now_ns(), 0) / NS_PER_S)

    def _items(self) -> Iterator[tuple[float, Attributes]]:
        for signal, counts in self.counts.items():
            found = {"sent": counts.sent, "failed": counts.failed, "dropped": counts.dropped}
            for name, count in found.items():
                yield count, {names.SIGNAL: signal, names.STATE: name}


def _observe(meter: Meter, one: Observed) -> None:
    def callback(_options: CallbackOptions) -> Iterable[Observation]:
        # A bool is an int too, but not to the protocol.
        return [Observation(+value, attributes) for value, attributes in one.read()]

    unit = names.UNITS.get(one.name, "")
    make = meter.create_observable_counter if one.is_counter else meter.create_observable_gauge
    make(one.name, [callback], unit, names.DESCRIPTIONS[one.name])


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
