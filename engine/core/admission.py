"""The door's judgement: let a request in, refuse it or serve it as another tier; and why.

It knows a tier's rules, forecasts and loads, and neither HTTP nor engines; time is handed in. Soft
is the rule: a forecast may refuse only where the tier says so, only behind the first class, only
far beyond the target and only with little chance to be on time; nobody is refused by an engine that
is idle, unknown or silent. What it looks at is the load at the time when the work would run, not
the load there is (law L41). Every refusal is followed by a ledger (law L40).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from engine.core.calibration import ENOUGH
from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.drain import decode_ns, speed
from engine.core.forecast import Forecast, Forecaster, Newcomer
from engine.core.load import EngineLoad
from engine.core.refusals import LedgerCounts, RefusalLedger, Standing

# Hints come in steps, so that they do not show other tenants' load to the millisecond.
HINT_STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120)
MOST_TIERS = 64
MOST_FOLLOWED = 4096  # requests let in that have no first token yet
PROMPT_DEARER = 2.0  # prompts get about half of a step, so each of their tokens counts double


class Mode(StrEnum):
    """How much a forecast may do."""

    OFF = "off"  # nothing is forecast
    SHADOW = "shadow"  # everybody is let in; who would have been refused is noted
    SOFT = "soft"
    HARD = "hard"  # refuses at the target, in every class whose tier says reject


class OnOverload(StrEnum):
    """What a tier wants where its promise cannot be kept."""

    QUEUE = "queue"
    REJECT = "reject"
    DOWNGRADE = "downgrade"


class Action(StrEnum):
    """The verdict."""

    ADMIT = "admit"
    REFUSE = "refuse"
    DOWNGRADE = "downgrade"


class Reason(StrEnum):
    """Why somebody is refused; a closed list."""

    SATURATED = "saturated"
    SLO_UNREACHABLE = "slo-unreachable"
    TIER_CAPACITY = "tier-capacity"
    QUEUE_TIMEOUT = "queue-timeout"
    EVICTED = "evicted"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """When a forecast may refuse.

    Its time must be at least `factor` times the target and the chance to be on time at most
    `most_on_time` (the lower end of the one-sided interval of that much lies beyond the target).
    Before `least_evidence` outcomes of a tier are known nobody of it is refused, nor for a kind of
    forecast that was hardly checked lately, nor on a load older than `stale_ns`. Of those it would
    refuse one in `probe_every` is let in all the same (0: none): they show what refusals are worth.
    One in `check_every` of all let in checks the ledger.
    """

    mode: Mode = Mode.SOFT
    factor: float = 2.0
    most_on_time: float = 0.1
    least_evidence: int = 50
    stale_ns: int = 10 * NS_PER_S
    probe_every: int = 20
    check_every: int = 20
    top_rank: int = 0

    def __post_init__(self) -> None:
        if not self.factor >= 1.0 or not 0.0 <= self.most_on_time <= 1.0:
            raise ValueError("admission: factor must be at least 1, most_on_time from 0 to 1")
        if min(self.least_evidence, self.stale_ns, self.probe_every, self.check_every) < 0:
            raise ValueError("admission: counts and times must not be negative")
        if self.least_evidence > ENOUGH:
            raise ValueError(f"admission: least_evidence must be at most {ENOUGH}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a request, and on what grounds.

    `would` is what the rules say; `action` differs from it in shadow mode and for a probe. Reason
    and hint are those of `would` and None where it is to admit.
    """

    action: Action
    would: Action
    reason: Reason | None = None
    retry_after_ms: int | None = None
    forecast: Forecast | None = None


ADMITTED = Verdict(Action.ADMIT, Action.ADMIT)


class Gatekeeper:
    """One per engine: forecasts, judges, and follows what becomes of everybody.

    Of each request: `judge`, then `took` or `refused`, then `first_token` or `left`; `look` at
    every load that comes. All times are of one monotonic clock.
    """

    def __init__(self, rules: AdmissionRules | None = None) -> None:
        self.rules = rules or AdmissionRules()
        self.forecaster = Forecaster()
        self._ledger = RefusalLedger()
        self._load: EngineLoad | None = None
        self._began_ns = 0
        self._was_idle = False  # at the last look nobody waited, nor was on the way
        self._first_took_ns: int | None = None  # who came first since
        self._followed: dict[str, Standing] = {}  # let in, without a first token
        self._num_would_refuse: Counter[str] = Counter()  # by tier
        self._num_taken = 0

    @property
    def ledger(self) -> LedgerCounts:
        """What became of those refused, as far as is known."""
        return self._ledger.counts

    @property
    def num_followed(self) -> int:
        """Requests and ghosts followed now."""
        return len(self._followed) + len(self._ledger)

    def restarted(self) -> None:
        """Another engine: it knows of nobody before it; what is coming is learned anew."""
        self.forecaster = Forecaster()
        self._was_idle = False

    def judge(
        self,
        newcomer: Newcomer,
        on_overload: OnOverload,
        now_ns: int,
        *,
        may_probe: bool = True,
    ) -> Verdict:
        """Return what to do with a request that arrives now; it changes nothing that was learnt.

        `may_probe` False: where another tier is asked in place of its own, a probe would be served
        as less than it is owed, and late besides.
        """
        load, mode = self._load, self.rules.mode
        if mode is Mode.OFF:
            return ADMITTED
        if load is not None and load.draining:
            return Verdict(Action.REFUSE, Action.REFUSE, Reason.DRAINING, 1000 * HINT_STEPS_S[0])
        forecast = self._forecast(newcomer, now_ns)
        would = self._would(newcomer, on_overload, forecast)
        if would is Action.ADMIT or load is None:
            return Verdict(Action.ADMIT, Action.ADMIT, forecast=forecast)
        hint_s = self.forecaster.retry_s(newcomer, load, now_ns, HINT_STEPS_S)
        reason = Reason.SATURATED if hint_s >= HINT_STEPS_S[-1] else Reason.SLO_UNREACHABLE
        is_probe = may_probe and self._is_probe(newcomer.tier)
        action = Action.ADMIT if mode is Mode.SHADOW or is_probe else would
        return Verdict(action, would, reason, 1000 * hint_s, forecast)

    def _is_probe(self, tier: str) -> bool:
        """Count one more whom the rules would not serve as it asked; True for one in so many."""
        counts, every = self._num_would_refuse, self.rules.probe_every
        if len(counts) >= MOST_TIERS and tier not in counts:
            counts.clear()
        counts[tier] += 1
        return every > 0 and counts[tier] % every == 0

    def _forecast(self, newcomer: Newcomer, now_ns: int) -> Forecast | None:
        """Return a forecast, None where the engine is unknown, or silent for too long."""
        load = self._load
        if load is None or now_ns - self._began_ns > self.rules.stale_ns:
            return None
        return self.forecaster.forecast(newcomer, load, now_ns, self._began_ns)

    def _would(
        self, newcomer: Newcomer, on_overload: OnOverload, forecast: Forecast | None
    ) -> Action:
        """Return what the rules say, whatever the mode makes of it."""
        rules, load = self.rules, self._load
        if forecast is None or load is None or on_overload is OnOverload.QUEUE:
            return Action.ADMIT
        if self.forecaster.is_idle(load) or forecast.evidence < rules.least_evidence:
            return Action.ADMIT
        action = Action.DOWNGRADE if on_overload is OnOverload.DOWNGRADE else Action.REFUSE
        if rules.mode is Mode.HARD:
            return action if forecast.ttft_ns > forecast.target_ns else Action.ADMIT
        if action is Action.REFUSE and newcomer.slo.rank <= rules.top_rank:
            return Action.ADMIT
        is_far = forecast.ttft_ns >= rules.factor * forecast.target_ns
        return action if is_far and forecast.on_time <= rules.most_on_time else Action.ADMIT

    def _standing(self, newcomer: Newcomer, arrival_ns: int) -> Standing:
        load = self._load
        weight = float(newcomer.num_prompt_tokens)
        if load is not None:
            prompt_ns = load.prompt_token_ns * newcomer.num_prompt_tokens
            dear = decode_ns(load, newcomer.num_prompt_tokens, newcomer.estimate.middle)
            weight = PROMPT_DEARER * prompt_ns + load.plan.decode_weight * dear
        return Standing(newcomer, arrival_ns, weight)

    # What happens

    def look(self, load: EngineLoad | None, now_ns: int) -> None:
        """The engine's newest snapshot, made at `now_ns`, holds this load."""
        before, self._load = self._load, load
        since_ns, until_ns = self._began_ns, now_ns
        if self._first_took_ns is not None:
            until_ns = min(until_ns, self._first_took_ns)
        was_idle, self._was_idle = self._was_idle, False
        self._began_ns, self._first_took_ns = now_ns, None
        if load is None or self.rules.mode is Mode.OFF:
            return
        if was_idle and before is not None and until_ns > since_ns:
            self._idle(before, since_ns, until_ns)
        self._was_idle = self.forecaster.is_idle(load)
        self._ledger.settle(now_ns)
        for place in self._ledger.due_returns(now_ns):
            forecast = self._forecast(place.newcomer, now_ns)
            would = self._would(place.newcomer, OnOverload.REJECT, forecast)
            self._ledger.came_back(place, is_admitted=would is Action.ADMIT)

    def _idle(self, load: EngineLoad, since_ns: int, until_ns: int) -> None:
        """Nobody asked anything in this time: an engine that does nothing sends no looks.

        Who was told to come back then would have been let in, as everybody is.
        """
        for place in self._ledger.due_returns(until_ns):
            self._ledger.came_back(place, is_admitted=True)
        rate = speed(load, self.rules.top_rank, has_room=True)
        self._ledger.idle(rate, since_ns, until_ns, load.plan.order)

    def took(self, newcomer: Newcomer, verdict: Verdict, arrival_ns: int) -> None:
        """It was let in and goes to the engine; `arrival_ns` is that of its order."""
        if self.rules.mode is Mode.OFF:
            return
        first_ns = self._first_took_ns
        self._first_took_ns = arrival_ns if first_ns is None else min(first_ns, arrival_ns)
        self.forecaster.took(newcomer, arrival_ns, self._load)
        if verdict.forecast is not None:
            self.forecaster.expects(newcomer, verdict.forecast, arrival_ns)
        if len(self._followed) >= MOST_FOLLOWED:
            self.left(next(iter(self._followed)))
        place = self._standing(newcomer, arrival_ns)
        self._followed[newcomer.id] = place
        self._num_taken += 1
        every = self.rules.check_every
        if verdict.would is not Action.ADMIT:
            self._ledger.doubt(place)
        elif every and self._num_taken % every == 0:
            self._ledger.check(place)

    def refused(self, newcomer: Newcomer, verdict: Verdict, now_ns: int) -> None:
        """It was sent away, or served as another tier, on the strength of this verdict."""
        hint_ns = (verdict.retry_after_ms or 0) * NS_PER_MS
        self._ledger.refuse(self._standing(newcomer, now_ns), hint_ns)

    def first_token(self, request_id: str, now_ns: int, made_ns: int | None = None) -> None:
        """One let in has its first token; the engine made it at `made_ns`, where that is known."""
        place = self._followed.pop(request_id, None)
        if place is None:
            return
        self.forecaster.first_token(request_id, now_ns, made_ns)
        self._ledger.truth(request_id, is_on_time=now_ns <= place.due_ns)
        if self._load is not None:
            self._ledger.served(place, now_ns, self._load.plan.order)

    def left(self, request_id: str) -> None:
        """One let in ended without a first token."""
        place = self._followed.pop(request_id, None)
        if place is not None:
            if self._began_ns > place.due_ns:  # nobody saw a first token in time
                self._ledger.gave_up(request_id)
                self.forecaster.missed(request_id, self._began_ns)
            else:
                self.forecaster.forget(request_id)
            self._ledger.forget(request_id)
