"""When a newcomer will have its first token: the queue drained in thought, corrected by experience.

It knows loads, requests let in and their first tokens; it decides nothing and reads no clock. The
future arrivals that may go before a newcomer are those of the past, replayed from a few moments:
how many of these paths leave it behind is its risk. What forecasts of the same kind came to gives
the correction and the interval.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.arrivals import MOST_ARRIVALS, Arrivals
from engine.core.calibration import PRIOR, Experience, Way, quantile
from engine.core.clock import NS_PER_S
from engine.core.drain import Coming, Queue, decode_ns
from engine.core.load import EngineLoad
from engine.core.prompt_plan import PromptOrder
from engine.core.request import LengthEstimate, Slo

FIRST_PATHS = 4  # where none of these gives it up, the others would hardly
MORE_PATHS = 8  # where less than half of these give it up, it is not known better by more
TIGHT = 0.6  # of the target: only who comes nearer is put to the paths
LOW, HIGH = 0.05, 0.95  # the ends of the interval
SOME_LUCK = 0.75  # of the chance left by the risk, before any outcome of its kind is known
LEAST_PAIRS = 8  # outcomes of a kind, before it is taken for checked
MOST_RISK = 3  # quarters, from which on forecasts are of one kind
RETRY_PATHS = 3
MOST_PENDING = 4096
LONGEST_WAY_NS = NS_PER_S // 10  # from the door to the engine, of those looked for
FARTHEST_NS = 60 * NS_PER_S  # that a drain is simulated into the future
LEAST_DRAIN = 0.03  # of the speed, that is left to shorten a queue
UNKNOWN_LENGTH = LengthEstimate(256.0, 640.0)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A request at the door, as far as a forecast needs it."""

    id: str
    tier: str
    slo: Slo
    num_prompt_tokens: int
    estimate: LengthEstimate = UNKNOWN_LENGTH
    waited_ns: int = 0  # since it arrived: read, tokenised, its answer's length guessed
    num_cached_tokens: int = 0  # of its prompt, that the engine should have in its prefix cache

    @property
    def num_fresh_tokens(self) -> int:
        """Tokens of its prompt that have to be computed."""
        return max(1, self.num_prompt_tokens - self.num_cached_tokens)

    @property
    def target_ns(self) -> int:
        """The time to first token that its tier promises, from its arrival."""
        return self.slo.first_token_due_ns(0, self.num_prompt_tokens)

    @property
    def left_ns(self) -> int:
        """What is left of that, 0 where it is over."""
        return max(0, self.target_ns - self.waited_ns)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A predicted time to first token, its 90 % interval, and the chance to be on time.

    Times count from the arrival, as promises do; of them `waited_ns` are over. `raw_ns` is the
    simulation's own answer and counts from now. `risk` is the share of simulated futures in which
    the policy gives the newcomer up. `basis` names the kind of forecast, `evidence` says how many
    outcomes of its tier are known, and is 0 where hardly one of its kind was seen lately.
    """

    ttft_ns: float
    low_ns: float
    high_ns: float
    on_time: float
    target_ns: int
    raw_ns: float
    risk: float = 0.0
    basis: str = ""
    evidence: int = 0
    waited_ns: int = 0


class Forecaster:
    """One per engine. Tell it of everyone let in (`took`), and of first tokens and ends."""

    def __init__(self) -> None:
        self._arrivals = Arrivals()
        self._experience = Experience()
        self._way = Way()
        # Let in and without a first token: when, and what.
        self._pending: dict[str, tuple[int, Coming]] = {}

    # What is let in, and what becomes of it

    def took(self, newcomer: Newcomer, arrival_ns: int, load: EngineLoad | None) -> None:
        """A request goes to the engine; `arrival_ns` is that of its order."""
        coming = _coming(newcomer, arrival_ns, load)
        self._arrivals.add(coming)
        if len(self._pending) >= MOST_PENDING:
            del self._pending[next(iter(self._pending))]
        self._pending[newcomer.id] = (arrival_ns + newcomer.waited_ns, coming)

    def expects(self, newcomer: Newcomer, forecast: Forecast, arrival_ns: int) -> None:
        """The outcome of this forecast will be told: it corrects those to come."""
        kind, said_ns = (newcomer.tier, forecast.basis), arrival_ns + forecast.waited_ns
        self._experience.expect(
            newcomer.id, kind, forecast.raw_ns, forecast.target_ns, said_ns, arrival_ns
        )

    def first_token(self, request_id: str, now_ns: int, made_ns: int | None = None) -> None:
        """An outcome: the first token is here; the engine made it at `made_ns`."""
        self._pending.pop(request_id, None)
        if made_ns is not None:
            self._way.took(now_ns - made_ns)
        self._experience.first_token(request_id, now_ns)

    def missed(self, request_id: str, now_ns: int) -> None:
        """It left without a first token, and that was due: an outcome, though not how late."""
        self._pending.pop(request_id, None)
        self._experience.missed(request_id, now_ns)

    def forget(self, request_id: str) -> None:
        """It left without a first token."""
        self._pending.pop(request_id, None)
        self._experience.forget(request_id)

    # Forecasts

    def is_idle(self, load: EngineLoad) -> bool:
        """True where nobody waits for a first token, neither in the load nor on the way there."""
        return load.is_idle and not self._on_the_way(load)

    def forecast(
        self, newcomer: Newcomer, load: EngineLoad, now_ns: int, began_ns: int
    ) -> Forecast | None:
        """Return the forecast for a request that arrives now; None where nothing is known.

        `began_ns` is the time of the snapshot that brought the load: the next step began then.
        """
        queue = self._queue(newcomer, load, now_ns, began_ns)
        if not queue.is_known:
            return None
        left_ns = newcomer.left_ns
        done_ns = queue.plain_ns(self._arrivals.mirrored(now_ns, left_ns))
        raw_ns = queue.ttft_ns(done_ns) + self._way.usual_ns
        risk = 0.0
        basis = "step" if done_ns * 2 < queue.full_ns else "queue"
        if queue.is_seat_bound:
            # Triage reckons with steps and does not know of seats: nobody is given up before its
            # time is over, and then it goes behind. So those behind too many get a seat about when
            # they are due, or long after: how often, outcomes tell.
            basis = "seats"
            if raw_ns > left_ns and load.plan.order is PromptOrder.DUE:
                basis, raw_ns = "late", max(float(left_ns), raw_ns - done_ns)
        elif raw_ns > TIGHT * left_ns and load.plan.order is PromptOrder.DUE:
            basis = "tight"
            if newcomer.slo.rank > 0:
                raw_ns, risk = self._try_paths(queue, raw_ns)
        if risk:
            # Above a half they share their evidence: each alone is seldom seen.
            basis = f"risk {min(math.ceil(risk * 4), MOST_RISK)}/4"
        return self._corrected(newcomer, raw_ns, risk, basis, now_ns)

    def retry_s(
        self, newcomer: Newcomer, load: EngineLoad, now_ns: int, steps_s: Sequence[int]
    ) -> int:
        """Return the first of these delays after which it should be on time, else the last.

        The same request, come back by then, is put into the queue as it will have drained: where
        due times count by the same simulation, else by what is ahead, served and refilled.
        """
        queue = self._queue(newcomer, load, now_ns, now_ns)
        if not queue.is_known:
            return steps_s[0]
        if load.plan.order is not PromptOrder.DUE:
            late_ns = queue.ttft_ns(queue.plain_ns(())) - newcomer.left_ns
            drain = max(LEAST_DRAIN, 1.0 - queue.fullness(self._arrivals.flow(now_ns)))
            return next(
                (step for step in steps_s if step * NS_PER_S * drain >= late_ns), steps_s[-1]
            )
        for step in steps_s[:-1]:
            delay_ns = step * NS_PER_S
            if delay_ns > FARTHEST_NS:
                break
            later = self._queue(newcomer, load, now_ns, now_ns, delay_ns)
            starts = self._arrivals.starts(now_ns, later.me.due_ns)[:RETRY_PATHS]
            paths = [(self._arrivals.before(start, MOST_ARRIVALS), start) for start in starts]
            if not any(later.place(*path).is_given_up for path in paths):
                return step
        return steps_s[-1]

    def _queue(
        self,
        newcomer: Newcomer,
        load: EngineLoad,
        now_ns: int,
        began_ns: int,
        delay_ns: int = 0,
    ) -> Queue:
        me = _coming(newcomer, 0, load)
        me = me._replace(due_ns=newcomer.left_ns + delay_ns)
        flow = self._arrivals.flow(now_ns, below_rank=me.rank) if load.plan.by_class else 0.0
        pending = self._on_the_way(load)
        high = newcomer.estimate.high
        return Queue(load, me, pending, now_ns, began_ns, flow, high)

    def _on_the_way(self, load: EngineLoad) -> list[Coming]:
        """Return those let in whom the load does not hold, and who have no first token yet."""
        found = []
        for took_ns, one in reversed(self._pending.values()):
            if took_ns > load.at_ns or one.at_ns > load.last_arrival_ns:
                found.append(one)
            elif took_ns < load.at_ns - LONGEST_WAY_NS:
                break
        return found

    def _try_paths(self, queue: Queue, plain_ns: float) -> tuple[float, float]:
        """Return time and risk over the paths; the median of those that do not give it up."""
        arrivals, times, number = self._arrivals, [], 0
        for begin_ns in arrivals.starts(queue.now_ns, queue.me.due_ns):
            place = queue.place(arrivals.before(begin_ns), begin_ns)
            number += 1
            if not place.is_given_up:
                times.append(queue.ttft_ns(place.done_ns) + self._way.usual_ns)
            if number == FIRST_PATHS == len(times) or (
                number == MORE_PATHS and 2 * len(times) > number
            ):
                break
        risk = 1.0 - len(times) / number
        if risk >= 0.5:
            second_ns = queue.load.plan.second_ns
            return max(plain_ns, float(second_ns or queue.me.due_ns)), risk
        times.sort()
        return times[len(times) // 2], risk

    def _corrected(
        self, newcomer: Newcomer, raw_ns: float, risk: float, basis: str, now_ns: int
    ) -> Forecast:
        """Return the forecast with what others of its kind came to."""
        target_ns, waited_ns, left_ns = newcomer.target_ns, newcomer.waited_ns, newcomer.left_ns
        by_raw, by_target = self._experience.bands(newcomer.tier, basis)
        # Where being given up is in question, what counts is where the target stands.
        if risk:
            band, reference, limit, since_ns = by_target, float(target_ns), 0.0, 0
            prior = SOME_LUCK * (1.0 - risk)
        else:
            band, reference, since_ns = by_raw, raw_ns, waited_ns
            limit = math.log(max(left_ns, 1) / max(raw_ns, 1.0))
            prior = bisect_right(PRIOR, limit) / len(PRIOR)
        errors = band.errors(now_ns)
        if risk >= 0.5 and band.num_pairs(now_ns) >= LEAST_PAIRS:
            ttft_ns = target_ns * math.exp(quantile(errors, 0.5))
        elif risk >= 0.5:
            ttft_ns = waited_ns + raw_ns
        else:
            ttft_ns = waited_ns + raw_ns * math.exp(by_raw.middle(now_ns))
        return Forecast(
            ttft_ns=ttft_ns,
            low_ns=since_ns + reference * math.exp(quantile(errors, LOW)),
            high_ns=since_ns + reference * math.exp(quantile(errors, HIGH)),
            on_time=band.chance(limit, prior, now_ns),
            target_ns=target_ns,
            raw_ns=raw_ns,
            risk=risk,
            basis=basis,
            # Outcomes of other kinds say nothing of this one: its chance is only the prior's yet.
            evidence=self._experience.num_outcomes(newcomer.tier, now_ns)
            if by_target.is_checked(LEAST_PAIRS, now_ns)
            else 0,
            waited_ns=waited_ns,
        )


def _coming(newcomer: Newcomer, at_ns: int, load: EngineLoad | None) -> Coming:
    tokens, fresh = newcomer.num_prompt_tokens, newcomer.num_fresh_tokens
    dear_ns = 0.0 if load is None else decode_ns(load, tokens, newcomer.estimate.middle)
    return Coming(at_ns, newcomer.slo.rank, fresh, newcomer.target_ns, dear_ns)
