"""The core and everything around it, with the laws checked after every single operation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from core_fakes import MemoryExecutor, Recorder, Truth, expected_output

from engine.core.batch import Batch
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.errors import RefusalReason, RequestRefused
from engine.core.executor import Capacity
from engine.core.planner import MAX_PREEMPTIONS
from engine.core.policy import SchedulingPolicy
from engine.core.request import FinishReason, RequestOrder, TbtMode
from engine.core.scheduler import MAX_FAULTS
from engine.core.stats import TokenEvent

STEP_NS = 7


class World:
    """Drives an EngineCore with a late and faulty executor; the outside's own books beside it."""

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        config: CoreConfig | None = None,
        *,
        enable_prefix_cache: bool = True,
    ) -> None:
        self.recorder = Recorder()
        self.core = EngineCore(
            capacity,
            policy,
            config,
            observer=self.recorder,
            enable_prefix_cache=enable_prefix_cache,
        )
        self.executor = MemoryExecutor(capacity)
        self.config = config or CoreConfig()
        self.now_ns = 0
        self.out: Batch | None = None
        self.live: dict[str, Truth] = {}
        self.ended: list[Truth] = []
        self.batches: list[Batch] = []
        self.refused: list[RefusalReason] = []
        self.steps_without_progress = 0
        self.faults: dict[int, int] = {}
        self.abandoned = 0
        self.is_sound = True  # False from a broken law on: nothing can be concluded any more

    # Operations

    def wait(self, duration_ns: int) -> None:
        self.now_ns += duration_ns

    def submit(self, order: RequestOrder) -> bool:
        self.is_sound = False
        before = self.core.snapshot(self.now_ns)
        expected = self._expected_refusals(order)
        refusal = None
        try:
            self.core.submit(order, self.now_ns)
        except RequestRefused as error:
            refusal = error
        if refusal is None:
            assert not expected
            self.live[order.id] = Truth(order)
        else:
            assert refusal.reason in expected
            assert refusal.detail
            assert self.core.snapshot(self.now_ns) == before, "a refused request left something"
            self.refused.append(refusal.reason)
        self.check()
        return refusal is None

    def _expected_refusals(self, order: RequestOrder) -> set[RefusalReason]:
        capacity, sampling = self.core.capacity, order.sampling
        total = len(order.prompt) + sampling.max_tokens
        waiting = self.core.snapshot(self.now_ns)
        tokens = waiting.waiting_prompt_tokens + len(order.prompt)
        found = set()
        if order.id in self.live:
            found.add(RefusalReason.DUPLICATE_ID)
        if not order.prompt:
            found.add(RefusalReason.EMPTY_PROMPT)
        if total > min(capacity.max_model_len, capacity.num_blocks * capacity.block_size):
            found.add(RefusalReason.NEVER_FITS)
        if sampling.max_tokens < 1:
            found.add(RefusalReason.NEVER_FITS)
        if waiting.waiting >= self.config.max_waiting_requests:
            found.add(RefusalReason.QUEUE_FULL)
        if waiting.waiting and tokens > self.config.max_waiting_prompt_tokens:
            found.add(RefusalReason.QUEUE_FULL)
        return found

    def abort(self, request_id: str) -> list[TokenEvent]:
        self.is_sound = False
        known = request_id in self.live
        events = self._take(self.core.abort(request_id, self.now_ns))
        assert [e.finish_reason for e in events] == [FinishReason.CANCELLED] * known
        return events

    def stop(self, request_id: str, num_output_tokens: int) -> list[TokenEvent]:
        self.is_sound = False
        truth = self.live.get(request_id)
        events = self._take(self.core.stop(request_id, num_output_tokens, self.now_ns))
        if truth is None:
            assert events == []
        else:
            assert truth.end is not None
            assert truth.end.finish_reason is FinishReason.STOP
            assert truth.end.num_output_tokens == min(num_output_tokens, len(truth.output))
        return events

    def start(self) -> Batch | None:
        self.is_sound = False
        assert self.out is None
        batch = self.core.start_step(self.now_ns)
        # Law L11: nothing to do means nobody is there, and the other way round.
        assert (batch is None) == (not self.live), "the engine stands still with work to do"
        if batch is not None:
            self._check_batch(batch)
            self.executor.dispatch(batch, self.live)
            self.batches.append(batch)
            self.out = batch
        self.check()
        return batch

    def finish(self, failed: Iterable[str] = ()) -> list[TokenEvent]:
        self.is_sound = False
        batch = self._take_out()
        self.now_ns += STEP_NS
        result = self.executor.complete(batch, STEP_NS, tuple(failed))
        events = self.core.finish_step(batch, result, self.now_ns)
        order = [chunk.request_id for chunk in batch.chunks]
        places = [order.index(event.request_id) for event in events]
        assert places == sorted(places), "events are not in the batch's order"
        self._note_progress(bool(events))
        return self._take(events)

    def fault(self) -> list[TokenEvent]:
        self.is_sound = False
        batch = self._take_out()
        self.now_ns += STEP_NS
        self.executor.lose(batch)
        gone = []
        for chunk in batch.chunks:
            truth = self.live.get(chunk.request_id)
            if truth is not None and chunk.start < len(truth.history):
                self.faults[id(truth)] = self.faults.get(id(truth), 0) + 1
        events = self.core.fail_step(batch, self.now_ns, "device memory ran out")
        gone = [event.request_id for event in events]
        assert all(self.faults[id(self.live[name])] > MAX_FAULTS for name in gone)
        assert all(event.finish_reason is FinishReason.FAILED for event in events)
        self.steps_without_progress = 0
        return self._take(events)

    def fail_all(self) -> list[TokenEvent]:
        self.is_sound = False
        self.abandoned += self.out is not None
        self.out = None
        events = self.core.fail_all(self.now_ns, "the executor is gone")
        assert {event.request_id for event in events} == set(self.live)
        return self._take(events)

    def drain(self) -> None:
        """Run until nobody is left; then everything must be as it was in the beginning."""
        if self.out is not None:
            self.finish()
        while self.start() is not None:
            self.finish()
        assert not self.core.has_work
        snapshot = self.core.snapshot(self.now_ns)
        assert snapshot.free_blocks == snapshot.num_blocks
        assert (snapshot.waiting, snapshot.running, snapshot.waiting_prompt_tokens) == (0, 0, 0)
        assert (snapshot.waiting_by_tier, snapshot.running_by_tier) == ((), ())

    # Books

    def _take_out(self) -> Batch:
        batch, self.out = self.out, None
        assert batch is not None
        return batch

    def _take(self, events: list[TokenEvent]) -> list[TokenEvent]:
        for event in events:
            truth = self.live[event.request_id]  # an event after the end would find nobody
            assert event.at_ns == self.now_ns
            if event.token_id is not None:
                truth.output.append(event.token_id)
                truth.token_times.append(event.at_ns)
                expected = expected_output(truth.order)
                assert tuple(truth.output) == expected[: len(truth.output)], "laws L30, L31"
            assert (event.stats is None) == (event.finish_reason is None)
            if event.stats is not None:
                truth.end = event.stats
                self.steps_without_progress = 0
                self._check_end(truth, event)
                del self.live[event.request_id]
                self.ended.append(truth)
        self.check()
        return events

    def _check_end(self, truth: Truth, event: TokenEvent) -> None:
        stats, order = truth.end, truth.order
        assert stats is not None
        assert stats.finish_reason is event.finish_reason
        assert (stats.request_id, stats.tenant, stats.tier) == (order.id, order.tenant, order.tier)
        expected = expected_output(order)
        if event.token_id is not None:
            assert tuple(truth.output) == expected, "it ended early, or late"
            stopped = expected[-1] in order.sampling.stop_token_ids and (
                len(expected) > order.sampling.min_tokens
            )
            assert stats.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        if stats.finish_reason is not FinishReason.STOP:
            assert stats.num_output_tokens == len(truth.output)
        assert stats.num_prompt_tokens == len(order.prompt)
        assert 0 <= stats.num_cached_tokens < len(order.prompt)
        assert stats.num_cached_tokens % self.core.capacity.block_size == 0
        # L38: the first token's time is that of the first token, and L36: time never runs back.
        first = truth.token_times[0] if truth.token_times else None
        last = truth.token_times[-1] if truth.token_times else None
        assert (stats.first_token_ns, stats.last_token_ns) == (first, last)
        times = [stats.arrival_ns, stats.first_scheduled_ns, first, last, stats.finished_ns]
        known = [time for time in times if time is not None]
        assert known == sorted(known)
        assert first is None or stats.first_scheduled_ns is not None
        assert stats.late_tokens == late_tokens(truth)
        assert stats.preemptions <= MAX_PREEMPTIONS, "law L16"

    def _check_batch(self, batch: Batch) -> None:
        capacity = self.core.capacity
        names = [chunk.request_id for chunk in batch.chunks]
        assert names
        assert len(set(names)) == len(names), "law L9: scheduled twice"
        assert set(names) <= self.live.keys()
        assert len(names) <= capacity.max_batch_requests
        assert batch.num_tokens <= capacity.max_batch_tokens
        assert all(chunk.num_tokens > 0 for chunk in batch.chunks)
        assert batch.step == len(self.batches) + 1
        self._check_preemptions(set(names))

    def _check_preemptions(self, scheduled: set[str]) -> None:
        planner = self.core._scheduler.planner
        preempted = {request.id for request in planner.preempted}
        assert not preempted & scheduled, "law L9: scheduled and preempted"
        view = planner.view(self.now_ns)
        policy = self.core.policy
        for request in planner.preempted:
            self.executor.forget_table(self.live[request.id])
        if preempted:  # law L16: somebody ranked ahead of every victim was served
            served = [r for r in self.core._scheduler.queues if r.id in scheduled]
            best = min(policy.keep_rank(request, view) for request in served)
            assert all(policy.keep_rank(r, view) > best for r in planner.preempted)

    def _note_progress(self, progressed: bool) -> None:
        """Law L12: within K steps somebody gets a token or ends.

        K is the steps of one longest history and one more where the first that came is served
        first; a policy that ranks by dice needs a few times as many.
        """
        self.steps_without_progress = 0 if progressed else self.steps_without_progress + 1
        capacity, policy = self.core.capacity, self.core.policy
        if policy.name == "hostile":
            bound = 4 * -(-capacity.max_model_len // capacity.max_batch_tokens) + 8
        else:
            limits = policy.limits(self.core._scheduler.planner.view(self.now_ns))
            # A limit of nothing is not kept (law L11): the executor's own holds then.
            budget = min(limits.max_tokens, capacity.max_batch_tokens) or capacity.max_batch_tokens
            bound = -(-capacity.max_model_len // budget) + 1
        assert self.steps_without_progress <= bound

    def check(self) -> None:
        self.core.check_integrity()
        snapshot = self.core.snapshot(self.now_ns)
        assert snapshot.waiting + snapshot.running == len(self.live)  # law L1
        assert snapshot.submitted_total == len(self.live) + len(self.ended)
        assert snapshot.finished_total == len(self.ended)
        assert self.recorder.finished == [truth.end for truth in self.ended]
        everyone = (*self.ended, *self.live.values())
        assert snapshot.output_tokens_total == sum(len(truth.output) for truth in everyone)
        assert snapshot.recomputed_tokens_total <= snapshot.computed_tokens_total
        assert sum(count for _, count in snapshot.waiting_by_tier) == snapshot.waiting
        assert sum(count for _, count in snapshot.running_by_tier) == snapshot.running
        over = len(self.batches) - self.abandoned - (self.out is not None)
        assert len(self.recorder.steps) == over
        self.is_sound = True


def late_tokens(truth: Truth) -> int:
    """The lateness rule of the tiers, told a second time."""
    slo, times = truth.order.slo, truth.token_times
    if slo.tbt_mode is TbtMode.GAP:
        return sum(b - a > slo.tbt_ns for a, b in itertools.pairwise(times))
    return sum(time > times[0] + i * slo.tbt_ns for i, time in enumerate(times))
