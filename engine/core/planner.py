"""One step's plan: who computes how many tokens, who is started, who makes room, who travels.

It knows the policy's answers, the queues and the blocks, and no tokens, events or time of its
own. The order of a step: returns and parks the policy wishes, due decodes, prompts (under way and
waiting, by one rank), then decodes that were not due, where seats and time are left.

Memory, in six rules:

1. A decode or a started prompt that finds no block takes it from the back of `keep_rank`, and
   only from a request ranked strictly behind it that frees something (laws L14, L16). Where there
   is none it waits in place for a step, which costs less than computing it again.
2. So whoever keeps first is nobody's victim, and it can always grow (law L15): what others hold
   and it does not was taken, block by block, by someone who can be preempted or who needs no more.
3. A request preempted MAX_PREEMPTIONS times is next started with room for its worst case: it
   never needs a block again and is nobody's victim, so the bound is exact. A request that was
   interrupted at all comes back only when its whole history fits (law L17).
4. Once a step has preempted, it starts nobody but those for whom its victims might have fallen.
5. A parked request comes back with room to go on, and where nothing else could run the first to
   keep comes back unasked: no state of memory stands still (laws L12, L15).
6. What copies under way will free counts as coming: whoever lacks blocks waits for those first, and
   where everybody waits so does the step, without chunks, until a copy is over.
"""

from __future__ import annotations

from engine.core.decision import Reason
from engine.core.decision_log import DecisionLog
from engine.core.executor import Capacity
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.latency_model import LatencyModel, StepCost
from engine.core.memory_moves import MAX_PREEMPTIONS, MemoryMoves
from engine.core.policy import NO_LIMIT, Rank, SchedulingPolicy, StepLimits, View
from engine.core.queues import Queues
from engine.core.request import Request, Status
from engine.core.work import Work

# What is tried when a policy's limits left a step empty: every decode, then anything at all.
FALLBACKS = (StepLimits(max_prefills=0), StepLimits())


class Planner:
    """Makes the plan of one step; the result is in its public collections and in `moves`."""

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        queues: Queues,
        kv: KVCacheManager,
        model: LatencyModel | None,
        log: DecisionLog,
    ) -> None:
        self._capacity = capacity
        self._policy = policy
        self._queues = queues
        self._kv = kv
        self.decodes: dict[str, Request] = {}
        self.prefills: dict[str, tuple[Request, int]] = {}  # with the number of tokens
        self.started: list[Request] = []
        self.moves = MemoryMoves(capacity, policy, queues, kv, model, self._unplan, log)
        self._log = log
        self._reasons = log.reasons  # why who is not in the step
        self.cost = StepCost(model)
        self.work = Work()
        self._is_timed = model is not None
        self._view = self.view(0)
        self.limits = StepLimits()  # that the policy asked for
        self._limits = self.limits  # in force: see FALLBACKS
        self._tokens_left = 0
        self._rows_left = 0

    @property
    def preempted(self) -> list[Request]:
        """Those whose context was dropped in this step."""
        return self.moves.preempted

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens in this step."""
        return sum([num_tokens for _, num_tokens in self.prefills.values()])

    def view(self, now_ns: int) -> View:
        """Return the present as a policy may see it."""
        return View(
            now_ns=now_ns,
            capacity=self._capacity,
            free_blocks=self._kv.num_free,
            num_waiting=len(self._queues.waiting),
            prefilling=self._queues.prefilling.values(),
            decoding=self._queues.decoding.values(),
            parked=self._queues.parked.values(),
            free_host_blocks=self._kv.num_free_host,
            coming_blocks=self._kv.num_coming,
            computed_total=self.work.computed,
            recomputed_total=self.work.recomputed,
            copied_total=self._kv.copies.copied_total,
        )

    def plan(self, now_ns: int) -> bool:
        """Plan a step: blocks are taken and statuses changed. False: there is nothing to do."""
        self._clear()
        self._view = view = self.view(now_ns)
        policy, waiting, moves = self._policy, self._queues.waiting, self.moves
        if policy.ranks_move:
            waiting.refresh(self._prefill_rank)
        limits = self.limits = policy.limits(view)
        moves.begin(view, limits)
        if self._capacity.num_host_blocks and policy.swaps:
            moves.carry()
        due, spare = policy.split_due(view)
        self._reasons.split(spare)
        self._fill(limits, due, spare)
        moves.end_displacing()
        for limits in FALLBACKS:
            # Work conservation (law L11): no policy's limits may leave the device idle.
            if not (self.decodes or self.prefills):
                self._fill(limits, list(self._queues.decoding.values()), [])
        if not (self.decodes or self.prefills):
            moves.bring_back_any()
        for request in self.preempted:
            self._queues.wait(request, self._prefill_rank(request))
        return bool(self.decodes or self.prefills or len(self._kv.copies))

    def rest(self, now_ns: int) -> None:
        """Plan a step of nothing, for nobody: copies of those who left are still under way."""
        self._clear()
        self.moves.begin(self.view(now_ns), StepLimits())

    def _clear(self) -> None:
        self.decodes.clear()
        self.prefills.clear()
        self.started.clear()
        self.cost.clear()
        self._reasons.clear()

    def _fill(self, limits: StepLimits, due: list[Request], spare: list[Request]) -> None:
        self._limits = limits
        self._tokens_left = min(limits.max_tokens, self._capacity.max_batch_tokens)
        self._rows_left = self._capacity.max_batch_requests
        self._place_decodes(due, is_due=True)
        self._place_prefills()
        self._place_decodes(spare, is_due=False)

    @property
    def _has_time_limit(self) -> bool:
        return self._is_timed and self._limits.max_step_ns < NO_LIMIT

    def _prefill_rank(self, request: Request) -> Rank:
        return self._policy.prefill_rank(request, self._view)

    # Decodes

    def _place_decodes(self, requests: list[Request], *, is_due: bool) -> None:
        if self.preempted or self.moves.parks:  # some of them may have made room for a prompt
            requests = [r for r in requests if r.status is Status.RUNNING]
        if not requests:
            return
        kv = self._kv
        seats = min(
            self._tokens_left, self._rows_left, self._limits.max_decodes - len(self.decodes)
        )
        growing = kv.without_next_slot(requests)
        num_cached = sum([r.num_computed for r in requests])
        has_room = len(growing) <= kv.num_free
        self.cost.add_decodes(len(requests), num_cached)
        in_time = not self._has_time_limit or self.cost.total_ns <= self._limits.max_step_ns
        if len(requests) <= seats and has_room and in_time:
            for request in growing:  # nearly every step comes here
                kv.grow(request, request.num_computed + 1)
            self.decodes.update([(request.id, request) for request in requests])
            seats = len(requests)
        else:
            self.cost.add_decodes(-len(requests), -num_cached)
            seats = self._place_in_order(requests, seats, is_due=is_due)
        self._tokens_left -= seats
        self._rows_left -= seats

    def _place_in_order(self, requests: list[Request], seats: int, *, is_due: bool) -> int:
        """Seats, time or blocks are short: serve front to back, so that no victim has a seat (L9).

        The first due one is served whatever time it takes.
        """
        taken, reasons = 0, self._reasons
        has_time_limit, limit_ns = self._has_time_limit, self._limits.max_step_ns
        if seats <= 0 or (has_time_limit and not is_due and not self._has_time_for_any(requests)):
            reasons.leave_out(self._full(seats), is_due=is_due)
            return 0  # found without ranking everyone
        for request in sorted(requests, key=self.moves.keep_rank):
            if taken >= seats:
                reasons.leave_out(self._full(0), is_due=is_due)
                break
            if request.status is not Status.RUNNING:  # it made room for another
                continue
            self.cost.add_decodes(1, request.num_computed)
            if has_time_limit and self.cost.total_ns > limit_ns and (taken or not is_due):
                self.cost.add_decodes(-1, -request.num_computed)
                reasons.leave_out(Reason.TIME_FULL, is_due=is_due)
                break
            end = request.num_computed + 1
            if self._kv.grow(request, end) or (
                is_due and self.moves.make_room(request) and self._kv.grow(request, end)
            ):
                self.decodes[request.id] = request
                taken += 1
            else:
                self.cost.add_decodes(-1, -request.num_computed)
                reasons.single[request] = Reason.NO_MEMORY
        return taken

    def _full(self, seats: int) -> Reason:
        """Return what of a step is used up where it has so many seats left for decodes."""
        if seats > 0:
            return Reason.TIME_FULL
        if len(self.decodes) >= self._limits.max_decodes:
            return Reason.DECODES_FULL
        return Reason.TOKENS_FULL if self._tokens_left < self._rows_left else Reason.ROWS_FULL

    def _has_time_for_any(self, requests: list[Request]) -> bool:
        """True where the cheapest of these decodes fits into the step's time."""
        least = min([request.num_computed for request in requests])
        self.cost.add_decodes(1, least)
        fits = self.cost.total_ns <= self._limits.max_step_ns
        self.cost.add_decodes(-1, -least)
        return fits

    # Prompts

    def _place_prefills(self) -> None:
        """Serve prompts by rank, those under way and those that wait merged into one order.

        The first waiting one that cannot be started ends the starting: nobody overtakes it (L19).
        """
        limits, queues, reasons = self._limits, self._queues, self._reasons
        max_running = limits.max_running or self._capacity.max_batch_requests
        under_way = sorted((self._prefill_rank(r), r) for r in queues.prefilling.values())
        under_way.reverse()
        may_start = True
        while self._tokens_left > 0 and self._rows_left > 0:
            if len(self.prefills) >= limits.max_prefills:
                reasons.prompts = Reason.PROMPTS_FULL if under_way else None
                reasons.waiting = reasons.waiting or Reason.PROMPTS_FULL
                return
            head = queues.waiting.head() if may_start else None
            if head is not None and self.preempted and not self.moves.may_follow(head[1]):
                may_start = reasons.stop(head[1], Reason.ROOM_MADE)
                head = None
            if under_way and (head is None or under_way[-1][0] < head[0]):
                self._continue(under_way.pop()[1])
            elif head is not None:
                may_start = self._start(head[1], max(0, queues.num_running + 1 - max_running))
            else:
                return
        full = Reason.TOKENS_FULL if self._tokens_left <= 0 else Reason.ROWS_FULL
        if under_way:
            reasons.prompts = full
        if may_start:
            reasons.waiting, reasons.head = full, None

    def _continue(self, request: Request) -> None:
        """Give a started prompt its next chunk, as long as limits and blocks allow."""
        if request.status is not Status.RUNNING:  # it made room for another
            return
        num_tokens = self._in_time(request.num_computed, request.num_uncomputed)
        reason = Reason.TIME_FULL  # where it lacks tokens nobody comes here
        if not self._kv.covers(request, request.num_computed + num_tokens):
            num_tokens, reason = min(num_tokens, self._num_affordable(request)), Reason.NO_MEMORY
        if num_tokens <= 0 or (self._limits.whole_prompts and num_tokens < request.num_uncomputed):
            self._reasons.single[request] = reason if num_tokens <= 0 else Reason.WHOLE_PROMPT
            return
        grown = self._kv.grow(request, request.num_computed + num_tokens)
        assert grown, "a chunk was promised room"
        self._place_prefill(request, num_tokens)

    def _num_affordable(self, request: Request) -> int:
        """Return how many more tokens of a started prompt find room now.

        While others decode, the spare blocks are theirs: a prompt that took them would be the
        next victim. Only the first of all to keep may take everything, and make room (rule 2).
        Behind a newcomer whose room is on its way nobody takes any.
        """
        kv = self._kv
        if self.moves.is_awaited:
            return kv.num_coverable(request, 0) - request.num_computed
        spare = 0
        if self._queues.decoding:
            spare = self._policy.room(request, self._view).spare_blocks
        usable = kv.num_free - spare
        if usable <= 0 and request is self.moves.keepers()[0][1]:
            if not kv.num_free:
                self.moves.make_room(request)
            usable = kv.num_free
        return kv.num_coverable(request, max(0, usable)) - request.num_computed

    def _in_time(self, start: int, num_tokens: int) -> int:
        """Return how many of these prompt tokens the limits of tokens and time leave room for."""
        num_tokens = min(self._tokens_left, num_tokens)
        if self._has_time_limit:
            return self.cost.affordable_prefill(start, num_tokens, self._limits.max_step_ns)
        return num_tokens

    def _start(self, request: Request, missing_seats: int) -> bool:
        """Start the first of the waiting queue if its room is free, or can be made."""
        kv, moves, stop = self._kv, self.moves, self._reasons.stop
        if missing_seats and not moves.may_seat(request):
            return stop(request, Reason.SEATS_FULL)
        prefix = kv.find_prefix(request)
        start = len(prefix) * kv.block_size
        num_tokens = self._in_time(start, request.num_tokens - start)
        if num_tokens <= 0 or (
            self._limits.whole_prompts and start + num_tokens < request.num_tokens
        ):
            return stop(request, Reason.TIME_FULL if num_tokens <= 0 else Reason.WHOLE_PROMPT)
        if moves.blocked_rank is not None and moves.keep_rank(request) > moves.blocked_rank:
            return stop(request, Reason.RETURN_FIRST)
        room = self._policy.room(request, self._view)
        claim = max(start + num_tokens, min(room.claim_tokens, request.max_num_tokens))
        is_first_start = len(request.timeline) == 1
        if not is_first_start:  # rule 3
            claim = max(claim, request.num_tokens)
        if request.preemption_count >= MAX_PREEMPTIONS:
            claim = request.max_num_tokens
        spare = room.spare_blocks if self._queues.num_running else 0
        missing = kv.num_missing(prefix, claim, spare)
        if (missing > 0 or missing_seats) and not moves.displace(
            request, prefix, missing, missing_seats
        ):
            if moves.is_awaited:
                return stop(request, Reason.MEMORY_COMING)
            return stop(request, Reason.NO_MEMORY if missing > 0 else Reason.SEATS_FULL)
        if not kv.admit(request, prefix, claim, spare):
            return stop(request, Reason.NO_MEMORY)
        words = self._policy.explain(request, self._view)
        self._queues.start(request, self._view.now_ns)
        request.num_computed = start
        self._log.started(request, self._view.now_ns, words)
        if is_first_start:
            request.num_cached = start
            self.started.append(request)
        self._place_prefill(request, num_tokens)
        return True

    def _place_prefill(self, request: Request, num_tokens: int) -> None:
        self.prefills[request.id] = (request, num_tokens)
        self.cost.add_prefill(request.num_computed, num_tokens)
        self._tokens_left -= num_tokens
        self._rows_left -= 1

    def _unplan(self, victim: Request) -> None:
        """Take a victim out of the step; what it had taken of the limits is free again."""
        if self.decodes.pop(victim.id, None) is not None:
            self._tokens_left += 1
            self._rows_left += 1
            self.cost.add_decodes(-1, -victim.num_computed)
        planned = self.prefills.pop(victim.id, None)
        if planned is not None:
            self._tokens_left += planned[1]
            self._rows_left += 1
            self.cost.add_prefill(victim.num_computed, planned[1], -1)
