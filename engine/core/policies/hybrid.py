"""The hybrid: SLAI says how long a request can wait, ALISE where it waits and who is worth it.

What it takes from where, and what is its own (docs/scheduling.md tells why, with figures):

* a step has a time budget, not a token budget: a share of the tightest gap between tokens that was
  promised to anyone decoding, through the latency model (fixed 512 tokens is SLAI's and Sarathi's);
* a decode is due when it cannot be skipped now and still be on time in the next step (SLAI's last
  schedulable time, in time instead of mean batches), and pace follows the use of memory;
* prompts go by class, then by due time; where not all of a class can be on time the dearest are
  given up, so that the fewest miss (triage.py). A prompt that missed gets a second due time, and
  behind them all the rest wait, shortest first with ageing;
* memory goes by class, then to whoever is nearest its end by ALISE's predicted lengths; a class
  ahead may displace one behind;
* whoever can be away without breaking its promise is parked when a prompt that can still be on time
  needs the room, and comes back in time (patience.py).

Time is the only thing it learns of the device, through the latency model; it has no tiers by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from engine.core.latency_model import LatencyModel, StepCost
from engine.core.length_predictor import remaining_tokens
from engine.core.policies.fair_seats import FairSeats
from engine.core.policies.hybrid_options import HybridOptions
from engine.core.policies.open_prompts import LOST, SECOND, OpenPrompts
from engine.core.policies.patience import absence_ns, due_ns
from engine.core.policies.standing import away_words, news_words, prompt_words
from engine.core.policies.thrash import ThrashGuard
from engine.core.policies.triage import give_up
from engine.core.policy import (
    NO_LIMIT,
    NO_NEWS,
    NO_TRAFFIC,
    Rank,
    Room,
    SchedulingPolicy,
    StepLimits,
    Traffic,
    View,
)
from engine.core.prompt_plan import PromptDue, PromptOrder, PromptPlan
from engine.core.request import Request, Status, TbtMode

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
UNKNOWN_LENGTH = 256.0

# Requests looked at per step, so that its cost stays bounded however many wait or are parked.
MOST_JOBS = 64
LEAST_JOBS = 32  # of a class
MOST_BACK = 4
LINK_STEPS = 2.0  # how many steps' worth of copies may queue on the link


class Hybrid(SchedulingPolicy):
    """See the module's text; `model` is the one that the engine corrects."""

    name = "hybrid"
    ranks_move = True

    def __init__(self, model: LatencyModel, options: HybridOptions | None = None) -> None:
        self._model = model
        self._options = options or HybridOptions()
        self._second_ns = int(self._options.second_s * NS_PER_S)
        self._pause_ns = int(self._options.pause_s * NS_PER_S)
        self._least_pause_ns = int(self._options.least_pause_s * NS_PER_S)
        # Requests without a first token, and those among them given up for now.
        self._prompts = OpenPrompts(model, self._second_ns, self._options.second_weight)
        self._given_up: set[str] = set()
        self._told: set[str] = set()  # those of the step before
        self._guard = ThrashGuard(model.profile)
        self._back_at_ns: dict[str, int] = {}  # of parked requests
        self._asked: dict[str, Request] = {}  # who may have been started in the last step
        self._num_starts = 0  # since the oldest of the lost had its turn
        self._turn: Request | None = None  # whose turn it is
        self._seats = FairSeats()
        self._claims: set[str] = set()  # prompts of tenants without a seat
        # The present, read once per step in `limits`.
        self._step_ns = 0
        self._soon_ns = 0
        self._pace = 1.0
        self._first_open_rank = NO_LIMIT
        self._wanted_blocks = 0

    @property
    def swaps(self) -> bool:
        """True unless the switch is off."""
        return bool(self._options.park)

    @property
    def prompt_plan(self) -> PromptPlan:
        """By class and due time."""
        options = self._options
        return PromptPlan(
            order=PromptOrder.DUE if options.deadlines else PromptOrder.ARRIVAL,
            by_class=True,
            second_ns=self._second_ns,
            second_weight=options.second_weight,
            decode_weight=options.decode_weight,
            ageing=options.ageing,
        )

    def prompt_due(self, request: Request) -> PromptDue:
        """When it is due by the latest step's look."""
        if not request.note:
            return super().prompt_due(request)
        due_ns, stage = request.note
        return PromptDue(due_ns, stage == SECOND, stage == LOST)

    def explain(self, request: Request, view: View) -> str:
        """Whether its prompt can be on time, or how long it may stay away."""
        back_at_ns = self._back_at_ns.get(request.id)
        if request.status is Status.PARKED and back_at_ns is not None:
            return away_words(back_at_ns, request.order.arrival_ns)
        if request.first_token_ns is not None or not request.note:
            return ""
        is_given_up = request.id in self._given_up
        return prompt_words(request.note[1], is_given_up=is_given_up, is_turn=request is self._turn)

    def news(self) -> Mapping[str, str]:
        """Who moved to another due time, or was given up in this step and not in the last."""
        moved, self._prompts.moved = self._prompts.moved, {}
        fresh = self._given_up - self._told
        return news_words(moved, fresh) if moved or fresh else NO_NEWS

    # One step

    def limits(self, view: View) -> StepLimits:
        """The time budget; whatever the other answers need of the present is read here, once."""
        options = self._options
        self._step_ns = self._budget_ns(view)
        self._soon_ns = view.now_ns + 2 * self._step_ns
        self._pace = self._pace_at(view.device_use)
        self._first_open_rank, self._wanted_blocks = NO_LIMIT, 0
        self._told, self._given_up = self._given_up, set()
        self._prompts.sweep(view.num_waiting + view.num_running)
        if options.guard:
            self._guard.look(view)
        self._seats.sweep(view.num_waiting)
        self._claims.clear()
        self._triage(view)
        if self._options.fair_seats:
            self._hear_claims(view)
        self._give_turn(view)
        link_ns = max(
            self._model.profile.link_out_ns_per_token, self._model.profile.link_in_ns_per_token
        )
        queue_ns = LINK_STEPS * self._step_ns * options.link_share
        copies = int(queue_ns / link_ns) if link_ns else NO_LIMIT
        if not options.time_budget:
            return StepLimits(max_tokens=512, max_copy_tokens=copies)
        return StepLimits(max_step_ns=self._step_ns, max_copy_tokens=copies)

    def _budget_ns(self, view: View) -> int:
        """A share of the tightest promise among the decodes, and never less than two bare steps.

        The tightest is a class's gap between tokens, or what is left until a decode is due.
        Without the floor a promise that the device cannot keep would leave no time for prompts.
        """
        options = self._options
        most = int(options.max_step_ms * NS_PER_MS)
        bare = StepCost(self._model)
        bare.add_decodes(1, 0)
        least = 2 * bare.total_ns
        tightest: float = most
        now_ns = view.now_ns
        for request in view.decoding:
            slo, last_ns = request.order.slo, request.last_token_ns
            is_bank = slo.tbt_mode is TbtMode.STREAM or slo.pace_ns
            if not is_bank and last_ns is not None:  # `due_ns`, without the call
                ahead_ns, counts = last_ns + slo.tbt_ns - now_ns, True
            else:
                ahead_ns = due_ns(request) - now_ns
                counts = ahead_ns < 2 * most
            if counts and slo.tbt_ns < tightest:
                tightest = slo.tbt_ns
            if least < ahead_ns < tightest:
                tightest = ahead_ns  # put off in shorter steps: this one must not outlast it
        return int(max(min(tightest * options.step_share, most), least))

    def _pace_at(self, use: float) -> float:
        """Return the share of its slack that a decode may use up: 1 with free memory, 0 without."""
        options = self._options
        if not options.defer:
            return 0.0
        if not options.memory_pace:
            return 1.0
        span = options.pace_high - options.pace_low
        if span <= 0:
            return 1.0 if use < options.pace_low else 0.0
        return min(1.0, max(0.0, (options.pace_high - use) / span))

    def due(self, request: Request, view: View) -> bool:
        """It cannot be skipped and still be on time in the next step; sooner as memory fills.

        Beside an open prompt of a class ahead, memory has no say: that prompt has the first claim.
        """
        return bool(self.split_due(dataclasses.replace(view, decoding=(request,)))[0])

    def split_due(self, view: View) -> tuple[list[Request], list[Request]]:
        """See `due`: the rule stands here, in one loop over every decode of every step."""
        pace, soon_ns, first_open = self._pace, self._soon_ns, self._first_open_rank
        may_defer = bool(self._options.defer)
        if pace <= 0.0 and (first_open == NO_LIMIT or not may_defer):
            return list(view.decoding), []
        due: list[Request] = []
        spare: list[Request] = []
        for request in view.decoding:
            slo, last_ns = request.order.slo, request.last_token_ns
            share = 1.0 if may_defer and slo.rank > first_open else pace
            if share <= 0.0 or last_ns is None:
                due.append(request)
                continue
            is_bank = slo.tbt_mode is TbtMode.STREAM or slo.pace_ns
            slack_ns = due_ns(request) - last_ns if is_bank else slo.tbt_ns
            (due if soon_ns > last_ns + share * slack_ns else spare).append(request)
        return due, spare

    # Prompts

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Class; then who can be on time, by due time; then the rest, aged shortest first."""
        order = request.order
        rank, arrival_ns = order.slo.rank, order.arrival_ns
        if not self._options.deadlines:
            return (rank, 0, arrival_ns, arrival_ns, request.id)
        if request.first_token_ns is not None:  # it lost its context on the way
            return (rank, 0, due_ns(request), arrival_ns, request.id)
        if not request.note:
            self._prompts.enter(request, self._decode_cost_ns(request))
            self._seats.enter(request)
        due, stage = request.note
        if request is self._turn or request.id in self._claims:
            return (rank, -1, arrival_ns, arrival_ns, request.id)
        if stage == LOST or request.id in self._given_up:
            length_ns = self._model.prefill_ns(0, request.num_prompt_tokens)
            aged_ns = arrival_ns + int(self._options.ageing * length_ns)
            return (rank, 1, aged_ns, arrival_ns, request.id)
        return (rank, 0, due, arrival_ns, request.id)

    def _triage(self, view: View) -> None:
        """Decide who of the open prompts is given up, class by class, and what the rest needs."""
        ranks = self._prompts.classes
        if not ranks:
            return
        speed = self._prompt_speed(view)
        at_ns: float = view.now_ns
        most = MOST_JOBS
        for rank in ranks:
            jobs = self._prompts.jobs(rank, view.now_ns, speed, most)
            if not jobs:
                continue
            most = max(LEAST_JOBS, most - len(jobs))
            self._first_open_rank = min(self._first_open_rank, rank)
            if self._options.triage:
                self._given_up |= give_up(jobs, at_ns)
            for name, _, length_ns, _, is_fixed, num_tokens in jobs:
                if name in self._given_up:
                    continue
                if not is_fixed and at_ns < self._soon_ns:
                    self._wanted_blocks += num_tokens // view.capacity.block_size + 1
                at_ns += length_ns

    def _hear_claims(self, view: View) -> None:
        """Tenants without a seat beside one that has several go first in their class."""
        for request in self._seats.claims(view):
            self._claims.add(request.id)
            self._wanted_blocks += request.num_prompt_tokens // view.capacity.block_size + 1

    def _give_turn(self, view: View) -> None:
        """One start in so many belongs to the oldest of the lost: nobody waits for ever (L21)."""
        for request in self._asked.values():
            self._num_starts += len(request.timeline) > 1
        self._asked.clear()
        oldest = self._prompts.oldest_lost()
        if oldest is None or oldest is not self._turn:
            self._turn = None
        if oldest is None:
            return
        has_waited = view.now_ns - oldest.order.arrival_ns >= self._options.oldest_s * NS_PER_S
        if has_waited and self._num_starts >= self._options.oldest_every > 0:
            self._num_starts, self._turn = 0, oldest
        if self._turn is not None and oldest.status is Status.WAITING:
            self._wanted_blocks += oldest.num_prompt_tokens // view.capacity.block_size + 1

    def _decode_cost_ns(self, request: Request) -> float:
        """Return what its decoding adds to what a prompt costs, in the device's own time."""
        output = self._predicted(request)
        decode_ns = output * self._model.decode_ns(request.num_prompt_tokens + output / 2)
        return self._options.decode_weight * decode_ns

    def _prompt_speed(self, view: View) -> float:
        """Return the share of a full step that decodes leave to prompts, as paced now."""
        model, step_ns = self._model, self._step_ns
        used = model.fixed_ns
        contexts: dict[int, list[int]] = {}  # by the gap promised
        for request in view.decoding:
            contexts.setdefault(request.order.slo.tbt_ns, []).append(request.num_computed)
        for gap_ns, sizes in contexts.items():
            decodes_ns = len(sizes) * model.decode_ns(sum(sizes) / len(sizes))
            used += decodes_ns * step_ns / max(step_ns, self._pace * gap_ns)
        return max(0.15, 1.0 - used / step_ns)

    # Memory

    def keep_rank(self, request: Request, view: View) -> Rank:
        """Class, then whoever is nearest its end: it gives its memory back soonest."""
        order = request.order
        left = 0.0
        if self._options.predict:  # `_remaining`, without the calls
            known = request.estimate
            guess = UNKNOWN_LENGTH if known is None else known.middle
            left = remaining_tokens(guess, len(request.output), order.sampling.max_tokens)
        return (order.slo.rank, left, order.arrival_ns, request.id)

    def _predicted(self, request: Request) -> float:
        known = request.estimate if self._options.predict else None
        return UNKNOWN_LENGTH if known is None else known.middle

    def _remaining(self, request: Request) -> float:
        most = request.order.sampling.max_tokens
        return remaining_tokens(self._predicted(request), len(request.output), most)

    def _spare_blocks(self, rank: int, view: View) -> int:
        """Return the blocks that a newcomer of this class must leave free."""
        share = self._options.growth + (self._options.reserve if rank > 0 else 0.0)
        return math.ceil(view.capacity.num_blocks * share)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens; classes behind the first leave it the last blocks."""
        if len(request.timeline) == 1:
            self._asked[request.id] = request
        rank = request.order.slo.rank
        spare = self._spare_blocks(rank, view)
        if rank > 0:
            spare += int(self._guard.caution * view.capacity.num_blocks)
        return Room(claim_tokens=request.num_tokens, spare_blocks=spare)

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        """A class ahead may push one behind off the device."""
        is_ahead = newcomer.order.slo.rank < victim.order.slo.rank
        return bool(self._options.displace) and is_ahead

    # Parking

    def traffic(self, view: View) -> Traffic:
        """Park for prompts that can be on time; bring back who must return, or who may."""
        # Of those who were parked as wished: whoever else is carried out has no time to spend.
        known = self._back_at_ns
        self._back_at_ns = {r.id: known[r.id] for r in view.parked if r.id in known}
        if not view.parked and not self._wanted_blocks:
            return NO_TRAFFIC
        there = [r for r in view.parked if not r.copy_number]
        parked = sorted(there, key=lambda r: (self._back_at_ns.get(r.id, 0), r.id))
        is_calm = not (self._wanted_blocks or self._given_up)
        if is_calm and view.device_use < self._options.back_use:
            back = parked[:MOST_BACK]
        else:
            back = [r for r in parked[:MOST_BACK] if self._must_return(r, view.now_ns)]
        size = view.capacity.block_size
        wanted = self._wanted_blocks + sum(r.num_tokens // size + 2 for r in back)
        wanted -= view.free_blocks + view.coming_blocks - self._spare_blocks(1, view)
        if wanted <= 0 or self._guard.is_thrashing:
            return Traffic(back=back)
        return Traffic(park=self._to_park(wanted, view), back=back)

    def _must_return(self, request: Request, now_ns: int) -> bool:
        """True where it would be late if its way back began a step later than now."""
        way_ns = self._model.return_ns(request.num_computed)
        return self._back_at_ns.get(request.id, 0) <= now_ns + self._step_ns + way_ns

    def _to_park(self, wanted: int, view: View) -> list[Request]:
        """Choose who leaves: the longest to go of those that may be away for long enough."""
        away = []
        for request in view.decoding:
            if request.order.slo.rank == 0 and request.order.slo.tbt_mode is TbtMode.GAP:
                continue  # the first class is not paused on the strength of what it may miss
            absence = absence_ns(request, view.now_ns, self._pause_ns)
            if absence >= self._least_pause_ns:
                away.append((self._remaining(request), request.id, request, absence))
        away.sort(reverse=True)
        chosen = []
        for _, _, request, absence in away:
            if wanted <= 0:
                break
            chosen.append(request)
            self._back_at_ns[request.id] = view.now_ns + absence
            wanted -= request.num_computed // view.capacity.block_size + 1
        return chosen
