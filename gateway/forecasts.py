"""What the door expects of first tokens, and how it was borne out; it lets nobody in.

It shows every load of the engine to the gatekeeper, who judges, and tells it of everyone who was
let in or sent away, of first tokens and of ends. How far forecasts were off is kept for the latest
of each tier.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from engine.core.admission import (
    HINT_STEPS_S,
    MOST_TIERS,
    Action,
    Gatekeeper,
    OnOverload,
    Verdict,
)
from engine.core.forecast import UNKNOWN_LENGTH, Forecast, Newcomer
from engine.core.refusals import LedgerCounts
from engine.core.stats import Snapshot, StepStats
from engine.serving.client import EngineClient, EngineInfo
from gateway.plan import Plan
from gateway.prefix_memory import PrefixMemory

MOST_SCORES = 512  # of a tier


@dataclass(frozen=True, slots=True)
class Score:
    """How the latest forecasts of one tier were borne out.

    Errors are shares of the true time to first token, the middle one and the one that nine in ten
    stay below; `of_target` is the middle one as a share of the time that the tier promises.
    `covered` is the share within the interval, which is meant to hold nine in ten, `foretold` that
    of which it was said rightly whether the first token would come in time.
    """

    num: int
    median_error: float
    high_error: float
    covered: float
    of_target: float = 0.0
    foretold: float = 0.0


class Outcome(NamedTuple):
    """One forecast and what came, times in ns."""

    error: float
    is_covered: bool
    of_target: float
    is_foretold: bool


class ScoreBoard:
    """The latest forecasts of each tier with what came; bounded."""

    def __init__(self) -> None:
        self._outcomes: dict[str, deque[Outcome]] = {}

    def add(self, tier: str, forecast: Forecast, actual_ns: int) -> None:
        """A first token was shown `actual_ns` after the arrival of its request."""
        outcomes = self._outcomes.get(tier)
        if outcomes is None:
            if len(self._outcomes) >= MOST_TIERS:  # of tiers that are not there any more, mostly
                del self._outcomes[next(iter(self._outcomes))]
            outcomes = self._outcomes[tier] = deque(maxlen=MOST_SCORES)
        actual, target = max(float(actual_ns), 1.0), max(forecast.target_ns, 1)
        off = abs(forecast.ttft_ns - actual)
        outcomes.append(
            Outcome(
                off / actual,
                forecast.low_ns <= actual <= forecast.high_ns,
                off / target,
                (forecast.ttft_ns <= target) == (actual <= target),
            )
        )

    def read(self) -> dict[str, Score]:
        """Return the score of each tier that has any."""
        scores: dict[str, Score] = {}
        for tier, outcomes in list(self._outcomes.items()):
            known = list(outcomes)
            if not known:  # metrics are read by another thread, which saw it before its first one
                continue
            errors = sorted([one.error for one in known])
            shares = sorted([one.of_target for one in known])
            scores[tier] = Score(
                num=len(known),
                median_error=errors[len(errors) // 2],
                high_error=errors[min(len(errors) - 1, int(0.9 * len(errors)))],
                covered=sum([one.is_covered for one in known]) / len(known),
                of_target=shares[len(shares) // 2],
                foretold=sum([one.is_foretold for one in known]) / len(known),
            )
        return scores


class Forecasts:
    """Judges plans by the engine as it is now; used from the event loop."""

    def __init__(self, engine: EngineClient, gatekeeper: Gatekeeper) -> None:
        self._engine = engine
        self._gatekeeper = gatekeeper
        self._info: EngineInfo | None = None
        self._seen: Snapshot | None = None
        self._prefixes: PrefixMemory | None = None
        self._latest: tuple[str, list[int]] = ("", [])  # whose prompt, and its blocks' keys
        self._open: dict[str, tuple[str, Forecast, int]] = {}  # tier, what was said, arrival
        self.scores = ScoreBoard()

    @property
    def ledger(self) -> LedgerCounts:
        """What became of those who were refused."""
        return self._gatekeeper.ledger

    def on_step(self, _stats: StepStats) -> None:
        """A step is over: there is a new snapshot."""
        self._look()

    def _look(self) -> None:
        """Show the gatekeeper the newest load.

        Another engine knows of nobody who came before it: what is coming is learned anew.
        """
        engine, now = self._engine, self._engine.snapshot
        if engine.info is not self._info:
            if self._info is not None:
                self._gatekeeper.restarted()
            info = self._info = engine.info
            if info is not None:
                self._prefixes = PrefixMemory(info.block_size, info.num_blocks)
        if now is not None and now is not self._seen:
            self._seen = now
            self._gatekeeper.look(now.load, now.at_ns)

    def judge(self, plan: Plan, now_ns: int, *, may_probe: bool = True) -> Verdict:
        """Return what to do with a plan, by its first choice."""
        self._look()
        newcomer = self._newcomer(plan, 0, now_ns)
        on_overload = OnOverload(plan.tier.on_overload.value)
        return self._gatekeeper.judge(newcomer, on_overload, now_ns, may_probe=may_probe)

    def retry_after_ms(self, plan: Plan, now_ns: int) -> int | None:
        """Return after how long the plan should be on time, in steps; None: nothing is known."""
        self._look()
        load = None if self._seen is None else self._seen.load
        if load is None:
            return None
        forecaster = self._gatekeeper.forecaster
        return 1000 * forecaster.retry_s(
            self._newcomer(plan, 0, now_ns), load, now_ns, HINT_STEPS_S
        )

    def took(self, plan: Plan, verdict: Verdict, now_ns: int) -> None:
        """The plan's choices go to the engine; by the first of them the forecast is judged."""
        for index in range(plan.num_choices):
            told = verdict if index == 0 else Verdict(Action.ADMIT, Action.ADMIT)
            self._gatekeeper.took(self._newcomer(plan, index, now_ns), told, plan.arrival_ns)
            if self._prefixes is not None:
                self._prefixes.remember(self._keys(plan, index))
        if verdict.forecast is not None:
            self._open[plan.engine_id(0)] = (plan.tier.name, verdict.forecast, plan.arrival_ns)

    def refused(self, plan: Plan, verdict: Verdict, now_ns: int) -> None:
        """The plan is not served in its tier, for what was forecast there."""
        self._gatekeeper.refused(self._newcomer(plan, 0, now_ns), verdict, now_ns)

    def first_token(self, request_id: str, now_ns: int, made_ns: int) -> None:
        """A request has its first token here and now; the engine made it at `made_ns`."""
        self._gatekeeper.first_token(request_id, now_ns, made_ns)
        said = self._open.pop(request_id, None)
        if said is not None:
            tier, forecast, arrival_ns = said
            self.scores.add(tier, forecast, now_ns - arrival_ns)

    def left(self, plan: Plan) -> None:
        """A request is over; without a first token it says nothing of its forecast."""
        for index in range(plan.num_choices):
            request_id = plan.engine_id(index)
            self._open.pop(request_id, None)
            self._gatekeeper.left(request_id)

    def _newcomer(self, plan: Plan, index: int, now_ns: int) -> Newcomer:
        """Return what a forecast needs to know of a choice."""
        cached, seen = 0, self._seen
        if self._prefixes is not None and seen is not None and seen.cached_tokens_total:
            cached = self._prefixes.num_known(self._keys(plan, index))
        return Newcomer(
            id=plan.engine_id(index),
            tier=plan.tier.name,
            slo=plan.slo,
            num_prompt_tokens=len(plan.prompt_of(index)),
            estimate=plan.estimate_of(index) or UNKNOWN_LENGTH,
            waited_ns=max(0, now_ns - plan.arrival_ns),
            num_cached_tokens=cached,
        )

    def _keys(self, plan: Plan, index: int) -> list[int]:
        """Return the keys of a prompt's blocks; it is asked for several times in a row."""
        prefixes = self._prefixes
        if prefixes is None:
            return []
        # Choices of one prompt share them.
        name = f"{plan.heading.id}/{index // plan.choices_per_prompt}"
        if self._latest[0] != name:
            keys = prefixes.keys(plan.principal.salt, plan.prompt_of(index))
            self._latest = (name, keys)
        return self._latest[1]
