"""One step's plan: who computes how many tokens, who is started, who makes room.

It knows the policy's answers, the queues and the blocks, and no tokens, events or time of its
own. The order of a step: due decodes, then prompts (under way and waiting, by one rank), then
decodes that were not due, where seats are left.

Memory, in four rules:

1. A decode or a started prompt that finds no block takes it from the back of `keep_rank`, and
   only from a request ranked strictly behind it that frees something (laws L14, L16). Where there
   is none it waits in place for a step, which costs less than computing it again.
2. So whoever keeps first is nobody's victim, and it can always grow (law L15): what others hold
   and it does not was taken, block by block, by someone who can be preempted or who needs no more.
3. A request preempted MAX_PREEMPTIONS times is next started with room for its worst case: it
   never needs a block again and is nobody's victim, so the bound is exact. A request that was
   interrupted at all comes back only when its whole history fits (law L17).
4. Once a step has preempted, it starts nobody.
"""

from __future__ import annotations

from engine.core.executor import Capacity
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.policy import Rank, SchedulingPolicy, StepLimits, View
from engine.core.queues import Queues
from engine.core.request import Request, Status

MAX_PREEMPTIONS = 4

# What is tried when a policy's limits left a step empty: every decode, then anything at all.
FALLBACKS = (StepLimits(max_prefills=0), StepLimits())


class Planner:
    """Makes the plan of one step; the result is in its four public collections."""

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        queues: Queues,
        kv: KVCacheManager,
    ) -> None:
        self._capacity = capacity
        self._policy = policy
        self._queues = queues
        self._kv = kv
        self.decodes: dict[str, Request] = {}
        self.prefills: dict[str, tuple[Request, int]] = {}  # with the number of tokens
        self.started: list[Request] = []
        self.preempted: list[Request] = []
        self._view = self.view(0)
        self._limits = StepLimits()
        self._tokens_left = 0
        self._rows_left = 0
        self._by_keep_rank: list[tuple[Rank, Request]] | None = None

    def view(self, now_ns: int) -> View:
        """Return the present as a policy may see it."""
        return View(
            now_ns=now_ns,
            capacity=self._capacity,
            free_blocks=self._kv.num_free,
            num_waiting=len(self._queues.waiting),
            prefilling=self._queues.prefilling.values(),
            decoding=self._queues.decoding.values(),
        )

    def plan(self, now_ns: int) -> bool:
        """Plan a step: blocks are taken and statuses changed. False: there is nothing to do."""
        self.decodes.clear()
        self.prefills.clear()
        self.started.clear()
        self.preempted.clear()
        self._by_keep_rank = None
        self._view = view = self.view(now_ns)
        policy, waiting = self._policy, self._queues.waiting
        if policy.ranks_move:
            waiting.refresh(self._prefill_rank)
        due: list[Request] = []
        spare: list[Request] = []
        for request in self._queues.decoding.values():
            (due if policy.due(request, view) else spare).append(request)
        self._fill(policy.limits(view), due, spare)
        for limits in FALLBACKS:
            # Work conservation (law L11): no policy's limits may leave the device idle.
            if not (self.decodes or self.prefills):
                self._fill(limits, list(self._queues.decoding.values()), [])
        for request in self.preempted:
            self._queues.wait(request, self._prefill_rank(request))
        return bool(self.decodes or self.prefills)

    def _fill(self, limits: StepLimits, due: list[Request], spare: list[Request]) -> None:
        self._limits = limits
        self._tokens_left = min(limits.max_tokens, self._capacity.max_batch_tokens)
        self._rows_left = self._capacity.max_batch_requests
        self._place_decodes(due, may_preempt=True)
        self._place_prefills()
        self._place_decodes(spare, may_preempt=False)

    def _prefill_rank(self, request: Request) -> Rank:
        return self._policy.prefill_rank(request, self._view)

    def _keep_rank(self, request: Request) -> Rank:
        return self._policy.keep_rank(request, self._view)

    # Decodes

    def _place_decodes(self, requests: list[Request], *, may_preempt: bool) -> None:
        if not requests:
            return
        kv = self._kv
        seats = min(
            self._tokens_left, self._rows_left, self._limits.max_decodes - len(self.decodes)
        )
        growing = kv.without_next_slot(requests)
        if len(requests) <= seats and len(growing) <= kv.num_free and not self.preempted:
            for request in growing:  # nearly every step comes here
                kv.grow(request, request.num_computed + 1)
            self.decodes.update([(request.id, request) for request in requests])
            seats = len(requests)
        else:
            seats = self._place_in_order(requests, seats, may_preempt=may_preempt)
        self._tokens_left -= seats
        self._rows_left -= seats

    def _place_in_order(self, requests: list[Request], seats: int, *, may_preempt: bool) -> int:
        """Seats or blocks are short: serve front to back, so that no victim has a seat yet (L9)."""
        taken = 0
        for request in sorted(requests, key=self._keep_rank):
            if taken >= seats:
                break
            if request.status is not Status.RUNNING:  # it made room for another
                continue
            end = request.num_computed + 1
            if self._kv.grow(request, end) or (
                may_preempt and self._make_room(request) and self._kv.grow(request, end)
            ):
                self.decodes[request.id] = request
                taken += 1
        return taken

    # Prompts

    def _place_prefills(self) -> None:
        """Serve prompts by rank, those under way and those that wait merged into one order.

        The first waiting one that cannot be started ends the starting: nobody overtakes it (L19).
        """
        limits, queues = self._limits, self._queues
        max_running = limits.max_running or self._capacity.max_batch_requests
        under_way = sorted((self._prefill_rank(r), r) for r in queues.prefilling.values())
        under_way.reverse()
        may_start = True
        while self._tokens_left > 0 and self._rows_left > 0:
            if len(self.prefills) >= limits.max_prefills:
                return
            may_start = may_start and not self.preempted and queues.num_running < max_running
            head = queues.waiting.head() if may_start else None
            if under_way and (head is None or under_way[-1][0] < head[0]):
                self._continue(under_way.pop()[1])
            elif head is not None:
                may_start = self._start(head[1])
            else:
                return

    def _continue(self, request: Request) -> None:
        """Give a started prompt its next chunk, as long as limits and blocks allow."""
        if request.status is not Status.RUNNING:  # it made room for another
            return
        num_tokens = min(self._tokens_left, request.num_uncomputed)
        if not self._kv.covers(request, request.num_computed + num_tokens):
            num_tokens = min(num_tokens, self._num_affordable(request))
        if num_tokens <= 0 or (self._limits.whole_prompts and num_tokens < request.num_uncomputed):
            return
        grown = self._kv.grow(request, request.num_computed + num_tokens)
        assert grown, "a chunk was promised room"
        self._place_prefill(request, num_tokens)

    def _num_affordable(self, request: Request) -> int:
        """Return how many more tokens of a started prompt find room now.

        While others decode, the spare blocks are theirs: a prompt that took them would be the
        next victim. Only the first of all to keep may take everything, and make room (rule 2).
        """
        kv = self._kv
        spare = 0
        if self._queues.decoding:
            spare = self._policy.room(request, self._view).spare_blocks
        usable = kv.num_free - spare
        if usable <= 0 and request is self._keepers()[0][1]:
            if not kv.num_free:
                self._make_room(request)
            usable = kv.num_free
        return kv.num_coverable(request, max(0, usable)) - request.num_computed

    def _start(self, request: Request) -> bool:
        """Start the first of the waiting queue if its room is free."""
        kv = self._kv
        prefix = kv.find_prefix(request)
        start = len(prefix) * kv.block_size
        num_tokens = min(self._tokens_left, request.num_tokens - start)
        if self._limits.whole_prompts and start + num_tokens < request.num_tokens:
            return False
        room = self._policy.room(request, self._view)
        claim = max(start + num_tokens, min(room.claim_tokens, request.max_num_tokens))
        is_first_start = len(request.timeline) == 1
        if not is_first_start:  # rule 3
            claim = max(claim, request.num_tokens)
        if request.preemption_count >= MAX_PREEMPTIONS:
            claim = request.max_num_tokens
        spare = room.spare_blocks if self._queues.num_running else 0
        if not kv.admit(request, prefix, claim, spare):
            return False
        self._queues.start(request, self._view.now_ns)
        request.num_computed = start
        if is_first_start:
            request.num_cached = start
            self.started.append(request)
        self._place_prefill(request, num_tokens)
        return True

    def _place_prefill(self, request: Request, num_tokens: int) -> None:
        self.prefills[request.id] = (request, num_tokens)
        self._tokens_left -= num_tokens
        self._rows_left -= 1

    # Making room

    def _keepers(self) -> list[tuple[Rank, Request]]:
        """Return the requests that ran when this step began to lack room, who keeps first first."""
        if self._by_keep_rank is None:
            running = (*self._queues.prefilling.values(), *self._queues.decoding.values())
            self._by_keep_rank = sorted((self._keep_rank(r), r) for r in running)
        return self._by_keep_rank

    def _make_room(self, request: Request) -> bool:
        """Preempt one request ranked strictly behind this one; False where that helps nobody."""
        rank, keepers = self._keep_rank(request), self._keepers()
        for index in range(len(keepers) - 1, -1, -1):
            victim_rank, victim = keepers[index]
            if victim_rank <= rank:
                return False
            if victim.preemption_count < MAX_PREEMPTIONS and self._kv.frees_any(victim):
                del keepers[index]
                self._preempt(victim)
                return True
        return False

    def _preempt(self, victim: Request) -> None:
        if self.decodes.pop(victim.id, None) is not None:
            self._tokens_left += 1
            self._rows_left += 1
        planned = self.prefills.pop(victim.id, None)
        if planned is not None:
            self._tokens_left += planned[1]
            self._rows_left += 1
        self._kv.release(victim)
        self._queues.interrupt(victim, self._view.now_ns)
        victim.preemption_count += 1
        self.preempted.append(victim)
