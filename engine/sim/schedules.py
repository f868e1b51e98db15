"""Tiny random schedules: a few requests in a tiny pool, parked at random, by a late faulty copier.

One seed is one schedule: capacity, requests, when who arrives and leaves, whom the policy carries,
and how copies end. Everybody must get the right answer or a reason, nothing may leak, and no
schedule may go round in circles. It knows one schedule and counts; who runs a million keeps sums.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from engine.core.batch import Batch, StepResult
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.errors import RequestRefused
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.memory_moves import MAX_PREEMPTIONS
from engine.core.policy import NO_LIMIT, Rank, Room, SchedulingPolicy, StepLimits, Traffic, View
from engine.core.request import FinishReason, Request, RequestOrder, SamplingParams, Slo
from engine.core.stats import RequestStats, TokenEvent
from engine.sim.contents import ContentExecutor, CopierDice, right_answer
from engine.sim.executor import SimulatedFault

MOST_REQUESTS = 6
CHECKED_ONE_IN = 8  # steps after which all books are walked; always at the end
# Steps without a token, an end, a fault or a lost copy: more is a livelock.
MOST_QUIET_STEPS = 150

# A copy costs next to nothing, or so much that victims are rather dropped.
_PROFILES = tuple(
    LatencyProfile(
        name="tiny",
        base_ns=2.0,
        token_ns=0.4,
        pair_ns=0.01,
        link_out_ns_per_token=link_ns,
        link_in_ns_per_token=link_ns,
    )
    for link_ns in (0.01, 100.0)
)


class DicePolicy(SchedulingPolicy):
    """First come, first served by rank; but parks and brings back whom the dice name."""

    name = "dice"
    ranks_move = False
    swaps = True

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._park_share = rng.choice((0.05, 0.2, 0.6, 1.0))
        self._back_share = rng.choice((0.1, 0.5, 1.0))
        self._displaces = rng.random() < 0.7
        self._room = Room(spare_blocks=rng.choice((0, 0, 1)))
        self._limits = StepLimits(
            max_tokens=rng.choice((1, 4, NO_LIMIT, NO_LIMIT)),
            max_copy_tokens=rng.choice((0, 12, NO_LIMIT, NO_LIMIT)),
        )

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Rank, then arrival."""
        return (request.order.slo.rank, request.order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        """The same."""
        return (request.order.slo.rank, request.order.arrival_ns, request.id)

    def limits(self, view: View) -> StepLimits:
        """Those of the schedule."""
        return self._limits

    def room(self, request: Request, view: View) -> Room:
        """That of the schedule."""
        return self._room

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        """Anybody behind, or nobody."""
        return self._displaces

    def traffic(self, view: View) -> Traffic:
        """Whomever the dice name."""
        roll, park, back = self._rng.random, self._park_share, self._back_share
        running = (*view.prefilling, *view.decoding)
        return Traffic(
            park=[request for request in running if roll() < park],
            back=[request for request in view.parked if roll() < back],
        )


class Schedule:
    """One random schedule; `run` runs it and returns its counts, or raises AssertionError."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self._rng = rng
        self._counts = Counter[str]()
        self._now_ns = 10
        size = rng.choice((1, 2, 3, 4))
        num_blocks = rng.randrange(16, 50) // size
        self._capacity = Capacity(
            num_blocks=num_blocks,
            block_size=size,
            max_model_len=min(24, num_blocks * size),
            max_batch_tokens=rng.choice((1, 4, 16, 16)),
            max_batch_requests=rng.choice((1, 3, 8, 8)),
            num_host_blocks=rng.choice((2, 8, 60, 60)),
            host_is_exact=rng.random() < 0.9,
        )
        self._is_healthy = rng.random() < 0.3
        self._leaves = 0.0 if self._is_healthy else rng.choice((0.0, 0.02, 0.1))
        dice = CopierDice(
            haste=rng.choice((1.0, 0.5, 0.1, 0.02)),
            lost_share=0.0 if self._is_healthy else rng.choice((0.0, 0.1, 0.4)),
            fault_share=0.0 if self._is_healthy else rng.choice((0.0, 0.0, 0.05)),
        )
        self._executor = ContentExecutor(self._capacity, rng, dice)
        profile = rng.choice((None, *_PROFILES))
        self._core = EngineCore(
            self._capacity,
            DicePolicy(rng),
            CoreConfig(),
            enable_prefix_cache=rng.random() < 0.5,
            model=None if profile is None else LatencyModel(profile),
        )
        self._pace = rng.choice((0.1, 0.4, 0.9))
        self._to_come = rng.randrange(3, MOST_REQUESTS + 1)
        self._orders: dict[str, RequestOrder] = {}
        self._answers: dict[str, list[int]] = {}
        self._live: dict[str, str] = {}  # and where each stands, as seen from outside
        self._arrivals: dict[int, tuple[str, str, str]] = {}  # of copies: who, from where, where
        self._quiet_steps = 0

    def run(self) -> Counter[str]:
        """Run it to its end."""
        core, counts = self._core, self._counts
        self._submit()
        while core.has_work or self._to_come:
            self._meddle()
            batch = core.start_step(self._now_ns)
            if batch is None:
                self._now_ns += 5
                continue
            self._note_start(batch)
            self._meddle()
            self._finish(batch)
            if counts["steps"] % CHECKED_ONE_IN == 0:
                core.check_integrity()
        self._check_end()
        counts["schedules"] += 1
        counts["healthy_schedules"] += self._is_healthy
        return counts

    def _meddle(self) -> None:
        """Between any two operations somebody may come, and somebody may leave."""
        rng = self._rng
        self._now_ns += rng.randrange(3)
        if self._to_come and rng.random() < self._pace:
            self._submit()
        if self._leaves and self._live and rng.random() < self._leaves:
            name = rng.choice(list(self._live))
            self._counts[f"aborts_{self._live[name]}"] += 1
            self._take(self._core.abort(name, self._now_ns))

    def _submit(self) -> None:
        rng, self._to_come = self._rng, self._to_come - 1
        name = str(self._to_come)
        max_tokens = rng.randrange(1, 13)
        length = min(rng.randrange(1, 12), self._capacity.max_model_len - max_tokens)
        start = rng.randrange(2)  # half of the prompts begin alike
        order = RequestOrder(
            id=name,
            prompt=tuple([start] * (length - 1) + [rng.randrange(9)]),
            sampling=SamplingParams(max_tokens=max_tokens),
            arrival_ns=self._now_ns,
            slo=Slo(rank=rng.randrange(2)),
        )
        try:
            self._core.submit(order, self._now_ns)
        except RequestRefused as refusal:
            raise AssertionError(f"{refusal.reason}: {refusal}") from refusal
        self._counts["requests"] += 1
        self._orders[name], self._answers[name] = order, []
        self._live[name] = "queued"

    def _note_start(self, batch: Batch) -> None:
        counts, places = self._counts, self._live
        counts["steps"] += 1
        counts["waiting_steps"] += not batch.chunks
        for chunk in batch.chunks:
            places[chunk.request_id] = "decoding" if chunk.is_decode else "mid_prompt"
        for copy in batch.parks:
            places[copy.request_id] = "copying_out"
            self._arrivals[copy.number] = (copy.request_id, "copying_out", "parked")
        for copy in batch.returns:
            places[copy.request_id] = "copying_in"
            self._arrivals[copy.number] = (copy.request_id, "copying_in", "back")
        counts["parks"] += len(batch.parks)
        counts["returns"] += len(batch.returns)
        self._quiet_steps += 1
        assert self._quiet_steps <= MOST_QUIET_STEPS, "a livelock (law L12)"
        counts["most_quiet_steps"] = max(counts["most_quiet_steps"], self._quiet_steps)

    def _finish(self, batch: Batch) -> None:
        core, counts = self._core, self._counts
        result: StepResult | None = None
        try:
            result = self._executor.execute(batch)
        except SimulatedFault as fault:
            self._now_ns += fault.elapsed_ns
            counts["faults"] += 1
            self._quiet_steps = 0
            events = core.fail_step(batch, self._now_ns, str(fault))
        if result is not None:
            self._now_ns += result.elapsed_ns
            counts["copies_arrived"] += len(result.copied)
            counts["copies_lost"] += len(result.lost_copies)
            counts["late_copies"] += self._executor.num_copies
            for number in result.copied:
                name, before, after = self._arrivals[number]
                if self._live.get(name) == before:  # else it left meanwhile
                    self._live[name] = after
            if result.lost_copies:
                self._quiet_steps = 0
            events = core.finish_step(batch, result, self._now_ns)
        self._take(events)

    def _take(self, events: Iterable[TokenEvent]) -> None:
        for event in events:
            self._quiet_steps = 0
            name = event.request_id
            if event.token_id is not None:
                self._answers[name].append(event.token_id)
            if event.stats is not None:
                del self._live[name]
                self._check_answer(event.stats)

    def _check_answer(self, stats: RequestStats) -> None:
        """No lost token, no wrong one; after an inexact return an answer may be another."""
        name, reason = stats.request_id, stats.finish_reason
        order, answer = self._orders[name], self._answers[name]
        counts = self._counts
        counts[f"ended_{reason.value}"] += 1
        counts["preemptions"] += stats.preemptions
        counts["most_preemptions"] = max(counts["most_preemptions"], stats.preemptions)
        assert stats.preemptions <= MAX_PREEMPTIONS, "law L16"
        assert stats.parks <= len(order.prompt) + len(answer), "parked without progress (law L16)"
        if reason is FinishReason.LENGTH:
            assert len(answer) == order.sampling.max_tokens, "an answer of another length"
        else:
            assert reason in (FinishReason.CANCELLED, FinishReason.FAILED), "a strange end"
            assert not self._is_healthy, "a request was lost"
        if self._capacity.host_is_exact or not stats.parks:
            right = right_answer(order)[: len(answer)]
            assert answer == right, f"a wrong token (laws L30 to L33): {answer}, not {right}"
            counts["tokens_checked"] += len(answer)
            counts["parked_answers_checked"] += stats.parks > 0

    def _check_end(self) -> None:
        """Nothing is held, nobody is missing (laws L1, L3, L7)."""
        self._core.check_integrity()
        snapshot = self._core.snapshot(self._now_ns)
        assert not self._live, "somebody never ended (law L1)"
        assert snapshot.free_blocks == snapshot.num_blocks, "blocks leaked (law L3)"
        assert snapshot.free_host_blocks == snapshot.num_host_blocks, "host blocks leaked (law L3)"
        assert self._executor.num_copies == 0, "a copy is under way for nobody"
        assert snapshot.finished_total == snapshot.submitted_total == self._counts["requests"]
