"""Lets a request in, serves it as less than it asked for, or turns it away; all in one step.

First the bounds of the queue, then the forecast of its first token: where a promise cannot be kept,
what the tier's `on_overload` says is done. Nothing here waits, so that nobody can slip in between
the reading of a limit and the taking of a place (law L51). It knows nothing of bytes or streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core.admission import ADMITTED, Action, AdmissionRules, Mode, Reason, Verdict
from engine.core.clock import Clock
from gateway.admission import Admission, Reservation
from gateway.errors import ApiError, Problem
from gateway.forecasts import Forecasts
from gateway.plan import Plan
from gateway.retry_hints import HintBook
from tenants.values import Overload, TierRecord

# With these a lower tier may be open; where the gateway is full, or shuts down, none is.
OWN_TIERS = (Problem.SLO_UNREACHABLE, Problem.NO_CAPACITY, Problem.TIER_FULL)


@dataclass(frozen=True, slots=True)
class Entry:
    """A plan as it is served and what is expected of it there.

    `instead` is the refusal that the tier asked for would have been; None where it is served there.
    """

    plan: Plan
    verdict: Verdict
    instead: ApiError | None = None


class Pass:
    """What a request holds that was let in. `plan` is as it is served."""

    __slots__ = ("_gate", "_reservation", "came_back", "entry", "plan")

    def __init__(self, gate: Gate, entry: Entry, reservation: Reservation, came_back: bool) -> None:
        self._gate = gate
        self._reservation = reservation
        self.entry = entry
        self.plan = entry.plan
        self.came_back = came_back

    def first_token(self, index: int, at_ns: int) -> None:
        """Choice `index` has its first token; the engine made it at `at_ns`."""
        self._reservation.first_token(index)
        self._gate.first_token(self, index, at_ns)

    def release(self) -> None:
        """Give back whatever is still held: refusal, failure, disconnect, or the end."""
        self._reservation.release()
        self._gate.left(self)


class Gate:
    """The one way in; used from the event loop only. `tiers` returns them as they are now."""

    def __init__(
        self,
        clock: Clock,
        admission: Admission,
        forecasts: Forecasts,
        rules: AdmissionRules,
        tiers: Callable[[], Sequence[TierRecord]],
    ) -> None:
        self._clock = clock
        self._admission = admission
        self._rules = rules
        self._tiers = tiers
        self.forecasts = forecasts
        self.hints = HintBook()

    def enter(self, plan: Plan) -> Pass:
        """Take a place for each choice, in the plan's tier or a lower one; raises ApiError."""
        now_ns = self._clock.now_ns()
        key_id, tier = plan.principal.key_id, plan.tier.name
        came_back = self.hints.comes_back(key_id, tier, now_ns)
        try:
            entry = self._choose(plan, now_ns)
        except ApiError as refusal:
            if refusal.problem is not Problem.DRAINING and refusal.retry_after_ms is not None:
                self.hints.give(key_id, tier, refusal.retry_after_ms, now_ns)
            raise
        served = entry.plan
        reservation = self._admission.admit(
            served.tier, served.principal.tenant.id, lengths_of(served)
        )
        if self._rules.mode is not Mode.OFF:
            self.forecasts.took(served, entry.verdict, now_ns)
        if came_back:
            self.hints.was_admitted()
        return Pass(self, entry, reservation, came_back)

    def hint_ms(self, tier: str) -> int:
        """Return when whoever the engine itself refused should come back."""
        return self._admission.hint_ms(tier)

    def lower_tiers(self, plan: Plan) -> list[TierRecord]:
        """Return the tiers that a plan may be served in other than its own, the next one first.

        Those behind it in rank that may give so long an answer, where the plan's tier downgrades.
        """
        if plan.tier.on_overload is not Overload.DOWNGRADE:
            return []
        most = plan.sampling.max_tokens
        behind = [
            tier
            for tier in self._tiers()
            if tier.rank > plan.tier.rank
            and (tier.max_output_tokens is None or most <= tier.max_output_tokens)
        ]
        return sorted(behind, key=lambda tier: (tier.rank, tier.name))

    def _choose(self, plan: Plan, now_ns: int) -> Entry:
        """Return the plan as it can be served; raises the refusal of its tier."""
        found = self._look(plan, now_ns)
        if isinstance(found, Verdict):
            return Entry(plan, found)
        lower = self._lower(plan, found, now_ns) if found.problem in OWN_TIERS else None
        if found.verdict is not None:
            if lower is None and self._is_protected(plan):
                return Entry(plan, found.verdict)
            self.forecasts.refused(plan, found.verdict, now_ns)
        if lower is None:
            raise found
        return lower

    def _lower(self, plan: Plan, instead: ApiError, now_ns: int) -> Entry | None:
        """Return the plan as the next lower tier can serve it, if the plan's tier allows that."""
        for tier in self.lower_tiers(plan):
            lower = plan.served_in(tier)
            found = self._look(lower, now_ns, may_probe=False)
            if isinstance(found, Verdict):
                return Entry(lower, found, instead)
        return None

    def _is_protected(self, plan: Plan) -> bool:
        """True where a forecast alone may send nobody away: it waits, and is perhaps late."""
        return self._rules.mode is Mode.SOFT and plan.tier.rank <= self._rules.top_rank

    def _look(self, plan: Plan, now_ns: int, *, may_probe: bool = True) -> Verdict | ApiError:
        """Return what is to be expected in the plan's tier, or why it is not let in there.

        A refusal has the verdict that it rests on; of whom the bounds refuse nothing is expected.
        """
        try:
            self._admission.check(plan.tier, plan.principal.tenant.id, lengths_of(plan))
        except ApiError as refusal:
            if refusal.problem is not Problem.DRAINING and self._rules.mode is not Mode.OFF:
                hint_ms = self.forecasts.retry_after_ms(plan, now_ns) or 0
                refusal.retry_after_ms = max(refusal.retry_after_ms or 0, hint_ms)
            return refusal
        if self._rules.mode is Mode.OFF:
            return ADMITTED
        verdict = self.forecasts.judge(plan, now_ns, may_probe=may_probe)
        # Nobody waits: an idle engine takes everyone, or its forecasts could never be put right.
        if verdict.action is Action.ADMIT or not self._admission.waiting:
            return verdict
        return late(verdict)

    # What becomes of those that were let in

    def first_token(self, passed: Pass, index: int, at_ns: int) -> None:
        """A choice has its first token, made at `at_ns`; called by `Pass` only."""
        plan = passed.plan
        self.forecasts.first_token(plan.engine_id(index), self._clock.now_ns(), at_ns)
        if passed.came_back and index == 0:
            due_ns = plan.slo.first_token_due_ns(plan.arrival_ns, len(plan.prompt_of(0)))
            if at_ns <= due_ns:
                self.hints.was_on_time()

    def left(self, passed: Pass) -> None:
        """It is over; called by `Pass` only. Without a first token it says nothing of forecasts."""
        self.forecasts.left(passed.plan)


def late(verdict: Verdict) -> ApiError:
    """Return the refusal of a request whose first token would come too late."""
    assert verdict.reason is not None
    problem = Problem.SLO_UNREACHABLE
    if verdict.reason is Reason.SATURATED:
        problem = Problem.NO_CAPACITY
    refusal = ApiError(
        problem,
        "Your tier's promise cannot be kept for this request now. Please retry after the time in "
        "the 'retry-after' header.",
        retry_after_ms=verdict.retry_after_ms,
    )
    refusal.verdict = verdict
    return refusal


def lengths_of(plan: Plan) -> list[int]:
    """Return the prompt tokens of each choice."""
    return [len(plan.prompt_of(index)) for index in range(plan.num_choices)]
