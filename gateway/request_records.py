"""What the door did with each request, for whoever asks afterwards: numbers and names, no text.

A `Journal` keeps one `DoorRecord` per request that was understood: of the latest that were served,
of the latest refused, and of all that are open. Whoever lets a request in or turns it away says so
with the verdict it went by (`admitted`, `refused`): a forecast is kept as a mapping of plain
numbers, so that another kind of forecast needs no change here. Times of tokens are read from the
stopwatches of the answer's choices, so a token costs nothing here. It knows no engine and no HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from engine.core.admission import Action, Verdict
from engine.core.request import LengthEstimate
from engine.core.stats import RequestStats
from gateway.errors import ApiError
from gateway.gate import Entry
from gateway.otel.trace_context import CURRENT
from gateway.plan import Plan
from gateway.stopwatch import Stopwatch
from gateway.usage_row import slo_met
from gateway.wishes import NO_WISHES
from tenants.slo import Verdict as Judged

MOST_SERVED = 2_000
MOST_REFUSED = 1_000


class ChoiceRecord:
    """One choice as the door saw it; `id` is that of its engine request and its usage row.

    `stats` are the engine's last word, and `finish_reason` is as the client was told.
    """

    __slots__ = (
        "due_ns",
        "estimate",
        "finish_reason",
        "id",
        "num_prompt_tokens",
        "num_tokens",
        "stats",
        "stopwatch",
    )

    def __init__(
        self, name: str, num_prompt_tokens: int, due_ns: int, estimate: LengthEstimate | None
    ) -> None:
        self.id = name
        self.num_prompt_tokens = num_prompt_tokens
        self.due_ns = due_ns
        self.estimate = estimate
        self.stopwatch: Stopwatch | None = None
        self.stats: RequestStats | None = None
        self.finish_reason: str | None = None
        self.num_tokens = 0

    @property
    def is_met(self) -> bool | None:
        """True where both targets were met, None where that cannot be judged (yet)."""
        if self.stats is None or self.stopwatch is None:
            return None
        return slo_met(self.stats, self.stopwatch)


class DoorRecord:
    """One HTTP request, from its arrival to its end; ms and JSON are others' affair."""

    __slots__ = (
        "admitted_ns",
        "arrival",
        "arrival_ns",
        "choices",
        "ended_ns",
        "forecast",
        "id",
        "is_eased",
        "is_paced",
        "is_stream",
        "judged",
        "key_id",
        "max_tokens",
        "model",
        "operation",
        "outcome",
        "own_forecast",
        "reason",
        "refused_ns",
        "request_id",
        "retry_after_ms",
        "service_tier",
        "slo",
        "status",
        "tenant_id",
        "tier_asked",
        "tier_served",
        "tier_version",
        "trace_id",
        "verdict",
    )

    def __init__(self, plan: Plan, request_id: str) -> None:
        self.id = plan.heading.id
        self.request_id = request_id
        self.operation = plan.shape.operation
        self.model = plan.heading.model
        self.tenant_id = plan.principal.tenant.id
        self.key_id = plan.principal.key_id
        self.judged: Judged | None = None  # once it is over
        trace = CURRENT.get()
        self.trace_id = "" if trace is None else trace.trace_id
        self.arrival: datetime = plan.arrival
        self.arrival_ns = plan.arrival_ns
        self.is_stream = plan.stream
        self.max_tokens = plan.sampling.max_tokens
        self.tier_asked = plan.tier.name
        self._serve(plan)
        self.admitted_ns: int | None = None
        self.refused_ns: int | None = None
        self.verdict = ""  # what the rules said: "admit", "refuse" or "downgrade"
        self.forecast: dict[str, float | str] = {}  # in the tier it is served in
        self.own_forecast: dict[str, float | str] = {}  # in the tier asked for, if that is another
        self.reason = ""  # of a refusal, or why it is not served in the tier asked for
        self.status = 0
        self.retry_after_ms: int | None = None
        self.outcome = ""
        self.ended_ns: int | None = None

    def _serve(self, plan: Plan) -> None:
        """What is promised by the tier it is served in."""
        self.tier_served = plan.tier.name
        self.service_tier = plan.heading.service_tier
        self.tier_version = plan.tier.version
        self.slo = plan.slo
        self.is_eased = plan.wishes != NO_WISHES
        self.is_paced = plan.is_paced
        self.choices: list[ChoiceRecord] = []
        for index in range(plan.num_choices):
            num_tokens = len(plan.prompt_of(index))
            due_ns = plan.slo.first_token_due_ns(plan.arrival_ns, num_tokens)
            name, guess = plan.engine_id(index), plan.estimate_of(index)
            self.choices.append(ChoiceRecord(name, num_tokens, due_ns, guess))

    def admitted(
        self, plan: Plan, entry: Entry | None, watches: Iterable[Stopwatch], now_ns: int
    ) -> None:
        """It was let in; `plan` is as it is served, and each choice has a stopwatch."""
        if plan.tier.name != self.tier_served:
            self._serve(plan)
        self.admitted_ns = now_ns
        if entry is not None:
            self._judge(entry.verdict)
            if entry.instead is not None:
                self._downgraded(entry.instead)
        for choice, watch in zip(self.choices, watches, strict=True):
            choice.stopwatch = watch

    def refused(self, error: ApiError, now_ns: int) -> None:
        """It was turned away, or failed before it had an answer."""
        self.refused_ns = now_ns
        self.reason = error.spec.reason or error.spec.error_type
        self.status = error.spec.status
        self.retry_after_ms = error.retry_after_ms
        self._judge(error.verdict)

    def _judge(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.verdict = verdict.would.value
            if verdict.forecast is not None:
                self.forecast = dataclasses.asdict(verdict.forecast)

    def _downgraded(self, instead: ApiError) -> None:
        """What the tier asked for would have refused it with."""
        self.verdict = Action.DOWNGRADE.value
        self.reason = instead.spec.reason or instead.spec.error_type
        if instead.verdict is not None and instead.verdict.forecast is not None:
            self.own_forecast = dataclasses.asdict(instead.verdict.forecast)


class Journal:
    """The records of one gateway; used from its event loop only."""

    def __init__(self, most_served: int = MOST_SERVED, most_refused: int = MOST_REFUSED) -> None:
        self._most_served = most_served
        self._most_refused = most_refused
        self._open: dict[str, DoorRecord] = {}
        self._served: dict[str, DoorRecord] = {}
        self._refused: dict[str, DoorRecord] = {}
        self._ids: dict[str, str] = {}  # of answers, by the id of the HTTP request

    def __len__(self) -> int:
        """Records kept."""
        return len(self._open) + len(self._served) + len(self._refused)

    def arrived(self, plan: Plan, request_id: str) -> DoorRecord:
        """A request was understood; whoever has the record tells it what becomes of it."""
        record = DoorRecord(plan, request_id)
        self._open[record.id] = record
        self._ids[request_id] = record.id
        return record

    def ended(
        self,
        record: DoorRecord,
        outcome: str,
        ends: Iterable[tuple[RequestStats | None, str | None, int]],
        now_ns: int,
    ) -> None:
        """An answer is over: of each choice the engine's last word, its end and its tokens."""
        record.outcome, record.ended_ns = outcome, now_ns
        for choice, (stats, reason, num_tokens) in zip(record.choices, ends, strict=False):
            choice.stats, choice.finish_reason, choice.num_tokens = stats, reason, num_tokens
        self._open.pop(record.id, None)
        if record.refused_ns is None:
            self._keep(self._served, record, self._most_served)
        else:
            self._keep(self._refused, record, self._most_refused)

    def _keep(self, place: dict[str, DoorRecord], record: DoorRecord, most: int) -> None:
        place[record.id] = record
        if len(place) > most:
            oldest = place.pop(next(iter(place)))
            # A client may send one id with many requests: it is the latest's.
            if self._ids.get(oldest.request_id) == oldest.id:
                del self._ids[oldest.request_id]

    def find(self, name: str) -> DoorRecord | None:
        """Return a record by the id of the answer, of one of its choices, or of the HTTP request.

        A client may have sent the same `x-request-id` with several: it stands for the latest.
        """
        record = self._kept(name) or self._kept(self._ids.get(name, ""))
        if record is None:
            answer_id, _, index = name.rpartition("-")
            record = self._kept(answer_id)
            if record is not None and index not in map(str, range(len(record.choices))):
                return None
        return record

    def _kept(self, answer_id: str) -> DoorRecord | None:
        for place in (self._open, self._served, self._refused):
            if answer_id in place:
                return place[answer_id]
        return None

    def newest(self) -> Iterator[DoorRecord]:
        """Iterate over all, those that arrived last first."""
        everyone = (*self._open.values(), *self._served.values(), *self._refused.values())
        return iter(sorted(everyone, key=lambda record: record.arrival_ns, reverse=True))


def numbers(values: Mapping[str, float | str]) -> dict[str, float | str]:
    """Return a forecast with its times in ms, as they are shown."""
    shown: dict[str, float | str] = {}
    for name, value in values.items():
        if name.endswith("_ns") and not isinstance(value, str):
            shown[name[:-3] + "_ms"] = round(value / 1e6, 3)
        else:
            shown[name] = round(value, 4) if isinstance(value, float) else value
    return shown
