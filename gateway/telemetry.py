"""Turns finished answers and the engine's records into metrics; it decides nothing, never raises.

What is counted lies in instruments of this object's own (gateway/instruments.py), so that several
gateways fit into one process; Prometheus' text form is made of them here, OTLP in gateway/otel.
Of a request that is traced, times are kept as examples of their buckets.

Which requests count for an objective, and which broke it, is the verdict of their stored records
(tenants/slo.py): what is counted here and what a report recomputes cannot differ. A request that
died with its process is counted by the one that hands its record in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.core.clock import NS_PER_S
from engine.core.stats import RequestStats
from gateway import metric_names as names
from gateway.instruments import Example, Histogram, Instruments, Reading, Tally
from gateway.otel.trace_context import CURRENT
from gateway.prometheus_text import PrometheusText
from gateway.request_records import DoorRecord
from gateway.slo_desk import INTERRUPTED
from tenants.slo import Objective, SloRecord, Verdict
from tenants.values import TierRecord

NOT_JUDGED = Verdict()
Measured: TypeAlias = tuple[Histogram, float, tuple[str, ...]]  # a value, and its labels' values


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One HTTP answer of an inference route, at its end. Times in nanoseconds.

    `outcome` is `ok`, `client_disconnected` or an `error_type` of the table of problems;
    `ttft_ns` is None where no token was handed over; `verdict` is that of its stored record.
    Tokens are those that are billed; zero where the engine began nothing.
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
    input_tokens: int = 0
    output_tokens: int = 0


class GapHistogram:
    """The gaps between tokens, by tier; called once a token."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def record(self, tier: str, gap_ns: int, num_tokens: int) -> None:
        """Count one gap, and `num_tokens - 1` further tokens that came with no gap at all."""
        self._histogram.record_many(gap_ns / NS_PER_S, (tier,), num_tokens - 1)


def with_objectives(borders: Sequence[float], objectives_ms: Iterable[int]) -> list[float]:
    """Return `borders` with every objective among them, ascending."""
    return sorted({*borders, *(ms / 1000 for ms in objectives_ms)})


class Telemetry:
    """All instruments of one gateway. `tiers` gives the objectives that become borders."""

    def __init__(self, tiers: Sequence[TierRecord]) -> None:
        made = self.instruments = Instruments()
        self._text = PrometheusText(made)
        ttft = with_objectives(names.TTFT_BORDERS, (tier.ttft_ms for tier in tiers))
        gap = with_objectives(names.GAP_BORDERS, (tier.tbt_ms for tier in tiers))
        asked = (names.OPERATION, names.PROVIDER, names.MODEL, names.TIER)
        ended = (*asked, names.ERROR_TYPE)
        self._duration = made.histogram(names.SERVER_DURATION, names.DURATION_BORDERS, *ended)
        self._ttft = made.histogram(names.SERVER_TTFT, ttft, *asked)
        self._tpot = made.histogram(names.SERVER_TPOT, gap, *asked)
        self._usage = made.histogram(
            names.TOKEN_USAGE, names.TOKEN_BORDERS, *asked, names.TOKEN_TYPE
        )
        self._queue = made.histogram(names.QUEUE_DURATION, ttft, names.TIER, names.OUTCOME)
        self._cancel = made.histogram(names.CANCEL_DURATION, names.CANCEL_BORDERS)
        self._error = made.histogram(
            names.PREDICTOR_ERROR, names.ERROR_BORDERS, names.MODEL, names.OBJECTIVE, names.SIDE
        )
        self.gaps = GapHistogram(made.histogram(names.GAP, gap, names.TIER))
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
        self.know(tiers)
        self.observe(names.TELEMETRY_OVERFLOWS, made.overflows, monotonic=True)

    def _tally(self, name: str, *labels: str) -> Tally:
        return self.instruments.tally(name, *labels)

    def know(self, tiers: Sequence[TierRecord]) -> None:
        """Show both counters of each tier from now on: else its first requests are no increase."""
        for tier in tiers:
            for objective in Objective:
                self._tier_slo.add(0, tier.name, objective.value)
                self._tier_slo_bad.add(0, tier.name, objective.value)

    def observe(self, name: str, read: Reading, *, monotonic: bool = False) -> None:
        """Register a value that is read whenever metrics are; `read` gives (value, attributes)."""
        self.instruments.observe(name, read, is_counter=monotonic)

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
        is_ok = record.outcome == names.OUTCOME_OK
        asked = (record.operation, names.PROVIDER_VALUE, record.model, record.tier)
        ended = (*asked, "" if is_ok else record.outcome)
        self._requests.add(1, record.operation, record.outcome, record.tier)
        duration_s = record.duration_ns / NS_PER_S
        self._duration.record(duration_s, *ended)
        examples: list[Measured] = [(self._duration, duration_s, ended)]
        if is_ok and record.ttft_ns is not None:
            ttft_s = record.ttft_ns / NS_PER_S
            self._ttft.record(ttft_s, *asked)
            examples.append((self._ttft, ttft_s, asked))
        if record.input_tokens:
            self._usage.record(record.input_tokens, *asked, names.TOKENS_INPUT)
            self._usage.record(record.output_tokens, *asked, names.TOKENS_OUTPUT)
        exemplify(examples)
        self._judge(record)

    def foreseen(self, door: DoorRecord) -> None:
        """Record what the door's record tells of an answer that is over.

        How far the forecast of its first token was off, and at which pace its tokens came.
        """
        self._pace(door)
        foretold_ns = door.forecast.get("ttft_ns")
        stats = [choice.stats for choice in door.choices if choice.stats is not None]
        firsts = [one.first_token_ns for one in stats if one.first_token_ns is not None]
        if foretold_ns is None or isinstance(foretold_ns, str) or not firsts:
            return
        late_ns = min(firsts) - door.arrival_ns - foretold_ns
        side = names.SIDE_LATE if late_ns > 0 else names.SIDE_EARLY
        error_s = abs(late_ns) / NS_PER_S
        self._error.record(error_s, door.model, names.OBJECTIVE_TTFT, side)

    def _pace(self, door: DoorRecord) -> None:
        """Choices come beside each other: each by its own time, and the mean over all gaps."""
        watches = [choice.stopwatch for choice in door.choices if choice.stopwatch is not None]
        gaps = sum(watch.gaps for watch in watches)
        if door.outcome != names.OUTCOME_OK or not gaps:
            return
        took_ns = sum(
            watch.last_ns - watch.first_ns
            for watch in watches
            if watch.first_ns is not None and watch.last_ns is not None
        )
        asked = (door.operation, names.PROVIDER_VALUE, door.model, door.tier_served)
        tpot_s = took_ns / gaps / NS_PER_S
        self._tpot.record(tpot_s, *asked)
        exemplify([(self._tpot, tpot_s, asked)])

    def written(self, record: SloRecord) -> None:
        """The ledger has a new record: of a request that died with its process it counts here.

        All others were counted when they ended, by whoever served them.
        """
        if record.reason == INTERRUPTED:
            self._judge(record)

    def _judge(self, record: AnswerRecord | SloRecord) -> None:
        for objective in Objective:
            is_kept = record.verdict.of(objective)
            if is_kept is not None:
                self._objective(record, objective.value, not is_kept)
        if record.verdict.tbt_met is not None:
            self._slo_gaps.add(record.gaps, record.tier, record.tenant_id)
            self._slo_gaps_bad.add(record.late_gaps, record.tier, record.tenant_id)

    def _objective(self, record: AnswerRecord | SloRecord, objective: str, violated: bool) -> None:
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
            self._queue.record(queued_ns / NS_PER_S, tier, outcome)
            self._tokens.add(stats.num_prompt_tokens, tier, names.TOKENS_INPUT)
            self._tokens.add(stats.num_cached_tokens, tier, names.TOKENS_CACHED)
        self._tokens.add(stats.num_output_tokens, tier, names.TOKENS_OUTPUT)

    def expose(self) -> bytes:
        """Return everything in Prometheus' text form; takes milliseconds: call it in a thread."""
        return self._text.render()


def exemplify(measured: Iterable[Measured]) -> None:
    """Keep what was measured of a traced request as examples."""
    trace = CURRENT.get()
    if trace is None or not trace.is_sampled:
        return
    for histogram, value, key in measured:
        at_ns = trace.started_unix_ns + int(value * NS_PER_S)
        histogram.exemplify(Example(value, at_ns, trace.trace_id, trace.span_id), *key)
