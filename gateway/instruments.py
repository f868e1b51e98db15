"""What is counted, in plain dictionaries and arrays; who reads it, and in which form, it knows not.

A request is measured a dozen times and a token once, on the event loop, so a measurement may cost a
microsecond: the OpenTelemetry SDK takes ten, for each of its readers. Every instrument holds a
bounded number of series. What comes after that is counted in one more, `otel.metric.overflow`, as
the SDKs do it, so totals stay right; and that it happened is counted too.

One thread writes, several read: each reading takes its copy in one step of the interpreter, and a
series appears in one step, whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gateway import metric_names as names

Attributes: TypeAlias = Mapping[str, str | bool]
Key: TypeAlias = tuple[str, ...]
Reading: TypeAlias = Callable[[], Iterable[tuple[float, Attributes]]]

# Of one instrument. Four objectives for each tenant and tier: 2,500 tenants of one tier each.
MAX_SERIES = 10_000
MAX_HISTOGRAM_SERIES = 1_000
_OVERFLOW: Key = ("\0overflow",)
_OVERFLOWED: Attributes = {names.OVERFLOW: True}


class Series:
    """The label values seen of one instrument, up to a bound; `folded` counts what was beyond."""

    def __init__(self, labels: Key, most: int) -> None:
        self.labels = labels
        self.most = most
        self.folded = 0

    def key(self, values: Key, known: Mapping[tuple[str, ...], object]) -> tuple[str, ...]:
        """Return where a measurement belongs."""
        if values in known or len(known) < self.most:
            return values
        self.folded += 1
        return _OVERFLOW

    def attributes(self, key: Key) -> Attributes:
        """Return a series' attributes; a label without a value is left out."""
        if key is _OVERFLOW:
            return _OVERFLOWED
        return {label: value for label, value in zip(self.labels, key, strict=True) if value}


class Tally:
    """A counter by labels that costs a dictionary access."""

    def __init__(self, *labels: str, most: int = MAX_SERIES) -> None:
        self.series = Series(labels, most)
        self._counts: dict[Key, int] = {}

    def add(self, amount: int, *values: str) -> None:
        """Add to the count of these label values; adding zero makes the series exist."""
        counts = self._counts
        if values not in counts:
            values = self.series.key(values, counts)
        counts[values] = counts.get(values, 0) + amount

    def read(self) -> list[tuple[float, Attributes]]:
        """Return every count with its attributes."""
        return [(n, self.series.attributes(key)) for key, n in list(self._counts.items())]


@dataclass(frozen=True, slots=True)
class Example:
    """One measurement of a traced request: an exemplar. Ids are hexadecimal digits."""

    value: float
    unix_ns: int
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class HistogramReading:
    """One series: counts by bucket (the last is beyond all borders), their sum, and exemplars."""

    attributes: Attributes
    counts: tuple[int, ...]
    total: float
    examples: tuple[Example, ...]

    @property
    def count(self) -> int:
        """Measurements."""
        return sum(self.counts)


class _Cell:
    """What one series of a histogram has counted."""

    __slots__ = ("counts", "total")

    def __init__(self, num_buckets: int) -> None:
        self.counts = [0] * num_buckets
        self.total = 0.0


class Histogram:
    """Counts by bucket and labels. A value on a border is below it, as OTLP and Prometheus say."""

    def __init__(
        self, borders: Sequence[float], *labels: str, most: int = MAX_HISTOGRAM_SERIES
    ) -> None:
        self.borders = tuple(map(float, borders))
        self.series = Series(labels, most)
        self._cells: dict[Key, _Cell] = {}
        self._examples: dict[Key, dict[int, Example]] = {}

    def record(self, value: float, *values: str) -> None:
        """Count one measurement under these label values."""
        self.record_many(value, values, 0)

    def record_many(self, value: float, values: Key, num_zeros: int) -> None:
        """Count one measurement, and `num_zeros` of zero beside it."""
        cell = self._cells.get(values)
        if cell is None:
            values = self.series.key(values, self._cells)
            cell = self._cells.get(values)
            if cell is None:
                cell = self._cells[values] = _Cell(len(self.borders) + 1)
        cell.counts[bisect_left(self.borders, value)] += 1
        if num_zeros:
            cell.counts[0] += num_zeros
        cell.total += value

    def exemplify(self, example: Example, *values: str) -> None:
        """Keep a measurement that was counted as its bucket's example, until somebody takes it."""
        if values in self._cells:
            bucket = bisect_left(self.borders, example.value)
            self._examples.setdefault(values, {})[bucket] = example

    def read(self, *, takes_examples: bool = False) -> list[HistogramReading]:
        """Return every series; examples are given once, to whoever takes them."""
        readings = []
        for key, cell in list(self._cells.items()):
            examples = self._examples.pop(key, None) if takes_examples else None
            readings.append(
                HistogramReading(
                    self.series.attributes(key),
                    tuple(cell.counts),
                    cell.total,
                    tuple((examples or {}).values()),
                )
            )
        return readings


@dataclass(frozen=True, slots=True)
class Observed:
    """A value or a count that is read whenever somebody asks."""

    name: str
    read: Reading
    is_counter: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A histogram and its name."""

    name: str
    histogram: Histogram


class Instruments:
    """All instruments of one gateway by name, in the order in which they were made."""

    def __init__(self) -> None:
        self.observed: dict[str, Observed] = {}
        self.kept: dict[str, Kept] = {}
        self._series: dict[str, Series] = {}

    def tally(self, name: str, *labels: str) -> Tally:
        """Make a counter."""
        tally = Tally(*labels)
        self._series[name] = tally.series
        self.observe(name, tally.read, is_counter=True)
        return tally

    def histogram(self, name: str, borders: Sequence[float], *labels: str) -> Histogram:
        """Make a histogram."""
        histogram = Histogram(borders, *labels)
        self._series[name] = histogram.series
        self.kept[name] = Kept(name, histogram)
        return histogram

    def observe(self, name: str, read: Reading, *, is_counter: bool = False) -> None:
        """Register a value that is read when somebody asks."""
        self.observed[name] = Observed(name, read, is_counter)

    def labels_of(self, name: str) -> Key:
        """Return the labels of a counter or histogram made here; none of what is only observed."""
        return self._series[name].labels if name in self._series else ()

    def overflows(self) -> list[tuple[float, Attributes]]:
        """Return how many measurements went to the one series of a full instrument."""
        return [
            (series.folded, {names.METRIC: name})
            for name, series in self._series.items()
            if series.folded
        ]
