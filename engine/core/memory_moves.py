"""Who makes room for whom in one step, and who travels between device and host.

It knows ranks, blocks and prices, and nothing of tokens. A victim ranks strictly behind the one it
makes room for, and frees something (laws L14, L16). It is parked where the policy swaps, the host
has room and the link is cheaper than computing its context again, else dropped to be recomputed; a
full host is an everyday case (law L34). What a dropped victim frees can be used at once; what a
parked one frees, when its copy is over, which may take many steps: until then its blocks are
coming, and whoever lacks blocks waits for those before anybody else falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.core.batch import Copy
from engine.core.decision import Reason
from engine.core.decision_log import DecisionLog
from engine.core.executor import Capacity
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.latency_model import LatencyModel
from engine.core.policy import Rank, SchedulingPolicy, StepLimits, View
from engine.core.queues import Queues
from engine.core.request import Request, Status

MAX_PREEMPTIONS = 4

# Victims looked at to make room for one newcomer, so that a step's cost stays bounded.
MOST_VICTIMS = 64


class MemoryMoves:
    """One step's moves; the results are in its public lists.

    `unplan` takes a victim out of the plan of the step under way.
    """

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        queues: Queues,
        kv: KVCacheManager,
        model: LatencyModel | None,
        unplan: Callable[[Request], None],
        log: DecisionLog,
    ) -> None:
        self._capacity = capacity
        self._policy = policy
        self._queues = queues
        self._kv = kv
        self._model = model
        self._unplan = unplan
        self._log = log
        self.preempted: list[Request] = []
        self.parks: list[Copy] = []
        self.returns: list[Copy] = []
        # The best rank of those who wanted back and found no room: nobody behind it is started.
        self.blocked_rank: Rank | None = None
        self._view: View | None = None
        self._limits = StepLimits()
        self._by_keep_rank: list[tuple[Rank, Request]] | None = None
        self._coming: int | None = None  # blocks that copies under way will free; None: not counted
        self._num_promised = 0  # how many of them are spoken for in this step
        self._promised: set[str] = set()  # by these, who need one each
        self._may_displace = True
        self.is_awaited = False  # the first that waits has all it lacks on its way

    def begin(self, view: View, limits: StepLimits) -> None:
        """Forget the last step's moves."""
        self.preempted.clear()
        self.parks.clear()
        self.returns.clear()
        self.blocked_rank = None
        self._view, self._limits = view, limits
        self._by_keep_rank = None
        self._coming, self._num_promised = None, 0
        self._promised.clear()
        self._may_displace, self.is_awaited = True, False

    @property
    def view(self) -> View:
        """The present that this step is planned for."""
        assert self._view is not None
        return self._view

    def keep_rank(self, request: Request) -> Rank:
        """Return the policy's rank for keeping memory."""
        return self._policy.keep_rank(request, self.view)

    def keepers(self) -> list[tuple[Rank, Request]]:
        """Return the requests that ran when this step began to lack room, who keeps first first."""
        if self._by_keep_rank is None:
            running = (*self._queues.prefilling.values(), *self._queues.decoding.values())
            self._by_keep_rank = sorted((self.keep_rank(r), r) for r in running)
        return self._by_keep_rank

    # Wishes of the policy

    def carry(self) -> None:
        """Bring back and park whom the policy names, as far as rules and room allow."""
        traffic = self._policy.traffic(self.view)
        for request in dict.fromkeys(traffic.back):  # one named twice comes back once
            if request.status is Status.PARKED and not self._bring_back(request):
                self._log.wanted(request, self.view.now_ns)
                rank = self.keep_rank(request)
                if self.blocked_rank is None or rank < self.blocked_rank:
                    self.blocked_rank = rank
        for request in traffic.park:
            if request.status is Status.RUNNING and self._may_park(request):
                self._park(request, Reason.POLICY_WISH)

    def bring_back_any(self) -> None:
        """Nobody can run: the first of the parked to keep comes back, whatever the policy says.

        Not where somebody who can run comes anyway, or whose room does.
        """
        if self._kv.copies.num_in or self._num_promised:
            return
        ready = [r for r in self._queues.parked.values() if not r.copy_number]
        if ready:
            self._bring_back(min(ready, key=self.keep_rank), Reason.NOBODY_ELSE)

    def _bring_back(self, request: Request, reason: Reason = Reason.POLICY_WISH) -> bool:
        """Begin a return, with room for a block more than its history (law L17).

        False: it lacks room. One that is still on its way, or finds the link busy, comes later.
        """
        copies = self._kv.copies
        tokens = copies.tokens_in + request.num_computed
        if request.copy_number or (copies.num_in and tokens > self._limits.max_copy_tokens):
            return True
        positions = min(request.num_tokens + self._kv.block_size, request.max_num_tokens)
        num_left = self._kv.num_free - self._kv.blocks_for(positions)
        if num_left < self._num_kept_for_head(request):
            return False
        copy = self._kv.bring_back(request, positions)
        if copy is None:
            return False
        self.returns.append(copy)
        self._log.returning(request, reason, self.view.now_ns)
        return True

    def _num_kept_for_head(self, request: Request) -> int:
        """Return the blocks that a return leaves to the first of the waiting (law L20).

        Room is made for it step by step: whom it could displace must not take that room back.
        """
        head = self._queues.waiting.head()
        if head is None or self.keep_rank(head[1]) > self.keep_rank(request):
            return 0
        if not self._policy.may_displace(head[1], request, self.view):
            return 0
        spare = self._policy.room(head[1], self.view).spare_blocks
        return self._kv.blocks_for(head[1].num_tokens) + spare

    def _may_park(self, request: Request) -> bool:
        """True where parking is possible, frees something, fits the link and leaves a survivor."""
        copies = self._kv.copies
        tokens = copies.tokens_out + request.num_computed
        return (
            request.preemption_count < MAX_PREEMPTIONS
            and request.num_computed > request.parked_at
            and (not copies.num_out or tokens <= self._limits.max_copy_tokens)
            and self._kv.can_park(request)
            and self._kv.frees_any(request)
            and request is not self.keepers()[0][1]
        )

    # Making room

    def make_room(self, request: Request) -> bool:
        """Let one request behind this one free blocks; True where they are free at once.

        False: nobody could, or what this one lacks is on its way and it has to wait for a copy.
        """
        if request.id in self._promised:
            return False
        if self._num_coming() > 0:
            self._promise(request)
            return False
        rank, keepers = self.keep_rank(request), self.keepers()
        for index in range(len(keepers) - 1, -1, -1):
            victim_rank, victim = keepers[index]
            if victim_rank <= rank:
                return False
            if self._can_fall(victim):
                del keepers[index]
                if self._prefers_park(victim):
                    self._park(victim, Reason.GROWTH, request)
                    self._promise(request)
                    return False
                self._drop(victim, Reason.GROWTH, request)
                return True
        return False

    def _num_coming(self) -> int:
        """Return how many blocks copies will free that nobody speaks for in this step."""
        if self._coming is None:
            self._coming = self._kv.count_coming()
        return self._coming - self._num_promised

    def _promise(self, request: Request) -> None:
        self._num_promised += 1
        self._promised.add(request.id)

    def displace(
        self, newcomer: Request, prefix: Sequence[int], num_missing: int, num_seats: int
    ) -> bool:
        """Let running requests free blocks and seats so that a waiting one can start; True: now.

        Nobody moves unless all that is missing can be freed (law L4), and nobody a second time for
        what is on its way. `prefix` are the blocks that the newcomer will share.
        """
        if self.is_awaited or not self._may_displace:
            return False
        coming = self._num_coming()
        if coming <= 0 and not self._has_any_for(newcomer):
            return False  # found without ranking everyone, in nearly every full step
        promised = max(0, min(coming, num_missing))
        victims = self._fallible(newcomer, prefix, num_missing - promised, num_seats)
        if victims is None:
            return False
        if promised or any(map(self._prefers_park, victims)):
            # It can start in a later step only, when others took some of what is free or coming.
            wanted = num_missing + max(-promised, self._growth() - coming)
            more = self._fallible(newcomer, prefix, wanted, num_seats)
            if more is not None:
                victims = more
                if not promised and not any(map(self._prefers_park, more)):
                    victims = self._needed(more, prefix, num_missing, num_seats)
            if promised and self._frees_at_once(victims, prefix, num_missing):
                promised = 0  # they fell for seats, or for what was not coming, and it is enough
        self.is_awaited = promised > 0
        for victim in victims:
            if self._prefers_park(victim):
                self._park(victim, Reason.NEWCOMER, newcomer)
                self.is_awaited = True
            else:
                self._drop(victim, Reason.NEWCOMER, newcomer)
        # It speaks for its share of what was coming, and for all that its own victims free.
        self._num_promised += self._num_coming() - (coming - promised)
        self._by_keep_rank = [p for p in self.keepers() if p[1].status is Status.RUNNING]
        return not self.is_awaited

    def _frees_at_once(
        self, victims: Sequence[Request], prefix: Sequence[int], num_missing: int
    ) -> bool:
        """True where dropping these frees all that is missing, and none of them would be parked."""
        shared = frozenset(prefix)
        freed = sum([self._kv.num_freed_by(victim, shared) for victim in victims])
        return freed >= num_missing and not any(map(self._prefers_park, victims))

    def may_seat(self, newcomer: Request) -> bool:
        """False where nobody who runs would give a seat to this one: known before its prefix is."""
        return self._may_displace and not self.is_awaited and self._has_any_for(newcomer)

    def _has_any_for(self, newcomer: Request) -> bool:
        """True where the policy would let anybody who runs make room for this one."""
        may_displace, view, queues = self._policy.may_displace, self.view, self._queues
        return any(
            may_displace(newcomer, victim, view)
            for place in (queues.decoding, queues.prefilling)
            for victim in place.values()
        )

    def end_displacing(self) -> None:
        """What is planned from now on only fills a step that would be empty."""
        self._may_displace = self.is_awaited = False

    def _growth(self) -> int:
        """Return how many blocks others may take before a newcomer is looked at again.

        A decode takes two tokens, of this step and the next; a prompt may end and decode. What is
        promised already is no longer among what is coming.
        """
        kv, queues, count = self._kv, self._queues, 0
        for request in queues.decoding.values():
            needed = kv.blocks_for(request.num_computed + 2) - len(kv.block_ids(request))
            count += max(0, needed - (request.id in self._promised))
        for request in queues.prefilling.values():
            count += len(kv.block_ids(request)) * kv.block_size == request.num_tokens
        return count

    def may_follow(self, newcomer: Request) -> bool:
        """True where all that were dropped in this step might have been so for this newcomer."""
        rank = self.keep_rank(newcomer)
        return all(
            self.keep_rank(victim) > rank and self._policy.may_displace(newcomer, victim, self.view)
            for victim in self.preempted
        )

    def _fallible(
        self, newcomer: Request, prefix: Sequence[int], num_missing: int, num_seats: int
    ) -> list[Request] | None:
        """Return who is to fall, from the back of those who keep; None where it would not do."""
        rank, shared = self.keep_rank(newcomer), frozenset(prefix)
        chosen: list[Request] = []
        num_freed = 0
        for victim_rank, victim in reversed(self.keepers()):
            is_enough = num_freed >= num_missing and len(chosen) >= num_seats
            if is_enough or victim_rank <= rank or len(chosen) >= MOST_VICTIMS:
                break
            if self._can_fall(victim) and self._policy.may_displace(newcomer, victim, self.view):
                chosen.append(victim)
                num_freed += self._kv.num_freed_by(victim, shared)
        if num_freed < num_missing or len(chosen) < num_seats:
            return None
        return self._needed(chosen, prefix, num_missing, num_seats)

    def _needed(
        self, chosen: list[Request], prefix: Sequence[int], num_missing: int, num_seats: int
    ) -> list[Request]:
        """Return the chosen without those that the others make needless, the last to keep first."""
        shared = frozenset(prefix)
        freed = {victim.id: self._kv.num_freed_by(victim, shared) for victim in chosen}
        surplus, num_spared = sum(freed.values()) - num_missing, len(chosen) - num_seats
        needed = []
        for victim in chosen:
            if num_spared > 0 and freed[victim.id] <= surplus:
                surplus -= freed[victim.id]
                num_spared -= 1
            else:
                needed.append(victim)
        return needed

    def _can_fall(self, victim: Request) -> bool:
        """True where it runs, was not started just now, may still fall and frees something."""
        return (
            victim.status is Status.RUNNING
            and victim.timeline[-1].at_ns < self.view.now_ns
            and victim.preemption_count < MAX_PREEMPTIONS
            and self._kv.frees_any(victim)
        )

    def _prefers_park(self, victim: Request) -> bool:
        """True where carrying the context costs the link less than computing it again costs us."""
        if self._model is None or not self._policy.swaps or not self._may_park(victim):
            return False
        tokens = victim.num_computed
        return self._model.park_ns(tokens) < self._model.prefill_ns(0, tokens)

    def _park(self, victim: Request, reason: Reason, by: Request | None = None) -> None:
        self._unplan(victim)
        self._log.parked(victim, reason, by, self.view.now_ns)
        self.parks.append(self._kv.park(victim))
        self._coming = None
        self._queues.park(victim, self.view.now_ns)
        victim.park_count += 1
        victim.parked_at = victim.num_computed

    def _drop(self, victim: Request, reason: Reason, by: Request) -> None:
        self._unplan(victim)
        self._log.preempted(victim, reason, by, self.view.now_ns)
        self._kv.release(victim)
        self._queues.interrupt(victim, self.view.now_ns)
        victim.preemption_count += 1
        self.preempted.append(victim)
