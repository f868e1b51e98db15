"""Stands between the OpenTelemetry SDK's batches and its exporters: makes and counts what goes out.

The SDK queues, batches, retries and speaks OTLP. What it queues here are requests and log lines as
they ended; spans and log records are made of them in its thread, off every request's path.
Histograms lie in our own arrays (gateway/instruments.py) and join the SDK's metrics on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope as Scope
from opentelemetry.trace import INVALID_SPAN_ID, INVALID_TRACE_ID, SpanContext

from gateway import metric_names as names
from gateway.instruments import Example, Instruments, Kept
from gateway.otel.drawing import SAMPLED, Ended, Pen, draw
from gateway.otel.log_lines import Line, log_record


class Counts:
    """What became of one signal's items: a queue's bound is kept here, so nothing is lost unseen.

    `offer` is called from one thread, `handled` from the SDK's.
    """

    def __init__(self, most_waiting: int = 0) -> None:
        self._most_waiting = most_waiting
        self._taken = 0
        self._handled = 0
        self.sent = self.failed = self.dropped = 0

    def offer(self) -> bool:
        """True where there is room for one more."""
        if self._taken - self._handled >= self._most_waiting:
            self.dropped += 1
            return False
        self._taken += 1
        return True

    def handled(self, count: int, *, is_sent: bool) -> None:
        """So many were sent, or given up after the SDK's retries."""
        self._handled += count
        if is_sent:
            self.sent += count
        else:
            self.failed += count


class Sender(Resource):
    """The SDK's resource, whose hash is worked out once.

    Its exporters group by it: for each span they would write all attributes as JSON to hash them.
    """

    def __init__(self, like: Resource) -> None:
        super().__init__(like.attributes, like.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


_ANY = SpanContext(INVALID_TRACE_ID, INVALID_SPAN_ID, False, SAMPLED)


class RequestSpan(ReadableSpan):
    """A request on its way through the SDK's queue, where its spans are yet to be drawn."""

    def __init__(self, ended: Ended, resource: Resource) -> None:
        super().__init__("", _ANY, resource=resource)
        self.ended = ended


class TraceExporter(SpanExporter):
    """Draws requests that have ended, and hands their spans to `inner`."""

    def __init__(
        self, inner: SpanExporter, counts: Counts, offset_ns: Callable[[], int], scope: Scope
    ) -> None:
        self._inner = inner
        self._counts = counts
        self._offset_ns = offset_ns
        self._scope = scope

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch of requests (called by the SDK, in its thread)."""
        result = SpanExportResult.FAILURE
        try:
            offset_ns = self._offset_ns()
            drawn: list[ReadableSpan] = []
            for one in spans:
                assert isinstance(one, RequestSpan)
                pen = Pen(one.ended, offset_ns, one.resource, self._scope)
                drawn.extend(draw(pen, one.ended))
            result = self._inner.export(drawn)
        finally:  # also of what cannot be drawn; the SDK logs it
            is_sent = result is SpanExportResult.SUCCESS
            self._counts.handled(len(spans), is_sent=is_sent)
        return result

    def shutdown(self) -> None:
        """End (called by the SDK)."""
        self._inner.shutdown()


class LogExporter(LogRecordExporter):
    """Makes log records of lines, and hands them to `inner`."""

    def __init__(self, inner: LogRecordExporter, counts: Counts) -> None:
        self._inner = inner
        self._counts = counts

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Send a batch of lines (called by the SDK, in its thread)."""
        result = LogRecordExportResult.FAILURE
        try:
            made = [
                ReadableLogRecord(log_record(line_of(one)), one.resource, one.instrumentation_scope)
                for one in batch
            ]
            result = self._inner.export(made)
        finally:
            is_sent = result is LogRecordExportResult.SUCCESS
            self._counts.handled(len(batch), is_sent=is_sent)
        return result

    def shutdown(self) -> None:
        """End (called by the SDK)."""
        self._inner.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait for what is on its way: nothing is, between two batches (called by the SDK)."""
        return True


def line_record(line: Line) -> LogRecord:
    """Return a line in the form that the SDK's queue takes."""
    record = LogRecord()
    record.body = line
    return record


def line_of(queued: ReadableLogRecord) -> Line:
    """Return the line again."""
    line: Any = queued.log_record.body
    assert isinstance(line, Line)
    return line


class MeasureExporter(MetricExporter):
    """Adds our histograms to what the SDK has read, and hands all to `inner`."""

    def __init__(
        self,
        inner: MetricExporter,
        counts: Counts,
        instruments: Instruments,
        now_unix_ns: Callable[[], int],
    ) -> None:
        super().__init__()
        self._inner = inner
        self._counts = counts
        self._instruments = instruments
        self._now_unix_ns = now_unix_ns
        self._start_ns = now_unix_ns()

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Send everything (called by the SDK, in its thread)."""
        whole = self._with_histograms(metrics_data)
        count = sum(map(num_points, whole))
        result = self._inner.export(MetricsData(whole), timeout_millis, **kwargs)
        self._counts.handled(count, is_sent=result is MetricExportResult.SUCCESS)
        return result

    def _with_histograms(self, read: MetricsData) -> list[ResourceMetrics]:
        now_ns = self._now_unix_ns()
        kept = [self._metric(one, now_ns) for one in list(self._instruments.kept.values())]
        (of_us,) = read.resource_metrics
        (within,) = of_us.scope_metrics
        metrics = [*within.metrics, *(metric for metric in kept if metric.data.data_points)]
        scope = ScopeMetrics(within.scope, metrics, within.schema_url)
        return [ResourceMetrics(of_us.resource, [scope], of_us.schema_url)]

    def _metric(self, one: Kept, now_ns: int) -> Metric:
        points = [
            HistogramDataPoint(
                attributes=reading.attributes,
                start_time_unix_nano=self._start_ns,
                time_unix_nano=now_ns,
                count=reading.count,
                sum=reading.total,
                bucket_counts=reading.counts,
                explicit_bounds=one.histogram.borders,
                min=None,  # type: ignore[arg-type]  # cumulative: nobody could use them
                max=None,  # type: ignore[arg-type]
                exemplars=list(map(_exemplar, reading.examples)),
            )
            for reading in one.histogram.read(takes_examples=True)
        ]
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        unit = names.UNITS.get(one.name, "")
        return Metric(one.name, names.DESCRIPTIONS[one.name], unit, data)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Wait for what is on its way (called by the SDK)."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End (called by the SDK)."""
        self._inner.shutdown(timeout_millis, **kwargs)


def num_points(of: ResourceMetrics) -> int:
    """Return how many points there are."""
    metrics: Iterable[Metric] = (metric for scope in of.scope_metrics for metric in scope.metrics)
    return sum(len(metric.data.data_points) for metric in metrics)


def _exemplar(example: Example) -> Exemplar:
    return Exemplar(
        filtered_attributes={},
        value=example.value,
        time_unix_nano=example.unix_ns,
        span_id=int(example.span_id, 16),
        trace_id=int(example.trace_id, 16),
    )
