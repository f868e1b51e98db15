"""From waiting requests to batches, and from results to token events: the three calls of a step.

It knows queues, blocks and the policy, and neither clocks nor observers: `now_ns` is handed in.
A request is two counters, computed and total; prefill, decode, resumption after preemption and
prefix hits differ only in how far apart they are. One step at most is dispatched at any time, and
copies go on beside any number of steps; what either still uses stays fenced until it is over (L5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.core.batch import Batch, Chunk, SampledToken, StepResult, decode_chunk
from engine.core.decision_log import DecisionLog
from engine.core.errors import RefusalReason, RequestRefused
from engine.core.executor import Capacity
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.latency_model import LatencyModel
from engine.core.length_predictor import HistoryPredictor, LengthPredictor
from engine.core.planner import Planner
from engine.core.policy import SchedulingPolicy
from engine.core.queues import Queues
from engine.core.request import FinishReason, Request, RequestOrder, Status
from engine.core.request_story import stats_of
from engine.core.stats import TokenEvent
from engine.core.step_features import freshness

MAX_FAULTS = 2


class Scheduler:
    """Owns every live request from `add` until the event that carries its stats."""

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        *,
        max_waiting_requests: int,
        max_waiting_prompt_tokens: int,
        enable_prefix_cache: bool = True,
        model: LatencyModel | None = None,
        predictor: LengthPredictor | None = None,
        log: DecisionLog,
    ) -> None:
        self.capacity = capacity
        self.policy = policy
        self.model = model
        self._predictor = predictor or HistoryPredictor()
        self.queues = Queues()
        self.kv = KVCacheManager(
            capacity.num_blocks,
            capacity.block_size,
            enable_prefix_cache=enable_prefix_cache,
            num_host_blocks=capacity.num_host_blocks,
            host_is_exact=capacity.host_is_exact,
        )
        self.log = log
        self.planner = Planner(capacity, policy, self.queues, self.kv, model, self.log)
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_prompt_tokens = max_waiting_prompt_tokens
        self._live: dict[str, Request] = {}
        self.step = 0
        # The dispatched step: its batch, and the request of each chunk, gone or not.
        self.dispatched: Batch | None = None
        self._dispatched_requests: list[Request] = []
        self.predicted_ns = 0  # what the dispatched step should take
        self._began_ns: int | None = None  # of the last step, where the next follows at once
        self._held = self.planner.cost.held  # by the dispatched step
        self._since_idle = 0  # steps that followed each other before this one
        self._continues = False  # the next one follows at once

    # Coming and going

    def add(self, order: RequestOrder, now_ns: int) -> Request:
        """Take a request into the waiting queue; raises RequestRefused and keeps nothing of it."""
        self._refuse_unservable(order)
        # Each tier has a queue's worth of its own: a flood of one must not refuse another.
        num_waiting = self.queues.waiting_by_tier[order.tier]
        if num_waiting >= self._max_waiting_requests:
            raise RequestRefused(
                RefusalReason.QUEUE_FULL, f"{num_waiting} requests are waiting already"
            )
        num_tokens = self.queues.waiting_tokens_by_tier[order.tier]
        # A lone prompt may be longer than the bound, else it would be told to retry for ever.
        if num_waiting and num_tokens + len(order.prompt) > self._max_waiting_prompt_tokens:
            raise RequestRefused(
                RefusalReason.QUEUE_FULL, f"{num_tokens} prompt tokens are waiting already"
            )
        request = Request(order, now_ns)
        request.estimate = order.estimate or self._predictor.predict(order)
        self.kv.register(request)
        self._live[request.id] = request
        self.queues.wait(request, self.policy.prefill_rank(request, self.planner.view(now_ns)))
        return request

    def _refuse_unservable(self, order: RequestOrder) -> None:
        if order.id in self._live:
            raise RequestRefused(RefusalReason.DUPLICATE_ID, f"request {order.id} is still live")
        if not order.prompt:
            raise RequestRefused(RefusalReason.EMPTY_PROMPT, "the prompt has no tokens")
        if order.sampling.max_tokens < 1:
            raise RequestRefused(RefusalReason.NEVER_FITS, "max_tokens must be at least 1")
        total = len(order.prompt) + order.sampling.max_tokens
        pool = self.capacity.num_blocks * self.capacity.block_size
        limit = min(self.capacity.max_model_len, pool)
        if total > limit:
            where = "context window" if limit == self.capacity.max_model_len else "KV cache"
            raise RequestRefused(
                RefusalReason.NEVER_FITS,
                f"{len(order.prompt)} prompt tokens + max_tokens {order.sampling.max_tokens} "
                f"exceed the {where} of {limit} tokens",
            )

    def find(self, request_id: str) -> Request | None:
        """Return a live request; None where it ended or never was."""
        return self._live.get(request_id)

    def end(
        self,
        request: Request,
        reason: FinishReason,
        now_ns: int,
        *,
        num_output_tokens: int | None = None,
        detail: str = "",
    ) -> TokenEvent:
        """End a live request at once, in whatever state, and return its last event.

        Blocks that a dispatched step or a copy uses stay fenced until that is over; the step's
        token for this request is then dropped.
        """
        self._finish(request, reason, now_ns)
        return TokenEvent(
            request_id=request.id,
            token_id=None,
            at_ns=now_ns,
            finish_reason=reason,
            stats=stats_of(request, num_output_tokens=num_output_tokens, detail=detail),
        )

    def _finish(self, request: Request, reason: FinishReason, now_ns: int) -> None:
        fenced = self.dispatched is not None and request in self._dispatched_requests
        self.kv.forget(request, fenced=fenced)
        self.queues.end(request, now_ns)
        request.finish_reason = reason
        del self._live[request.id]

    # A step

    def schedule(self, now_ns: int) -> Batch | None:
        """Return the next batch, or None when nobody waits, runs or is carried."""
        assert self.dispatched is None, "a step is still out"
        self._time_last_step(now_ns)
        follows_prompt = self._continues and self._held.num_prefills > 0
        self._since_idle = self._since_idle + 1 if self._continues else 0
        self._continues = False
        self.planner.cost.fresh = freshness(self._since_idle, follows_prompt=follows_prompt)
        self.log.begin(now_ns)
        if self._live:
            planned = self.planner.plan(now_ns)
            # No state lets live requests stand still (laws L11, L12); see planner.py for why.
            assert planned, "there are requests and nothing was planned"
        elif len(self.kv.copies):
            self.planner.rest(now_ns)
        else:
            return None
        requests = list(self.planner.decodes.values())
        chunks = [*map(_decode_chunk, requests, self.kv.tables(requests))]
        for request, num_tokens in self.planner.prefills.values():
            chunks.append(_prefill_chunk(request, num_tokens, self.kv.block_ids(request)))
            requests.append(request)
        self.step += 1
        self._dispatched_requests = requests
        decodes, prefills = self.planner.decodes, self.planner.prefills
        self.log.planned(self.step, now_ns, self.queues, decodes, prefills)
        if news := self.policy.news():
            self.log.rethought(news, now_ns)
        moves = self.planner.moves
        self.dispatched = Batch(self.step, tuple(chunks), tuple(moves.parks), tuple(moves.returns))
        self.predicted_ns, self._held = int(self.planner.cost.total_ns), self.planner.cost.held
        self._began_ns = now_ns if chunks else None
        return self.dispatched

    def _time_last_step(self, now_ns: int) -> None:
        """Learn what the last step took, from batch to batch as profiles count it.

        What the loop does between steps is in it; where the engine may have idled nobody knows.
        Copies beside a step cost it nothing, or are what steps cost. Learnt before anything is
        planned: ranks must not move while a step is planned.
        """
        began_ns, self._began_ns = self._began_ns, None
        if began_ns is not None and self._live and self.model is not None:
            self.model.learn(self._held, self.predicted_ns, now_ns - began_ns)
        self._continues = self._continues or began_ns is not None

    def update(self, batch: Batch, result: StepResult, now_ns: int) -> list[TokenEvent]:
        """Take a step's result in: counters, tokens, ends, copies that are over.

        Returns the events in batch order, and behind them the ends of those whose copies were lost.
        """
        failed = frozenset(result.failed)
        sampling = [c.request_id for c in batch.chunks if c.sampling and c.request_id not in failed]
        assert result.step == batch.step, f"result of step {result.step} for {batch.step}"
        assert [t.request_id for t in result.tokens] == sampling, "one token per sampling chunk"
        requests = self._take_back(batch)
        if self.model is not None:
            self.model.settle()
        events = []
        tokens = iter(result.tokens)
        for chunk, request in zip(batch.chunks, requests, strict=True):
            is_failed = chunk.request_id in failed
            token = next(tokens) if chunk.sampling and not is_failed else None
            if request.status is Status.FINISHED:
                continue  # it left while the step was out; its blocks were fenced until now
            if is_failed:
                detail = _why_no_token(request)
                events.append(self.end(request, FinishReason.FAILED, now_ns, detail=detail))
                continue
            self._advance(request, chunk.end)
            if token is not None:
                events.append(self._take_token(request, token, now_ns))
        if result.copied or result.lost_copies:
            events += self._end_copies(result, now_ns)
        if batch.chunks:
            live = [request for request in requests if request.status is Status.RUNNING]
            self.policy.observe(live, result.elapsed_ns, self.planner.view(now_ns))
        if not self._live:
            self._began_ns = None
        return events

    def recompute(self, batch: Batch, now_ns: int, detail: str) -> list[TokenEvent]:
        """The dispatched step failed: its requests start over, or end after too many faults.

        That holds for whoever is being carried as well (law L33): a return that were tried again
        and again would take everybody in its steps with it.
        """
        self._began_ns = None
        return self._start_over([*self._take_back(batch), *self._lose_copies()], now_ns, detail)

    def _end_copies(self, result: StepResult, now_ns: int) -> list[TokenEvent]:
        """Copies are over: who came back runs from now on, whose context was lost starts over."""
        for number in result.copied:
            ended = self.kv.end_copy(number, is_lost=False)
            if ended.is_return and not ended.is_orphan:
                self.queues.resume(ended.request, now_ns)
                self.log.returned(ended.request, now_ns)
        lost = [self.kv.end_copy(number, is_lost=True) for number in result.lost_copies]
        requests = [ended.request for ended in lost if not ended.is_orphan]
        detail = "its context was lost between device and host"
        return self._start_over(requests, now_ns, detail)

    def _lose_copies(self) -> list[Request]:
        """No copy is under way any more; return who was being carried and is live."""
        copies = self.kv.copies
        lost = [self.kv.end_copy(number, is_lost=True) for number in copies.numbers()]
        return [ended.request for ended in lost if not ended.is_orphan]

    def _start_over(
        self, requests: Sequence[Request], now_ns: int, detail: str
    ) -> list[TokenEvent]:
        """These met a fault: compute those that are live again, or end them after too many."""
        events = []
        for request in requests:
            if request.status is Status.FINISHED:
                continue
            request.fault_count += 1
            if request.fault_count > MAX_FAULTS:
                events.append(self.end(request, FinishReason.FAILED, now_ns, detail=detail))
                continue
            self.kv.release(request)
            self.log.fault(request, detail, now_ns)
            self.queues.interrupt(request, now_ns)
            rank = self.policy.prefill_rank(request, self.planner.view(now_ns))
            self.queues.wait(request, rank)
        return events

    def abandon(self, now_ns: int, detail: str) -> list[TokenEvent]:
        """End everyone as FAILED; only when no executor will touch the blocks any more."""
        if self.dispatched is not None:
            self._take_back(self.dispatched)
        self._lose_copies()
        return [
            self.end(request, FinishReason.FAILED, now_ns, detail=detail)
            for request in list(self._live.values())
        ]

    def _take_back(self, batch: Batch) -> Sequence[Request]:
        assert self.dispatched is not None, "no step is out"
        assert batch.step == self.dispatched.step, "another step is out"
        requests = self._dispatched_requests
        self.dispatched = None
        self._dispatched_requests = []
        self.kv.lift_fence()
        return requests

    def _advance(self, request: Request, end: int) -> None:
        """The tokens before `end` are in the cache now."""
        start, work = request.num_computed, self.planner.work
        work.computed += end - start
        if start < request.high_water:
            work.recomputed += min(end, request.high_water) - start
        request.num_computed = end
        self.kv.publish(request)

    def _take_token(self, request: Request, token: SampledToken, now_ns: int) -> TokenEvent:
        """Append a token and judge whether it is the last.

        A stop token ends the request and counts as generated, as in the OpenAI API's usage; its
        event carries the id, and the reader leaves it out of the text.
        """
        request.add_token(token.token_id, now_ns)
        request.fault_count = 0  # it got past the place where its steps failed
        sampling = request.order.sampling
        if sampling.embeds:
            ended = self.end(request, FinishReason.STOP, now_ns, num_output_tokens=0)
            return dataclasses.replace(ended, vector=token.vector)
        reason: FinishReason | None = None
        if token.token_id in sampling.stop_token_ids and (
            # Before min_tokens an end comes only where the grammar allows nothing else.
            len(request.output) > sampling.min_tokens or sampling.grammar
        ):
            reason = FinishReason.STOP
        elif len(request.output) >= sampling.max_tokens:
            reason = FinishReason.LENGTH
        if reason is None:
            self.queues.refile(request)
        else:
            self._finish(request, reason, now_ns)
            self._predictor.observe(request.order, len(request.output))
        stats = None if reason is None else stats_of(request)
        return TokenEvent(
            request.id, token.token_id, now_ns, token.logprob, token.top, reason, stats
        )

    def check_integrity(self) -> None:
        """Assert laws L2, L3, L5, L6 and L10 by walking everything; for tests and debugging."""
        self.queues.check_integrity()
        live = {request.id: request for request in self.queues}
        assert live == self._live, "the places and the book of live requests differ"
        chunks = () if self.dispatched is None else self.dispatched.chunks
        tables = None if self.dispatched is None else [chunk.block_ids for chunk in chunks]
        self.kv.check_integrity(live.values(), tables)
        for request in live.values():
            assert 0 <= request.num_computed <= request.num_tokens <= request.max_num_tokens
            assert request.num_cached <= request.num_prompt_tokens
        carried = {e.request.id for e in self.kv.copies if not e.is_orphan}
        assert carried == {r.id for r in live.values() if r.copy_number}
        assert all(name in self.queues.parked for name in carried), "carried, and not parked"
        if self.dispatched is not None:
            assert len(chunks) <= self.capacity.max_batch_requests
            assert self.dispatched.num_tokens <= self.capacity.max_batch_tokens
            owned = {r.id: self.kv.block_ids(r) for r in live.values()}
            for chunk, request in zip(chunks, self._dispatched_requests, strict=True):
                gone = request.status is Status.FINISHED
                assert gone or owned[request.id] is chunk.block_ids, "a table changed under a step"


def _why_no_token(request: Request) -> str:
    if request.order.sampling.grammar:
        return "no next token could be found that the answer's format allows"
    return "the model gave no finite result for this request"


def _decode_chunk(request: Request, block_ids: tuple[int, ...]) -> Chunk:
    """The last generated token, whose keys and values are the only ones missing."""
    output, order = request.output, request.order
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    if request.needs_history:
        prompt_ids, output_ids = order.prompt, tuple(output)
    return decode_chunk(
        request.id,
        request.num_computed,
        output[-1],
        block_ids,
        order.sampling,
        len(output),
        prompt_ids,
        output_ids,
    )


def _prefill_chunk(request: Request, num_tokens: int, block_ids: tuple[int, ...]) -> Chunk:
    """The next tokens of a history; nothing is sampled before all of it is restored (law L31)."""
    start = request.num_computed
    end = start + num_tokens
    sampling = request.order.sampling if end == request.num_tokens else None
    needs_history = sampling is not None and request.needs_history
    return Chunk(
        request_id=request.id,
        start=start,
        token_ids=request.tokens(start, end),
        block_ids=block_ids,
        sampling=sampling,
        output_index=len(request.output),
        prompt_ids=request.order.prompt if needs_history else (),
        output_ids=tuple(request.output) if needs_history else (),
    )
