"""The laws of one step, judged from beside the planner: who moved, for whom, and who was left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core import memory_moves
from engine.core.batch import Batch
from engine.core.engine_core import EngineCore
from engine.core.latency_model import StepCost
from engine.core.planner import FALLBACKS
from engine.core.policy import NO_LIMIT, Rank, StepLimits
from engine.core.request import Request, Status
from engine.core.waiting_queue import RERANKED_PER_STEP


@dataclass
class Before:
    """A started request as it was before a move."""

    keep_rank: Rank
    num_freed: int
    num_gained: int  # without what the newcomer shares with it
    preemptions: int
    num_computed: int
    parked_at: int
    may_fall: bool  # the policy's word, asked while it still ran


@dataclass
class Move:
    """One call that may move somebody: what it was for, and who fell."""

    what: str
    beneficiary: Request | None
    num_missing: int
    num_seats: int
    growth: int  # blocks that decodes may take before the next step looks at a newcomer
    coming: int  # blocks that copies will free and nobody speaks for
    before: dict[str, Before]
    answer: bool | None
    dropped: list[Request]
    parked: list[Request]

    @property
    def victims(self) -> list[Request]:
        return [*self.dropped, *self.parked]


class Witness:
    """Watches one EngineCore; `before` and `after` go around each `start_step`."""

    def __init__(self, core: EngineCore) -> None:
        self._scheduler = scheduler = core._scheduler
        self._planner, self._kv = scheduler.planner, scheduler.kv
        self._queues, self._policy = scheduler.queues, scheduler.policy
        self._moves = moves = scheduler.planner.moves
        self.moves: list[Move] = []
        self._fills: list[StepLimits] = []
        self._ranks: dict[str, Rank] = {}
        self._was_waiting: set[str] = set()
        self.steps_without_chunks = 0
        self._most_live = 0  # since there last were chunks
        self._most_copies = 0
        moves.carry = self._watched("carry", moves.carry)
        moves.make_room = self._watched("make_room", moves.make_room)
        moves.displace = self._watched("displace", moves.displace)
        fill = self._planner._fill

        def watched_fill(limits: StepLimits, due: list[Request], spare: list[Request]) -> None:
            self._fills.append(limits)
            fill(limits, due, spare)

        self._planner._fill = watched_fill

    def _watched(self, what: str, call: Callable[..., bool | None]) -> Callable[..., bool | None]:
        """The call itself, with a note of who fell in it."""

        def watched(
            request: Request | None = None,
            prefix: Sequence[int] = (),
            num_missing: int = 1,
            num_seats: int = 0,
        ) -> bool | None:
            view, preempted, parks = self._moves.view, self._moves.preempted, self._moves.parks
            running = [r for r in self._queues if r.status is Status.RUNNING]
            before = {
                r.id: Before(
                    self._policy.keep_rank(r, view),
                    self._kv.num_freed_by(r),
                    len(
                        [b for b in self._kv.block_ids(r) if self._is_freed(b) and b not in prefix]
                    ),
                    r.preemption_count,
                    r.num_computed,
                    r.parked_at,
                    request is not None and self._policy.may_displace(request, r, view),
                )
                for r in running
            }
            by_id = {r.id: r for r in running}
            num_preempted, num_parks, growth = len(preempted), len(parks), self._growth()
            coming = self._kv.count_coming() - self._moves._num_promised
            if what == "carry":
                answer = call()
            elif what == "make_room":
                answer = call(request)
            else:
                answer = call(request, prefix, num_missing, num_seats)
            self.moves.append(
                Move(
                    what,
                    request,
                    num_missing,
                    num_seats,
                    growth,
                    coming,
                    before,
                    answer,
                    preempted[num_preempted:],
                    [by_id[copy.request_id] for copy in parks[num_parks:]],
                )
            )
            return answer

        return watched

    def _is_freed(self, block: int) -> bool:
        return self._kv._pool.has_sole_owner(block)

    def _growth(self) -> int:
        """The blocks that all decodes take for this token and the next, however they are placed."""
        count = 0
        for request in self._queues.decoding.values():
            needed = -(-(request.num_computed + 2) // self._kv.block_size)
            count += max(0, needed - len(self._kv.block_ids(request)))
        for request in self._queues.prefilling.values():
            covered = len(self._kv.block_ids(request)) * self._kv.block_size
            count += request.num_tokens == covered
        return count

    def before(self, now_ns: int) -> None:
        """Look at who waits and who runs."""
        self.moves.clear()
        self._fills.clear()
        self._scheduler._time_last_step(now_ns)  # what is learnt moves ranks, before any is asked
        view = self._planner.view(now_ns)
        waiting = list(self._queues.waiting)
        self._was_waiting = {r.id for r in waiting}
        is_exact = not self._policy.ranks_move or len(waiting) <= RERANKED_PER_STEP
        self._ranks = {}
        if is_exact:
            self._ranks = {r.id: self._policy.prefill_rank(r, view) for r in waiting}

    def after(self, batch: Batch) -> None:
        """Judge the step that was planned."""
        if not len(self._queues):
            assert not batch.chunks, "it computes for nobody"
            assert len(self._kv.copies), "nobody is there, and nothing is under way"
            return
        self._check_one_place_each(batch)
        for move in self.moves:
            self._check_move(move)
        awaited = [m.parked for m in self.moves if m.what == "displace" and m.victims]
        assert not any(awaited[:-1]), "somebody fell while the first that waits had its room coming"
        self._check_order_of_starts()
        self._check_limits(batch)
        self._check_room_of_those_who_came(batch)
        self._check_no_idling(batch)

    def _running(self) -> list[Request]:
        return [*self._queues.prefilling.values(), *self._queues.decoding.values()]

    def _check_one_place_each(self, batch: Batch) -> None:
        """Law L9: of computed, dropped, parked and returning, each request is at most one."""
        computed = [chunk.request_id for chunk in batch.chunks]
        dropped = [request.id for request in self._moves.preempted]
        carried = [copy.request_id for copy in (*batch.parks, *batch.returns)]
        everyone = [*computed, *dropped, *carried]
        assert len(set(everyone)) == len(everyone), "law L9"
        assert set(self._planner.prefills) | set(self._planner.decodes) == set(computed)
        fallen = [r for move in self.moves for r in move.victims]
        assert sorted(r.id for r in fallen) == sorted(
            [*dropped, *[copy.request_id for copy in batch.parks]]
        ), "somebody was moved without a reason"
        assert all(self._request(name).status is Status.RUNNING for name in computed)
        assert all(self._request(name).status is Status.PARKED for name in carried)
        assert all(r.status is Status.WAITING for r in self._moves.preempted)

    def _request(self, name: str) -> Request:
        request = self._scheduler.find(name)
        assert request is not None
        return request

    def _check_move(self, move: Move) -> None:
        ranks = {name: before.keep_rank for name, before in move.before.items()}
        first = min(ranks, key=ranks.__getitem__, default="")
        for victim in move.victims:
            before = move.before[victim.id]
            assert before.num_freed > 0, "law L14: a victim that frees nothing"
            assert before.preemptions < memory_moves.MAX_PREEMPTIONS, "law L16"
        for victim in move.parked:
            assert move.before[victim.id].num_computed > move.before[victim.id].parked_at, "no gain"
            assert victim.id != first, "law L15: the first to keep was parked"
        if move.beneficiary is None:
            assert not move.dropped, "a wish to carry dropped somebody"
            return
        rank = self._policy.keep_rank(move.beneficiary, self._moves.view)
        assert all(ranks[victim.id] > rank for victim in move.victims), "law L16: it ranks ahead"
        if move.what == "make_room":
            assert len(move.victims) <= 1
            assert bool(move.dropped) == move.answer
            assert not move.victims or move.coming <= 0, "what it lacks was on its way"
        else:
            self._check_displacement(move)

    def _check_displacement(self, move: Move) -> None:
        """Laws L4 and L44: all that was missing is freed, and nobody fell who was not needed."""
        assert move.beneficiary is not None
        newcomer = move.beneficiary
        assert all(move.before[victim.id].may_fall for victim in move.victims)
        if not move.victims:
            return
        gained = sorted(move.before[victim.id].num_gained for victim in move.victims)
        assert sum(gained) >= move.num_missing - max(0, move.coming), "they fell in vain"
        assert len(gained) >= move.num_seats, "they fell in vain"
        is_later = self._moves.parks or move.coming > 0
        wanted = move.num_missing + (move.growth if is_later else 0)
        is_needed = sum(gained[1:]) < wanted or len(gained) == move.num_seats
        assert is_needed, "one of them need not have fallen"
        assert newcomer.status is Status.RUNNING or not move.answer, "it could start and did not"
        is_coming = self._kv.count_coming() > 0 or newcomer.status is Status.RUNNING
        assert move.answer or is_coming, "nothing is on its way, and it was not started"

    def _check_order_of_starts(self) -> None:
        """Law L19: nobody is started before a better-ranked one that waits on."""
        if not self._ranks:
            return
        left = {r.id for r in self._queues.waiting} & self._was_waiting
        started = [r for r in self._running() if r.id in self._was_waiting]
        for request in started:
            assert all(self._ranks[request.id] < self._ranks[name] for name in left), "law L19"

    def _check_limits(self, batch: Batch) -> None:
        """Law L10, and the policy's limits unless they would have left the step empty."""
        capacity, planner = self._scheduler.capacity, self._planner
        assert len(batch.chunks) <= capacity.max_batch_requests
        assert batch.num_tokens <= capacity.max_batch_tokens
        assert all(chunk.num_tokens > 0 for chunk in batch.chunks)
        limits = self._fills[-1]
        assert len(self._fills) == 1 or limits in FALLBACKS
        assert batch.num_tokens <= limits.max_tokens
        assert len(planner.decodes) <= limits.max_decodes
        assert len(planner.prefills) <= limits.max_prefills
        if planner.started:
            most = limits.max_running or capacity.max_batch_requests
            assert self._queues.num_running <= most
        if limits.whole_prompts:
            assert all(r.num_uncomputed == count for r, count in planner.prefills.values())
        self._check_time(batch, limits)
        most = self._moves._limits.max_copy_tokens
        book = self._kv.copies
        for copies, number, tokens in (
            (batch.parks, book.num_out, book.tokens_out),
            (batch.returns, book.num_in, book.tokens_in),
        ):
            assert not copies or number == 1 or tokens <= most, "the link's queue is too long"
        ways = [entry.is_return for entry in book]
        assert (ways.count(False), ways.count(True)) == (book.num_out, book.num_in)

    def _check_time(self, batch: Batch, limits: StepLimits) -> None:
        """The step costs what the plan says, added up anew, and no more than its time budget.

        More only for one due decode, which is served whatever it takes.
        """
        model = self._scheduler.model
        if model is None:
            return
        cost = StepCost(model)
        cost.fresh = self._planner.cost.fresh
        for chunk in batch.chunks:
            if chunk.request_id in self._planner.decodes:
                cost.add_decodes(1, chunk.start)
            else:
                cost.add_prefill(chunk.start, chunk.num_tokens)
        assert cost.total_ns == self._planner.cost.total_ns, "the plan's cost is not the step's"
        if limits.max_step_ns < NO_LIMIT and cost.total_ns > limits.max_step_ns:
            assert len(batch.chunks) == 1
            (name,) = self._planner.decodes
            is_fallback = len(self._fills) > 1
            assert is_fallback or self._policy.due(self._request(name), self._moves.view)

    def _check_room_of_those_who_came(self, batch: Batch) -> None:
        """Law L17: whoever comes back has room for its whole history and for what comes next."""
        for copy in batch.returns:
            request = self._request(copy.request_id)
            assert self._kv.covers(request, min(request.num_tokens + 1, request.max_num_tokens))
        for request in self._running():
            if request.id in self._was_waiting and len(request.timeline) > 2:
                assert self._kv.covers(request, request.num_tokens)

    def _check_no_idling(self, batch: Batch) -> None:
        """Laws L11 and L15: a step computes whenever anybody could, or waits for a copy."""
        running, queues, kv = self._running(), self._queues, self._kv
        if batch.chunks:
            self.steps_without_chunks = self._most_live = self._most_copies = 0
            return
        self.steps_without_chunks += 1
        self._most_live = max(self._most_live, len(queues))
        self._most_copies = max(self._most_copies, len(kv.copies))
        assert len(kv.copies), "laws L11, L15: nobody runs, and nothing is under way"
        assert not any(kv.covers(r, r.num_computed + 1) for r in running), "law L11"
        assert not running or kv.num_free == 0, "law L11"
        if not running and not batch.returns and not self._moves.preempted:
            head = queues.waiting.head()
            if head is not None and self._moves.blocked_rank is None:
                prefix = kv.find_prefix(head[1])
                assert kv.num_missing(prefix, head[1].max_num_tokens, 0) > 0, "law L11"
        # Every step without chunks ends a copy: of those who had left, or of somebody who made
        # progress before it was carried out, or who comes back and runs.
        assert self.steps_without_chunks <= 2 * self._most_live + self._most_copies
