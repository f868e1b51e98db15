"""What the door expects of first tokens, and how it was borne out; it lets nobody in.

It shows every load of the engine to the gatekeeper, who judges, and tells it of everyone who was
let in or sent away, of first tokens and of ends. How far forecasts were off is kept for the latest
of each tier.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from engine.core.admission import HINT_STEPS_S, Action, Gatekeeper, OnOverload, Verdict
from engine.core.forecast import UNKNOWN_LENGTH, Forecast, Forecaster, Newcomer
from engine.core.refusals import LedgerCounts
from engine.core.stats import Snapshot, StepStats
from engine.serving.client import EngineClient, EngineInfo
from gateway.plan import Plan

MOST_SCORES = 512  # of a tier
MOST_TIERS = 64


@dataclass(frozen=True, slots=True)
class Score:
    """How the latest forecasts of one tier were borne out.

    Errors are shares of the true time to first token, the middle one and the one that nine in ten
    stay below; `covered` is the share within the interval, which is meant to hold nine in ten.
    """

    num: int
    median_error: float
    high_error: float
    covered: float


class ScoreBoard:
    """The latest forecasts of each tier with what came; bounded."""

    def __init__(self) -> None:
        self._pairs: dict[str, deque[tuple[float, bool]]] = {}

    def add(self, tier: str, forecast: Forecast, actual_ns: int) -> None:
        """A first token came `actual_ns` after this forecast."""
        pairs = self._pairs.get(tier)
        if pairs is None:
            if len(self._pairs) >= MOST_TIERS:
                return
            pairs = self._pairs[tier] = deque(maxlen=MOST_SCORES)
        actual = max(float(actual_ns), 1.0)
        error = abs(forecast.ttft_ns - actual) / actual
        pairs.append((error, forecast.low_ns <= actual <= forecast.high_ns))

    def read(self) -> dict[str, Score]:
        """Return the score of each tier that has any."""
        scores: dict[str, Score] = {}
        for tier, pairs in list(self._pairs.items()):
            known = list(pairs)
            errors = sorted([error for error, _ in known])
            scores[tier] = Score(
                num=len(known),
                median_error=errors[len(errors) // 2],
                high_error=errors[min(len(errors) - 1, int(0.9 * len(errors)))],
                covered=sum([hit for _, hit in known]) / len(known),
            )
        return scores


class Forecasts:
    """Judges plans by the engine as it is now; used from the event loop."""

    def __init__(self, engine: EngineClient, gatekeeper: Gatekeeper) -> None:
        self._engine = engine
        self._gatekeeper = gatekeeper
        self._info: EngineInfo | None = None
        self._seen: Snapshot | None = None
        self._open: dict[str, tuple[str, Forecast, int]] = {}  # whose tier, what was said, when
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
                self._gatekeeper.forecaster = Forecaster()
            self._info = engine.info
        if now is not None and now is not self._seen:
            self._seen = now
            self._gatekeeper.look(now.load, now.at_ns)

    def judge(self, plan: Plan, now_ns: int) -> Verdict:
        """Return what to do with a plan, by its first choice."""
        self._look()
        return self._gatekeeper.judge(
            newcomer_of(plan), OnOverload(plan.tier.on_overload.value), now_ns
        )

    def retry_after_ms(self, plan: Plan, now_ns: int) -> int | None:
        """Return after how long the plan should be on time, in steps; None: nothing is known."""
        self._look()
        load = None if self._seen is None else self._seen.load
        if load is None:
            return None
        forecaster = self._gatekeeper.forecaster
        return 1000 * forecaster.retry_s(newcomer_of(plan), load, now_ns, HINT_STEPS_S)

    def took(self, plan: Plan, verdict: Verdict, now_ns: int) -> None:
        """The plan's choices go to the engine; by the first of them the forecast is judged."""
        for index in range(plan.num_choices):
            told = verdict if index == 0 else Verdict(Action.ADMIT, Action.ADMIT)
            self._gatekeeper.took(newcomer_of(plan, index), told, plan.arrival_ns)
        if verdict.forecast is not None:
            first = newcomer_of(plan)
            self._open[first.id] = (first.tier, verdict.forecast, now_ns)

    def refused(self, plan: Plan, verdict: Verdict, now_ns: int) -> None:
        """The plan is not served in its tier, for what was forecast there."""
        self._gatekeeper.refused(newcomer_of(plan), verdict, now_ns)

    def first_token(self, request_id: str, at_ns: int) -> None:
        """A request has its first token."""
        self._gatekeeper.first_token(request_id, at_ns)
        said = self._open.pop(request_id, None)
        if said is not None:
            tier, forecast, said_ns = said
            self.scores.add(tier, forecast, at_ns - said_ns)

    def left(self, plan: Plan) -> None:
        """A request is over; without a first token it says nothing of its forecast."""
        for index in range(plan.num_choices):
            request_id = plan.engine_id(index)
            self._open.pop(request_id, None)
            self._gatekeeper.left(request_id)


def newcomer_of(plan: Plan, index: int = 0) -> Newcomer:
    """Return what a forecast needs to know of a choice."""
    return Newcomer(
        id=plan.engine_id(index),
        tier=plan.tier.name,
        slo=plan.slo,
        num_prompt_tokens=len(plan.prompt_of(index)),
        estimate=plan.estimate_of(index) or UNKNOWN_LENGTH,
    )
