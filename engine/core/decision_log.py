"""Keeps what was decided about each request, for whoever asks afterwards: no clock, text or token.

Scheduler, planner and memory moves tell it what they do, and it never answers them: with it or
without it the same is decided. A step costs it a few comparisons: nobody looks at who is in it
unless somebody who runs is not, and of what makes requests wait only the changes are noted. Of
those who ended the latest are kept, and of those who were refused, preempted or failed, or missed
what was promised, the latest for longer.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from engine.core.decision import Decision, DecisionKind, Reason, RequestRecord
from engine.core.decision_trace import MOST_DECISIONS, MOST_OTHERS, Trace, next_due_ns
from engine.core.errors import RefusalReason
from engine.core.queues import Queues
from engine.core.request import Request, RequestOrder
from engine.core.stats import RequestStats
from engine.core.step_reasons import StepReasons

MOST_ENDED = 2_000
MOST_NOTABLE = 1_000
MOST_REFUSED = 500
MOST_FOLLOWED = 256  # live at a time: beyond them steps are followed of one in so many
CROWD_ONE_IN = 8


class DecisionLog:
    """Traces of the live and of the latest that ended, by request id.

    Steps are followed of one in `one_in` by a hash of the id (0: of nobody), and of fewer in a
    crowd, so that a step's cost does not grow with it; of the others all else is kept.
    """

    def __init__(self, one_in: int = 1, most_ended: int = MOST_ENDED) -> None:
        self._one_in = one_in
        self._most_ended = most_ended
        self.reasons = StepReasons()  # the planner writes them
        self._live: dict[str, Trace] = {}
        self._ended: dict[str, Trace] = {}
        self._notable: dict[str, Trace] = {}
        self._refused: dict[str, Trace] = {}
        self._num_followed = 0  # of the live
        self._step = 0  # the latest planned
        self._held: dict[str, Trace] = {}  # running, and not in the latest step
        self._held_group: object = None
        # Who waits since nobody looked; since when which reason makes the others wait, and whom.
        self._new: list[Trace] = []
        self._reason: Reason | None = None
        self._head: Request | None = None
        self._since_ns = 0
        self._waited: dict[Reason, int] = {}  # for each reason, all its time so far

    def __len__(self) -> int:
        """Requests that could be told about; some may be counted twice."""
        kept = len(self._ended) + len(self._notable) + len(self._refused)
        return len(self._live) + kept

    # Coming and going

    def submitted(self, request: Request, now_ns: int) -> None:
        """A request was taken."""
        order = request.order
        trace = Trace(order, now_ns, request, is_followed=self._follows(order.id))
        self._num_followed += trace.is_followed
        trace.estimate = request.estimate
        self._live[order.id] = trace
        self._new.append(trace)

    def refused(self, order: RequestOrder, reason: RefusalReason, now_ns: int) -> None:
        """A request was not taken; one that bears the id of a live one leaves no trace."""
        if order.id not in self._live:
            self._forget(order.id)
            trace = Trace(order, now_ns, None, is_followed=True, refusal=reason)
            _keep(self._refused, order.id, trace, MOST_REFUSED)

    def ended(self, stats: RequestStats) -> None:
        """A request has got its last event."""
        trace = self._live.pop(stats.request_id)
        self._num_followed -= trace.is_followed
        request = trace.request
        assert request is not None
        trace.close(request, self._step, stats.finished_ns)
        self._held.pop(request.id, None)
        if request is self._head:
            self._credit(stats.finished_ns)
            self._head = None
        trace.request = trace.base = None
        trace.worst_late_ns, trace.end = request.worst_late_ns, stats
        self._forget(stats.request_id)
        _keep(self._ended, stats.request_id, trace, self._most_ended)
        if trace.is_notable:
            _keep(self._notable, stats.request_id, trace, MOST_NOTABLE)

    def _forget(self, request_id: str) -> None:
        """An id is used again: what is told of it from now on is of its latest bearer."""
        for place in (self._ended, self._notable, self._refused):
            place.pop(request_id, None)

    def _follows(self, request_id: str) -> bool:
        one_in = self._one_in
        if one_in and self._num_followed >= MOST_FOLLOWED:
            one_in = max(one_in, CROWD_ONE_IN)
        if one_in <= 1:
            return one_in == 1
        return zlib.crc32(request_id.encode()) % one_in == 0

    # A step

    def begin(self, now_ns: int) -> None:
        """A step is about to be planned: it sees everybody who has come since the last."""
        if self._new:
            base = self._waits_until(now_ns)  # one for all: it is only read
            for trace in self._new:
                if trace.request is not None:
                    trace.base = base
            self._new.clear()

    def planned(
        self,
        step: int,
        now_ns: int,
        queues: Queues,
        decodes: Mapping[str, Request],
        prefills: Mapping[str, tuple[Request, int]],
    ) -> None:
        """A step is planned: these compute in it, by id, of those who run."""
        self._step = step
        reasons = self.reasons
        if reasons.waiting is not self._reason or reasons.head is not self._head:
            self._credit(now_ns)
            self._reason, self._head = reasons.waiting, reasons.head
        if not (self._held or reasons.has_any):
            return  # nearly every step: everybody who runs is in it
        self._find_held(queues, decodes, prefills, now_ns)
        if self._held and (not reasons.is_plain or reasons.group != self._held_group):
            self._name_reasons(now_ns)

    def _find_held(
        self,
        queues: Queues,
        decodes: Mapping[str, Request],
        prefills: Mapping[str, tuple[Request, int]],
        now_ns: int,
    ) -> None:
        """Find who runs and is not in the step, and who was held and now is.

        A policy may put off most decodes for a step, again and again: so sets are compared, and
        where all of a group have one reason they get it at once.
        """
        held, step, reasons = self._held, self._step, self.reasons
        is_plain = reasons.is_plain
        if held:
            names = held.keys()
            for name in (names & decodes.keys()) | (names & prefills.keys()):
                trace = held.pop(name)
                assert trace.request is not None
                trace.run(trace.request, step, now_ns)
        if is_plain and not held:
            self._held_group = reasons.group
        for place, placed, reason, is_due in (
            (queues.decoding, decodes, reasons.spare, False),
            (queues.prefilling, prefills, reasons.prompts, True),
        ):
            if len(place) == len(placed):
                continue
            for name in place.keys() - placed.keys() - held.keys():
                trace = self._live[name]
                if trace.is_followed:
                    trace.held_step, trace.held_ns = step, now_ns
                    trace.held_reason, trace.held_is_due = reason, is_due
                    held[name] = trace

    def _name_reasons(self, now_ns: int) -> None:
        """Ask why each of those held is, and begin another stretch where that has changed."""
        self._held_group = self.reasons.group
        traces = list(self._held.values())
        requests = [trace.request for trace in traces if trace.request is not None]
        found = self.reasons.of(requests)
        for trace, request, (reason, is_due) in zip(traces, requests, found, strict=True):
            if trace.held_reason is not reason or trace.held_is_due is not is_due:
                trace.change(request, reason, self._step, now_ns, is_due=is_due)

    def rethought(self, news: Mapping[str, str], now_ns: int) -> None:
        """The policy thinks otherwise of these requests, by id, and says how.

        Dozens may be told of in one step, so this is written out: entries are made bare, as the
        starts are, and what is due is asked of nobody while there is no first token.
        """
        find, step, kind, new = self._live.get, self._step, DecisionKind.POLICY, tuple.__new__
        for name, words in news.items():
            trace = find(name)
            if trace is None or (request := trace.request) is None:
                continue
            decisions = trace.decisions
            if decisions and (last := decisions[-1]).kind is kind and last.detail == words:
                decisions[-1] = last._replace(
                    until_ns=now_ns, until_step=step, num_steps=last.num_steps + 1
                )
                continue
            due_ns = trace.first_due_ns if request.first_token_ns is None else next_due_ns(request)
            entry = new(
                Decision,
                (kind, now_ns, step, now_ns, step, None, True, 1, 0, 0, due_ns, (), (), (), words),
            )
            if len(decisions) < MOST_DECISIONS:
                decisions.append(entry)
            else:
                trace.add(entry)

    # Waiting

    def _credit(self, now_ns: int) -> None:
        """The reason that made requests wait until now did so for the time since it was noted."""
        spent_ns, self._since_ns = now_ns - self._since_ns, now_ns
        reason = self._reason
        if reason is None or not spent_ns:
            return
        self._waited[reason] = self._waited.get(reason, 0) + spent_ns
        if self._head is not None:
            trace = self._live.get(self._head.id)
            if trace is not None and trace.request is self._head:
                waits = trace.first_waits = trace.first_waits or {}
                waits[reason] = waits.get(reason, 0) + spent_ns

    def _waits_until(self, now_ns: int) -> dict[Reason, int]:
        """Return for each reason how long it has made requests wait, since the beginning."""
        waited = dict(self._waited)
        if self._reason is not None:
            waited[self._reason] = waited.get(self._reason, 0) + now_ns - self._since_ns
        return waited

    def started(self, request: Request, now_ns: int, detail: str) -> None:
        """A waiting request runs from this step on; its prefix hit is in its counter."""
        trace = self._live[request.id]
        known, until = (trace.base or {}).get, self._waits_until(now_ns)
        waits = [(why, spent) for why, ns in until.items() if (spent := ns - known(why, 0)) > 0]
        left_ns = now_ns - trace.wait_ns - sum([ns for _, ns in waits])
        if left_ns > 0:
            waits.insert(0, (Reason.STEP_UNDER_WAY, left_ns))
        if request is self._head:
            self._credit(now_ns)
            self._head = None
        if request is self.reasons.head:  # it was stopped in this step, and then had its way
            self.reasons.head = None
        others, first_waits = tuple(trace.others or ()), tuple((trace.first_waits or {}).items())
        step, num_cached, due_ns = self._step + 1, request.num_computed, next_due_ns(request)
        # Made for every request, and bare it takes a quarter of what `Decision(...)` does.
        trace.add(
            tuple.__new__(
                Decision,
                (DecisionKind.STARTED, now_ns, step, 0, 0, None, True, 0, num_cached, 0, due_ns,
                 others, tuple(waits), first_waits, detail),
            )
        )  # fmt: skip
        trace.others = trace.first_waits = trace.base = None
        if trace.is_followed:
            trace.run(request, self._step + 1, now_ns)

    # Memory

    def preempted(self, victim: Request, reason: Reason, by: Request | None, now_ns: int) -> None:
        """Its context is dropped, in the step that is being planned."""
        trace = self._leave(DecisionKind.PREEMPTED, victim, reason, by, now_ns)
        trace.wait_ns, trace.base = now_ns, self._waits_until(now_ns)

    def parked(self, victim: Request, reason: Reason, by: Request | None, now_ns: int) -> None:
        """Its context leaves for the host, in the step that is being planned."""
        self._leave(DecisionKind.PARKED, victim, reason, by, now_ns)

    def _leave(
        self,
        kind: DecisionKind,
        victim: Request,
        reason: Reason,
        by: Request | None,
        now_ns: int,
    ) -> Trace:
        trace = self._live[victim.id]
        trace.close(victim, self._step, now_ns)
        self._held.pop(victim.id, None)
        others: tuple[tuple[str, str], ...] = ()
        if by is not None:
            others = ((by.id, by.order.tier),)
            if reason is Reason.NEWCOMER:
                gainer = self._live[by.id]
                named = gainer.others = gainer.others or []
                if len(named) < MOST_OTHERS:
                    named.append((victim.id, victim.order.tier))
        trace.add(
            Decision(
                kind,
                now_ns,
                self._step + 1,
                reason=reason,
                num_tokens=victim.num_computed,
                due_ns=next_due_ns(victim),
                others=others,
            )
        )
        return trace

    def wanted(self, request: Request, now_ns: int) -> None:
        """The policy wants a parked request back, and there is no room for it."""
        trace = self._live[request.id]
        trace.wanted_ns = trace.wanted_ns or now_ns

    def returning(self, request: Request, reason: Reason, now_ns: int) -> None:
        """A parked request is brought back, in the step that is being planned."""
        trace = self._live[request.id]
        waits: tuple[tuple[Reason, int], ...] = ()
        if trace.wanted_ns:
            waits = ((Reason.NO_MEMORY, now_ns - trace.wanted_ns),)
            trace.wanted_ns = 0
        tokens, due_ns = request.num_computed, next_due_ns(request)
        trace.add(
            Decision(
                DecisionKind.RETURNING, now_ns, self._step + 1, reason=reason,
                num_tokens=tokens, due_ns=due_ns, waits=waits,
            )
        )  # fmt: skip

    def returned(self, request: Request, now_ns: int) -> None:
        """A parked request is back: it can run from the next step on."""
        trace = self._live[request.id]
        due_ns = next_due_ns(request)
        trace.add(Decision(DecisionKind.RETURNED, now_ns, self._step, due_ns=due_ns))
        if trace.is_followed:
            trace.hold(None, self._step + 1, now_ns, is_due=False)
            self._held[request.id] = trace
            self._held_group = None

    def fault(self, request: Request, detail: str, now_ns: int) -> None:
        """A step of it failed, or a copy of its context; called before it is interrupted."""
        trace = self._live[request.id]
        trace.close(request, self._step, now_ns)
        self._held.pop(request.id, None)
        tokens, due_ns = request.num_computed, next_due_ns(request)
        trace.add(
            Decision(
                DecisionKind.FAULT, now_ns, self._step,
                num_tokens=tokens, due_ns=due_ns, detail=detail,
            )
        )  # fmt: skip
        trace.wait_ns, trace.base = now_ns, None
        self._new.append(trace)

    # Reading

    def read(self, request_id: str, now_ns: int, standing: str = "") -> RequestRecord | None:
        """Return the story of a request, live or kept; None where nothing is known of it."""
        for place in (self._live, self._ended, self._notable, self._refused):
            trace = place.get(request_id)
            if trace is not None:
                return trace.record(self._step, now_ns, standing)
        return None


def _keep(place: dict[str, Trace], name: str, trace: Trace, most: int) -> None:
    """Put a trace behind all others, and let the oldest go."""
    place.pop(name, None)
    place[name] = trace
    if len(place) > most:
        del place[next(iter(place))]
