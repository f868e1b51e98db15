"""Draws one request's spans, after its end, from what the door and the engine noted of it.

It runs in a thread, off every request's path, and only for requests that are traced. Times are the
gateway's monotonic clock plus one offset; the engine's are of the same clock. A request that no
engine saw has two spans, one that nobody understood has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope as Scope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from engine.core.clock import NS_PER_S
from engine.core.decision import Decision, DecisionKind, RequestRecord
from engine.core.request import FinishReason
from engine.core.stats import RequestStats
from gateway import metric_names as names
from gateway.otel import span_names as say
from gateway.otel.trace_context import Trace, new_span_id
from gateway.request_records import ChoiceRecord, DoorRecord

Value: TypeAlias = str | bool | int | float | Sequence[str]

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
MOST_CHOICES = 16  # of one answer are drawn
MOST_EVENTS = 64  # of one choice
_FAILED = (FinishReason.FAILED, FinishReason.EXPIRED, FinishReason.REJECTED)
_EVENTS: Mapping[DecisionKind, str] = {
    DecisionKind.PREEMPTED: say.PREEMPTED,
    DecisionKind.FAULT: say.FAULT,
    DecisionKind.HELD: say.HELD,
}


@dataclass(frozen=True, slots=True)
class Ended:
    """A traced request at its end. `fields` are those of its access line, by their JSON names.

    `door` is None where the request was not understood; `engines` are by the ids of choices, and
    only of those of which there is more to tell than their last word.
    """

    trace: Trace
    method: str
    route: str
    scheme: str
    protocol_version: str
    status: int
    arrival_ns: int
    ended_ns: int
    request_id: str
    fields: Mapping[str, object]
    door: DoorRecord | None = None
    engines: Mapping[str, RequestRecord] = field(default_factory=dict)


class Pen:
    """Makes spans of one trace. `offset_ns` leads from the monotonic clock to Unix time."""

    def __init__(self, ended: Ended, offset_ns: int, resource: Resource, scope: Scope) -> None:
        self._trace_id = int(ended.trace.trace_id, 16)
        self._offset_ns = offset_ns
        self._resource = resource
        self._scope = scope

    def context(self, span_id: str, *, is_remote: bool = False) -> SpanContext:
        """Return the context of a span of this trace."""
        return SpanContext(self._trace_id, int(span_id, 16), is_remote, SAMPLED)

    def span(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        parent: SpanContext | None,
        attributes: Mapping[str, Value | None],
        *,
        span_id: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
        events: Sequence[Event] = (),
        failed: bool = False,
    ) -> ReadableSpan:
        """Return a span; one that would end before it begins has no length."""
        return ReadableSpan(
            name=name,
            context=self.context(span_id or new_span_id()),
            parent=parent,
            resource=self._resource,
            attributes=known(attributes),
            events=events,
            kind=kind,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=start_ns + self._offset_ns,
            end_time=max(end_ns, start_ns) + self._offset_ns,
            instrumentation_scope=self._scope,
        )

    def event(self, name: str, at_ns: int, attributes: Mapping[str, Value | None]) -> Event:
        """Return an event."""
        return Event(name, known(attributes), at_ns + self._offset_ns)


def known(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return attributes that have a value."""
    return {key: value for key, value in attributes.items() if value is not None}


def draw(pen: Pen, ended: Ended) -> Iterator[ReadableSpan]:
    """Yield the request's spans, the server's first."""
    door, server = ended.door, pen.context(ended.trace.span_id)
    yield _server(pen, ended)
    if door is None:
        return
    yield _admit(pen, server, door)
    if door.admitted_ns is None:
        return
    for choice in door.choices[:MOST_CHOICES]:
        yield from _choice(pen, server, door, choice, ended.engines.get(choice.id))


def _server(pen: Pen, ended: Ended) -> ReadableSpan:
    fields, trace = ended.fields, ended.trace
    is_fault = ended.status >= 500 or not ended.status
    outcome = _text(fields.get("outcome"))
    error = outcome if outcome not in ("", names.OUTCOME_OK) else ""
    if not error and ended.status >= 400:
        error = str(ended.status)
    return pen.span(
        f"{ended.method} {ended.route}",
        ended.arrival_ns,
        ended.ended_ns,
        pen.context(trace.parent_id, is_remote=True) if trace.parent_id else None,
        {
            say.HTTP_METHOD: ended.method,
            say.HTTP_ROUTE: ended.route,
            say.URL_PATH: ended.route,
            say.URL_SCHEME: ended.scheme,
            say.PROTOCOL_VERSION: ended.protocol_version,
            say.HTTP_STATUS: ended.status or None,
            say.REQUEST_ID: ended.request_id,
            names.TENANT: _text(fields.get("tenant")) or None,
            names.TIER: _text(fields.get("tier")) or None,
            names.OUTCOME: outcome or None,
            names.ERROR_TYPE: error or None,
        },
        span_id=trace.span_id,
        kind=SpanKind.SERVER,
        failed=is_fault and outcome != names.OUTCOME_DISCONNECTED,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _admit(pen: Pen, parent: SpanContext, door: DoorRecord) -> ReadableSpan:
    end_ns = door.admitted_ns or door.refused_ns or door.ended_ns or door.arrival_ns
    forecast = door.forecast
    return pen.span(
        say.ADMIT,
        door.arrival_ns,
        end_ns,
        parent,
        {
            names.TENANT: door.tenant_id,
            names.TIER: door.tier_served,
            say.TIER_ASKED: door.tier_asked,
            say.VERDICT: door.verdict or None,
            say.REASON: door.reason or None,
            say.RETRY_AFTER_MS: door.retry_after_ms,
            say.FORECAST_TTFT: _seconds(forecast.get("ttft_ns")),
            say.FORECAST_HIGH: _seconds(forecast.get("high_ns")),
            say.FORECAST_ON_TIME: _number(forecast.get("on_time")),
        },
    )


def _choice(
    pen: Pen,
    parent: SpanContext,
    door: DoorRecord,
    choice: ChoiceRecord,
    engine: RequestRecord | None,
) -> Iterator[ReadableSpan]:
    stats, watch = choice.stats, choice.stopwatch
    admitted_ns = door.admitted_ns or door.arrival_ns
    over_ns = door.ended_ns or admitted_ns
    started_ns = None if stats is None else stats.first_scheduled_ns
    if started_ns is None and watch is not None:
        started_ns = watch.first_ns  # its end is not known here: all that is sure
    queued = {names.TIER: door.tier_served, say.RESPONSE_ID: choice.id}
    yield pen.span(say.QUEUE, admitted_ns, started_ns or over_ns, parent, queued)
    if started_ns is None:
        return
    # The engine is done before the last text is out, or the client left and it was never heard of.
    ended_ns = over_ns if stats is None else stats.last_token_ns or stats.finished_ns
    is_failed = stats is not None and stats.finish_reason in _FAILED
    decisions = () if engine is None else engine.decisions
    events = [pen.event(say.FIRST_TOKEN_DUE, choice.due_ns, {})]
    if watch is not None and watch.first_ns is not None:
        events.append(pen.event(say.FIRST_TOKEN, watch.first_ns, {}))
        events.append(pen.event(say.LAST_TOKEN, watch.last_ns or watch.first_ns, {}))
    for one in _told(decisions):
        why = None if one.reason is None else one.reason.value
        about = {say.REASON: why, say.STEP: one.step}
        events.append(pen.event(_EVENTS[one.kind], one.at_ns, about))
    inference = pen.span(
        f"{door.operation} {door.model}",
        started_ns,
        ended_ns,
        parent,
        _inference_attributes(door, choice),
        kind=SpanKind.CLIENT,
        events=events,
        failed=is_failed,
    )
    yield inference
    within = inference.context
    if stats is not None:
        yield from _phases(pen, within, started_ns, stats)
    yield from _parked(pen, within, decisions, ended_ns)


def _inference_attributes(door: DoorRecord, choice: ChoiceRecord) -> dict[str, Value | None]:
    stats, watch, guess = choice.stats, choice.stopwatch, choice.estimate
    ttft_ns = None if watch is None else watch.ttft_ns
    found: dict[str, Value | None] = {
        names.OPERATION: door.operation,
        names.PROVIDER: names.PROVIDER_VALUE,
        names.MODEL: door.model,
        say.RESPONSE_MODEL: door.model,
        say.RESPONSE_ID: choice.id,
        say.MAX_TOKENS: door.max_tokens or None,
        say.CHOICE_COUNT: len(door.choices) if len(door.choices) > 1 else None,
        say.STREAM: True if door.is_stream else None,
        say.INPUT_TOKENS: choice.num_prompt_tokens,
        say.FINISH_REASONS: [choice.finish_reason] if choice.finish_reason else None,
        say.FIRST_CHUNK: _seconds(ttft_ns) if door.is_stream else None,
        say.SERVICE_TIER: door.service_tier,
        names.TIER: door.tier_served,
        names.TENANT: door.tenant_id,
        say.MET: None if door.judged is None else door.judged.met,
        say.PACED: True if door.is_paced else None,
        say.PREDICTED_TOKENS: None if guess is None else round(guess.middle, 1),
    }
    if watch is not None:
        found[say.LATE_TOKENS] = watch.late
        found[say.WORST_GAP] = _seconds(watch.worst_gap_ns)
    if stats is None:
        return found
    found |= {
        say.OUTPUT_TOKENS: stats.num_output_tokens,
        say.CACHED_TOKENS: stats.num_cached_tokens,
        say.PREEMPTIONS: stats.preemptions,
        say.PARKS: stats.parks,
        say.PARKED_TIME: _seconds(stats.parked_ns) if stats.parks else None,
    }
    if stats.finish_reason in (*_FAILED, FinishReason.CANCELLED):
        found[names.ERROR_TYPE] = stats.finish_reason.value
    return found


def _phases(
    pen: Pen, parent: SpanContext, started_ns: int, stats: RequestStats
) -> Iterator[ReadableSpan]:
    first_ns = stats.first_token_ns
    yield pen.span(say.PREFILL, started_ns, first_ns or stats.finished_ns, parent, {})
    if first_ns is not None:
        last_ns = stats.last_token_ns or first_ns
        yield pen.span(say.DECODE, first_ns, last_ns, parent, {})


def _parked(
    pen: Pen, parent: SpanContext, decisions: tuple[Decision, ...], ended_ns: int
) -> Iterator[ReadableSpan]:
    """Yield a span from each parking to the return, or to whatever came instead of it."""
    since: Decision | None = None
    for one in decisions:
        if one.kind is DecisionKind.PARKED:
            since = one
        elif since is not None and one.kind in (DecisionKind.RETURNED, DecisionKind.FAULT):
            yield _stay(pen, parent, since, one.at_ns)
            since = None
    if since is not None:
        yield _stay(pen, parent, since, ended_ns)


def _stay(pen: Pen, parent: SpanContext, since: Decision, until_ns: int) -> ReadableSpan:
    why = None if since.reason is None else since.reason.value
    attributes = {say.REASON: why, say.STEP: since.step}
    return pen.span(say.PARKED, since.at_ns, until_ns, parent, attributes)


def _told(decisions: tuple[Decision, ...]) -> list[Decision]:
    """Return what is worth an event: what took something from the request."""
    worth = [
        one
        for one in decisions
        if one.kind in _EVENTS and (one.kind is not DecisionKind.HELD or one.is_due)
    ]
    return worth[:MOST_EVENTS]


def _seconds(value_ns: float | str | None) -> float | None:
    return None if value_ns is None or isinstance(value_ns, str) else value_ns / NS_PER_S


def _number(value: float | str | None) -> float | None:
    return None if isinstance(value, str) else value
