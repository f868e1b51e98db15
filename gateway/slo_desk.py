"""Makes the one record by which a request is judged, out of what the door knows; it keeps no sums.

Every request of a known tenant has one, also one that was refused before it was understood: what is
offered is what counts. Those under way are known here too, so that a process that is killed leaves
behind what was promised and not kept.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from datetime import datetime

from engine.core.clock import Clock
from gateway.crowd import Crowd
from gateway.errors import Problem, ProblemSpec
from gateway.metric_names import OPERATION_EMBEDDINGS
from gateway.principal import Principal, slo_of
from gateway.request_records import DoorRecord
from gateway.stopwatch import needed_tbt_ns
from tenants.ids import new_id
from tenants.slo import DRAWS, EXCLUDED, LATE_SHARE, Outcome, SloRecord, judged

MOST_LATEST = 20_000  # some minutes' worth
INTERRUPTED = "interrupted"  # of an answer whose process died
_LIMITED = (Problem.RATE_LIMITED.value, Problem.INSUFFICIENT_QUOTA.value)
_FIRST_SERVER_ERROR = 500


def outcome_of(problem: ProblemSpec, *, is_admitted: bool) -> Outcome:
    """Return what a refusal or failure is called in the accounts."""
    if problem in _LIMITED:
        return Outcome.LIMITED
    if problem.status < _FIRST_SERVER_ERROR:
        # Its key was closed meanwhile: what it got until then was promised all the same.
        return Outcome.DISCONNECTED if is_admitted else Outcome.INVALID
    if problem is Problem.DEADLINE.value:
        return Outcome.EXPIRED
    return Outcome.FAILED if is_admitted else Outcome.REFUSED


def draw_of(name: str) -> int:
    """Return a number from 0 to 1023, even over random names."""
    return zlib.crc32(name.encode()) % DRAWS


def answer_record(
    door: DoorRecord,
    outcome: Outcome,
    reason: str,
    now_ns: int,
    waited_until_ns: int | None = None,
) -> SloRecord:
    """Return the record of a request that was understood, as it stands at `now_ns`.

    Of several choices all have to begin in time, by the longest prompt's promise; gaps are those of
    all. `waited_until_ns` is until when an answer that broke off was waited for: a next token that
    was late by then is one more late gap.
    """
    watches = [choice.stopwatch for choice in door.choices if choice.stopwatch is not None]
    firsts = [watch.ttft_ns for watch in watches if watch.ttft_ns is not None]
    in_vain = [] if waited_until_ns is None else _in_vain(door, waited_until_ns)
    scheduled = [
        choice.stats.first_scheduled_ns
        for choice in door.choices
        if choice.stats is not None and choice.stats.first_scheduled_ns is not None
    ]
    ttft_ns = max(firsts, default=None)
    if outcome is Outcome.COMPLETED and door.operation == OPERATION_EMBEDDINGS:
        ttft_ns = now_ns - door.arrival_ns  # the answer has no tokens: it comes as one
    elif outcome is not Outcome.COMPLETED and len(firsts) < len(door.choices):
        ttft_ns = None
    ttft_due_ns = max(choice.due_ns for choice in door.choices) - door.arrival_ns
    total_ns = now_ns - door.arrival_ns
    gaps = sum(watch.gaps for watch in watches) + len(in_vain)
    late = sum(watch.late for watch in watches) + len(in_vain)
    record = SloRecord(
        id=door.id,
        request_id=door.request_id,
        tenant_id=door.tenant_id,
        key_id=door.key_id,
        model=door.model,
        operation=door.operation,
        tier_asked=door.tier_asked,
        tier=door.tier_served,
        tier_version=door.tier_version,
        arrival=door.arrival,
        outcome=outcome,
        reason=reason,
        stream=door.is_stream,
        prompt_tokens=max(choice.num_prompt_tokens for choice in door.choices),
        output_tokens=sum(watch.num_tokens for watch in watches),
        total_ns=total_ns,
        queue_ns=max(min(scheduled) - door.arrival_ns, 0) if scheduled else None,
        ttft_ns=ttft_ns,
        ttft_due_ns=ttft_due_ns,
        gaps=gaps,
        late_gaps=late,
        tbt_ns=door.slo.tbt_ns,
        tbt_mode=door.slo.tbt_mode.value,
        needed_tbt_ns=needed_tbt_ns(watches, LATE_SHARE, in_vain),
        draw=draw_of(door.id),
        eased=door.is_eased,
        trace_id=door.trace_id,
    )
    return judged(record)


def _in_vain(door: DoorRecord, until_ns: int) -> list[int]:
    """Return the TBT that each token needed which was late when the answer broke off."""
    waits = [
        choice.stopwatch.overdue_ns(until_ns)
        for choice in door.choices
        if choice.stopwatch is not None and choice.finish_reason is None
    ]
    return [ns for ns in waits if ns is not None]


class SloDesk:
    """The records of one gateway's requests: `keep` takes each when it is over."""

    def __init__(self, clock: Clock, keep: Callable[[SloRecord], None]) -> None:
        self._clock = clock
        self._keep = keep
        self._open: dict[str, DoorRecord] = {}
        self.crowd = Crowd()
        self.latest: deque[SloRecord] = deque(maxlen=MOST_LATEST)  # in the order of their ends
        self.num_ended = 0  # so many were in `latest`, the last of them still is

    def began(self, door: DoorRecord) -> None:
        """A request was understood; `ended` must follow."""
        self._open[door.id] = door

    def ended(
        self,
        door: DoorRecord,
        outcome: Outcome,
        reason: str,
        now_ns: int,
        waited_until_ns: int | None = None,
    ) -> SloRecord:
        """It is over; returns its record."""
        self._open.pop(door.id, None)
        record = answer_record(door, outcome, reason, now_ns, waited_until_ns)
        door.judged = record.verdict
        self.latest.append(record)
        self.num_ended += 1
        self._take(record, now_ns)
        return record

    def under_way(self) -> list[SloRecord]:
        """Return what those under way would be if this process died now: we failed them."""
        now_ns = self._clock.now_ns()
        return [
            answer_record(door, Outcome.FAILED, INTERRUPTED, now_ns) for door in self._open.values()
        ]

    def refused(
        self,
        principal: Principal,
        problem: ProblemSpec,
        *,
        operation: str,
        model: str,
        request_id: str,
        arrival: datetime,
        total_ns: int,
    ) -> SloRecord:
        """A request was turned away before it was understood: of its prompt nothing is known."""
        tier, slo = principal.tier, slo_of(principal.tier)
        # A client chooses its request ids, and may choose one twice.
        name = f"req-{new_id(arrival)}"
        record = SloRecord(
            id=name,
            request_id=request_id,
            tenant_id=principal.tenant.id,
            key_id=principal.key_id,
            model=model,
            operation=operation,
            tier_asked=tier.name,
            tier=tier.name,
            tier_version=tier.version,
            arrival=arrival,
            outcome=outcome_of(problem, is_admitted=False),
            reason=problem.error_type,
            stream=False,
            prompt_tokens=0,
            output_tokens=0,
            total_ns=total_ns,
            queue_ns=None,
            ttft_ns=None,
            ttft_due_ns=slo.ttft_ns,
            gaps=0,
            late_gaps=0,
            tbt_ns=slo.tbt_ns,
            tbt_mode=slo.tbt_mode.value,
            needed_tbt_ns=None,
            draw=draw_of(name),
        )
        record = judged(record)
        self._take(record, self._clock.now_ns())
        return record

    def _take(self, record: SloRecord, now_ns: int) -> None:
        if record.outcome not in EXCLUDED or self.crowd.has_room(record.tenant_id, now_ns):
            self._keep(record)
