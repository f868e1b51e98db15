"""Instruments as OTLP metrics, cumulative since this process began; it measures nothing itself.

Names that are not OpenTelemetry's to have (`vllm:...`) are for scrapers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Exemplar,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from gateway import metric_names as names
from gateway.instruments import Example, Instruments, Kept, Observed
from gateway.otel.protobuf import SCHEMA_URL, key_values, resource, scope

_CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
BATCH = 2_000  # points in one message


class MetricSource:
    """Makes messages of all instruments but those in `left_out`; each round yields all of them."""

    def __init__(
        self,
        instruments: Instruments,
        attributes: dict[str, str],
        version: str,
        now_unix_ns: Callable[[], int],
        left_out: Set[str] = frozenset(),
    ) -> None:
        self._instruments = instruments
        self._resource = resource(attributes)
        self._scope = scope(version)
        self._now_unix_ns = now_unix_ns
        self._start_ns = now_unix_ns()
        self._left_out = left_out

    def batches(self) -> Iterator[tuple[bytes, int]]:
        """Yield every metric once, with the number of points."""
        held: list[Metric] = []
        num_points = 0
        for metric, count in self._metrics():
            if held and num_points + count > BATCH:
                yield self._message(held), num_points
                held, num_points = [], 0
            held.append(metric)
            num_points += count
        if held:
            yield self._message(held), num_points

    def _message(self, metrics: list[Metric]) -> bytes:
        within = ScopeMetrics(scope=self._scope, metrics=metrics, schema_url=SCHEMA_URL)
        of_us = ResourceMetrics(
            resource=self._resource, scope_metrics=[within], schema_url=SCHEMA_URL
        )
        return bytes(ExportMetricsServiceRequest(resource_metrics=[of_us]).SerializeToString())

    def _metrics(self) -> Iterator[tuple[Metric, int]]:
        now_ns = self._now_unix_ns()
        made = [
            *(self._observed(one, now_ns) for one in list(self._instruments.observed.values())),
            *(self._kept(one, now_ns) for one in list(self._instruments.kept.values())),
        ]
        yield from ((metric, count) for metric, count in made if count)

    def _observed(self, one: Observed, now_ns: int) -> tuple[Metric, int]:
        metric = _metric(one.name)
        if one.name in self._left_out or ":" in one.name:
            return metric, 0
        points = []
        for value, attributes in one.read():
            point = NumberDataPoint(attributes=key_values(attributes), time_unix_nano=now_ns)
            if one.is_counter:
                point.start_time_unix_nano = self._start_ns
            if isinstance(value, int):
                point.as_int = int(value)  # a bool is an int too, but not to protobuf
            else:
                point.as_double = value
            points.append(point)
        if one.is_counter:
            counted = Sum(
                data_points=points, aggregation_temporality=_CUMULATIVE, is_monotonic=True
            )
            metric.sum.CopyFrom(counted)
        else:
            metric.gauge.CopyFrom(Gauge(data_points=points))
        return metric, len(points)

    def _kept(self, one: Kept, now_ns: int) -> tuple[Metric, int]:
        metric = _metric(one.name)
        readings = one.histogram.read(takes_examples=True)
        points = [
            HistogramDataPoint(
                attributes=key_values(reading.attributes),
                start_time_unix_nano=self._start_ns,
                time_unix_nano=now_ns,
                count=reading.count,
                sum=reading.total,
                bucket_counts=reading.counts,
                explicit_bounds=one.histogram.borders,
                exemplars=list(map(_exemplar, reading.examples)),
            )
            for reading in readings
        ]
        filled = Histogram(data_points=points, aggregation_temporality=_CUMULATIVE)
        metric.histogram.CopyFrom(filled)
        return metric, len(points)


def _metric(name: str) -> Metric:
    return Metric(name=name, description=names.DESCRIPTIONS[name], unit=names.UNITS.get(name, "1"))


def _exemplar(example: Example) -> Exemplar:
    return Exemplar(
        time_unix_nano=example.unix_ns,
        as_double=example.value,
        trace_id=bytes.fromhex(example.trace_id),
        span_id=bytes.fromhex(example.span_id),
    )
