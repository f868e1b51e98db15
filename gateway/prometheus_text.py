"""Instruments in Prometheus' text form: `a.b` in seconds is `a_b_seconds`, counts end in `_total`.

The names are those that OpenTelemetry's rules for Prometheus give, so whoever scrapes and whoever
is pushed to see the same series. It measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family

from gateway import metric_names as names
from gateway.instruments import Attributes, HistogramReading, Instruments, Kept, Observed

# Units in words; one in braces is an annotation and is dropped.
_WORDS: Mapping[str, str] = {"s": "seconds"}


def prometheus_name(name: str) -> str:
    """Return a metric's name without the endings of its kind."""
    word = _WORDS.get(names.UNITS.get(name, ""), "")
    plain = name.replace(".", "_")
    return f"{plain}_{word}" if word else plain


class PrometheusText:
    """Reads instruments when it is asked."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Return all of them as text."""
        return generate_latest(self._registry)

    def describe(self) -> list[Family]:
        """Return nothing: what there is depends on when one asks (called by the registry)."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every metric that has a series (called by the registry)."""
        for one in list(self._instruments.kept.values()):
            readings = one.histogram.read()
            if readings:
                yield _histogram(one, readings)
        for counted in list(self._instruments.observed.values()):
            if points := list(counted.read()):
                yield _number(counted, points)


def _number(one: Observed, points: list[tuple[float, Attributes]]) -> Family:
    name, text = prometheus_name(one.name), names.DESCRIPTIONS[one.name]
    family: Family
    if one.is_counter:
        family, ending = CounterMetricFamily(name, text), "_total"
    else:
        family, ending = GaugeMetricFamily(name, text), ""
    for value, attributes in points:
        family.add_sample(name + ending, _labels(attributes), value)
    return family


def _histogram(one: Kept, readings: list[HistogramReading]) -> Family:
    name = prometheus_name(one.name)
    family = HistogramMetricFamily(name, names.DESCRIPTIONS[one.name])
    borders = [*map(str, one.histogram.borders), "+Inf"]
    for reading in readings:
        labels, total = _labels(reading.attributes), 0
        for border, count in zip(borders, reading.counts, strict=True):
            total += count
            family.add_sample(f"{name}_bucket", {**labels, "le": border}, total)
        family.add_sample(f"{name}_count", labels, total)
        family.add_sample(f"{name}_sum", labels, reading.total)
    return family


def _labels(attributes: Attributes) -> dict[str, str]:
    return {
        key.replace(".", "_"): value if isinstance(value, str) else str(value).lower()
        for key, value in attributes.items()
    }
