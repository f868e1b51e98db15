"""Turns finished answers and the engine's records into metrics; it decides nothing, never raises.

Metrics go through the OpenTelemetry SDK and are pulled in Prometheus' form from a registry of this
object's own, so that several gateways fit into one process. The SDK takes about 10 microseconds per
measurement, so it gets few: a handful of times an answer. Counts are kept in plain dictionaries
(`Tally`) that it reads when asked; the gaps between tokens, thousands a second, in plain arrays.

Which requests count for an objective, and which broke it, is the verdict of their stored records
(tenants/slo.py): what is counted here and what a report recomputes cannot differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as PrometheusMetric

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.stats import RequestStats
from gateway import metric_names as names
from tenants.slo import Objective, Verdict
from tenants.values import TierRecord

# Beyond it the SDK folds series into one without labels; three objectives a tenant are counted.
MAX_SERIES = 10_000
NOT_JUDGED = Verdict()

Reading = Callable[[], Iterable[tuple[float, dict[str, str]]]]


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One HTTP answer of an inference route, at its end. Times in nanoseconds.

    `outcome` is `ok`, `client_disconnected` or an `error_type` of the table of problems;
    `ttft_ns` is None where no token was handed over; `verdict` is that of its stored record.
    """

    operation: str
    model: str
    tier: str
    tenant_id: str
    outcome: str
    duration_ns: int
    ttft_ns: int | None = None
    gaps: int = 0
    late_gaps: int = 0
    verdict: Verdict = NOT_JUDGED


class GapHistogram:
    """The gaps between tokens, by tier, in arrays that cost a fraction of a microsecond a token.

    It is a collector of Prometheus' client, registered beside the SDK's reader.
    """

    def __init__(self, borders: Sequence[float]) -> None:
        self._borders = tuple(borders)
        self._borders_ns = [int(border * NS_PER_S) for border in borders]
        self._counts: dict[str, list[int]] = {}
        self._sums_ns: dict[str, int] = {}

    def record(self, tier: str, gap_ns: int, num_tokens: int) -> None:
        """Count one gap, and `num_tokens - 1` further tokens that came with no gap at all."""
        counts = self._counts.get(tier)
        if counts is None:
            counts = self._counts[tier] = [0] * (len(self._borders) + 1)
            self._sums_ns[tier] = 0
        counts[bisect_left(self._borders_ns, gap_ns)] += 1
        counts[0] += num_tokens - 1
        self._sums_ns[tier] += gap_ns

    def collect(self) -> Iterator[PrometheusMetric]:
        """Yield the histogram, for the registry."""
        family = HistogramMetricFamily(
            names.GAP.replace(".", "_"),
            names.DESCRIPTIONS[names.GAP],
            labels=[names.TIER.replace(".", "_")],
            unit="seconds",
        )
        for tier, counts in list(self._counts.items()):
            total, buckets = 0, []
            for border, count in zip([*map(str, self._borders), "+Inf"], counts, strict=True):
                total += count
                buckets.append((border, total))
            family.add_metric([tier], buckets, self._sums_ns[tier] / NS_PER_S)
        yield family


class VllmGauges:
    """The three gauges of the model-server protocol, under the names that vLLM gave them."""

    def __init__(self, read: Callable[[], tuple[float, float, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[PrometheusMetric]:
        """Yield waiting, running and the share of the KV cache in use, for the registry."""
        waiting, running, used = self._read()
        yield GaugeMetricFamily(names.VLLM_WAITING, "Requests that wait.", value=waiting)
        yield GaugeMetricFamily(names.VLLM_RUNNING, "Requests that run.", value=running)
        yield GaugeMetricFamily(names.VLLM_KV_USE, "KV cache in use, 0 to 1.", value=used)


class Tally:
    """A counter by labels that costs a dictionary access; the SDK reads it as an observable one."""

    def __init__(self, *labels: str) -> None:
        self._labels = labels
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, amount: int, *values: str) -> None:
        """Add to the count of these label values; adding zero makes the series exist."""
        self._counts[values] = self._counts.get(values, 0) + amount

    def read(self) -> list[tuple[float, dict[str, str]]]:
        """Return every count with its attributes."""
        # One step of the interpreter, so that another thread may count meanwhile.
        counts = list(self._counts.items())
        return [(n, dict(zip(self._labels, values, strict=True))) for values, n in counts]


def with_objectives(borders: Sequence[float], objectives_ms: Iterable[int]) -> list[float]:
    """Return `borders` with every objective among them, ascending."""
    return sorted({*borders, *(ms / 1000 for ms in objectives_ms)})


class Telemetry:
    """All instruments of one gateway. `tiers` gives the objectives that become borders."""

    def __init__(self, tiers: Sequence[TierRecord]) -> None:
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(
            registry=self._registry,
            scope_info_enabled=False,
            disable_target_info=True,
            cardinality_limits={ObservableCounter: MAX_SERIES},
        )
        self._provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
        meter = self._meter = self._provider.get_meter("tiergate")
        ttft = with_objectives(names.TTFT_BORDERS, (tier.ttft_ms for tier in tiers))
        self.gaps = GapHistogram(with_objectives(names.GAP_BORDERS, (t.tbt_ms for t in tiers)))
        self._registry.register(self.gaps)
        self._duration = _seconds(meter, names.SERVER_DURATION, names.DURATION_BORDERS)
        self._ttft = _seconds(meter, names.SERVER_TTFT, ttft)
        self._tpot = _seconds(meter, names.SERVER_TPOT, names.GAP_BORDERS)
        self._queue = _seconds(meter, names.QUEUE_DURATION, ttft)
        self._cancel = _seconds(meter, names.CANCEL_DURATION, names.CANCEL_BORDERS)
        self._requests = self._tally(names.REQUESTS, names.OPERATION, names.OUTCOME, names.TIER)
        self._tokens = self._tally(names.TOKENS, names.TIER, names.TOKEN_TYPE)
        self._admissions = self._tally(names.ADMISSION_DECISIONS, names.TIER, names.OUTCOME)
        by_tenant = (names.TIER, names.OBJECTIVE, names.TENANT)
        self._slo = self._tally(names.SLO_REQUESTS, *by_tenant)
        self._slo_bad = self._tally(names.SLO_VIOLATIONS, *by_tenant)
        self._tier_slo = self._tally(names.TIER_SLO_REQUESTS, *by_tenant[:2])
        self._tier_slo_bad = self._tally(names.TIER_SLO_VIOLATIONS, *by_tenant[:2])
        self._slo_gaps = self._tally(names.SLO_GAPS, names.TIER, names.TENANT)
        self._slo_gaps_bad = self._tally(names.SLO_GAP_VIOLATIONS, names.TIER, names.TENANT)
        self.observe(names.SLO_THRESHOLD, lambda: _thresholds(tiers), unit="s")

    def _tally(self, name: str, *labels: str) -> Tally:
        tally = Tally(*labels)
        self.observe(name, tally.read, monotonic=True)
        return tally

    def observe(self, name: str, read: Reading, *, unit: str = "", monotonic: bool = False) -> None:
        """Register a value that is read whenever metrics are; `read` gives (value, attributes)."""

        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, attributes) for value, attributes in read()]

        text = names.DESCRIPTIONS[name]
        if monotonic:
            self._meter.create_observable_counter(name, [callback], unit, text)
        else:
            self._meter.create_observable_gauge(name, [callback], unit, text)

    def observe_as_vllm(self, read: Callable[[], tuple[float, float, float]]) -> None:
        """Register waiting, running and KV use under vLLM's names."""
        self._registry.register(VllmGauges(read))

    def stranger(self, operation: str, outcome: str) -> None:
        """Count a request whose sender is not known."""
        self._requests.add(1, operation, outcome, names.NO_TIER)

    def admission(self, tier: str, outcome: str) -> None:
        """Count one decision of the door: `admitted`, or the reason of a refusal."""
        self._admissions.add(1, tier, outcome)

    def cancelled(self, duration_ns: int) -> None:
        """Record how long a seat stayed taken after its client had left."""
        self._cancel.record(duration_ns / NS_PER_S)

    def answered(self, record: AnswerRecord) -> None:
        """Record one finished HTTP answer, refused ones too."""
        attributes = {
            names.OPERATION: record.operation,
            names.PROVIDER: names.PROVIDER_VALUE,
            names.MODEL: record.model,
            names.TIER: record.tier,
        }
        is_ok = record.outcome == names.OUTCOME_OK
        failed = {} if is_ok else {names.ERROR_TYPE: record.outcome}
        self._requests.add(1, record.operation, record.outcome, record.tier)
        self._duration.record(record.duration_ns / NS_PER_S, {**attributes, **failed})
        if is_ok and record.ttft_ns is not None:
            self._ttft.record(record.ttft_ns / NS_PER_S, attributes)
            if record.gaps:
                per_token = (record.duration_ns - record.ttft_ns) / record.gaps
                self._tpot.record(per_token / NS_PER_S, attributes)
        self._judge(record)

    def _judge(self, record: AnswerRecord) -> None:
        for objective in Objective:
            is_kept = record.verdict.of(objective)
            if is_kept is not None:
                self._objective(record, objective.value, not is_kept)
        if record.verdict.tbt_met is not None:
            self._slo_gaps.add(record.gaps, record.tier, record.tenant_id)
            self._slo_gaps_bad.add(record.late_gaps, record.tier, record.tenant_id)

    def _objective(self, record: AnswerRecord, objective: str, violated: bool) -> None:
        # Zero is added too: a tenant with only violations, or none, must still have both series.
        self._slo.add(1, record.tier, objective, record.tenant_id)
        self._slo_bad.add(int(violated), record.tier, objective, record.tenant_id)
        self._tier_slo.add(1, record.tier, objective)
        self._tier_slo_bad.add(int(violated), record.tier, objective)

    def on_finish(self, stats: RequestStats) -> None:
        """The engine's record of one request: tokens and queueing."""
        tier = stats.tier
        if stats.first_scheduled_ns is not None:
            queued_ns = max(stats.first_scheduled_ns - stats.arrival_ns, 0)
            outcome = stats.finish_reason.value
            attributes = {names.TIER: tier, names.OUTCOME: outcome}
            self._queue.record(queued_ns / NS_PER_S, attributes)
            self._tokens.add(stats.num_prompt_tokens, tier, names.TOKENS_INPUT)
            self._tokens.add(stats.num_cached_tokens, tier, names.TOKENS_CACHED)
        self._tokens.add(stats.num_output_tokens, tier, names.TOKENS_OUTPUT)

    def expose(self) -> bytes:
        """Return everything in Prometheus' text form; takes milliseconds: call it in a thread."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Flush and end; blocks for at most three seconds."""
        self._provider.shutdown(timeout_millis=3000)


def _seconds(meter: Meter, name: str, borders: Sequence[float]) -> Histogram:
    return meter.create_histogram(
        name, "s", names.DESCRIPTIONS[name], explicit_bucket_boundaries_advisory=list(borders)
    )


def _thresholds(tiers: Sequence[TierRecord]) -> list[tuple[float, dict[str, str]]]:
    return [
        (value_ms * NS_PER_MS / NS_PER_S, {names.TIER: tier.name, names.OBJECTIVE: objective})
        for tier in tiers
        for objective, value_ms in (
            (names.OBJECTIVE_TTFT, tier.ttft_ms),
            (names.OBJECTIVE_TBT, tier.tbt_ms),
        )
    ]
