"""The core and everything around it, with the laws checked after every single operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from core_copier import Copier
from core_executor import Carried, MemoryExecutor
from core_fakes import Recorder, Truth
from core_laws import Witness

from engine.core.batch import Batch
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.errors import RefusalReason, RequestRefused
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.memory_moves import MAX_PREEMPTIONS
from engine.core.policy import NO_LIMIT, SchedulingPolicy
from engine.core.request import FinishReason, RequestOrder, Status, TbtMode
from engine.core.scheduler import MAX_FAULTS
from engine.core.stats import TokenEvent

STEP_NS = 7

# Policies that serve requests in an order that time does not change.
STILL = ("fcfs", "sarathi", "sarathi-spf", "orca", "vllm0", "tiered")


class World:
    """Drives an EngineCore with a late and faulty executor; the outside's own books beside it."""

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        config: CoreConfig | None = None,
        *,
        enable_prefix_cache: bool = True,
        model: LatencyModel | None = None,
        copier: Copier | None = None,
    ) -> None:
        self.copier = copier or Copier()
        self.recorder = Recorder()
        self.core = EngineCore(
            capacity,
            policy,
            config,
            observer=self.recorder,
            enable_prefix_cache=enable_prefix_cache,
            model=model,
        )
        self.witness = Witness(self.core)
        self.executor = MemoryExecutor(capacity, self._num_computed)
        self.config = config or CoreConfig()
        self.now_ns = 0
        self.out: Batch | None = None
        self.live: dict[str, Truth] = {}
        self.ended: list[Truth] = []
        self.batches: list[Batch] = []
        self.refused: list[RefusalReason] = []
        self.num_copied = 0  # tokens that arrived, both ways
        self.num_lost = 0  # copies
        self.steps_without_progress = 0
        self.most_steps_without_progress = 0
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
        # A tier's queue is its own: what others have waiting refuses nobody.
        waiting = [
            r.num_prompt_tokens
            for r in self.core._scheduler.queues.waiting
            if r.order.tier == order.tier
        ]
        tokens = sum(waiting) + len(order.prompt)
        found = set()
        if order.id in self.live:
            found.add(RefusalReason.DUPLICATE_ID)
        if not order.prompt:
            found.add(RefusalReason.EMPTY_PROMPT)
        if total > min(capacity.max_model_len, capacity.num_blocks * capacity.block_size):
            found.add(RefusalReason.NEVER_FITS)
        if sampling.max_tokens < 1:
            found.add(RefusalReason.NEVER_FITS)
        if len(waiting) >= self.config.max_waiting_requests:
            found.add(RefusalReason.QUEUE_FULL)
        if waiting and tokens > self.config.max_waiting_prompt_tokens:
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
        self.witness.before(self.now_ns)
        batch = self.core.start_step(self.now_ns)
        # Law L11: nothing to do means nobody is there, and the other way round. Copies of those who
        # left are work as well: their blocks come free with a report.
        has_work = bool(self.live or self.executor.under_way)
        assert (batch is None) == (not has_work), "the engine stands still with work to do"
        if batch is not None:
            self._check_batch(batch)
            self.executor.dispatch(batch, self.live)
            self._note_parks(batch)
            self.batches.append(batch)
            self.out = batch
        self.check()
        return batch

    def finish(
        self,
        failed: Iterable[str] = (),
        *,
        copied: Iterable[int] | None = None,
        lost: Iterable[int] = (),
    ) -> list[TokenEvent]:
        """End the step. Which copies are over the copier says, where `copied` does not."""
        self.is_sound = False
        batch = self._take_out()
        self.now_ns += STEP_NS
        under_way = dict(self.executor.under_way)
        arrived, gone = (() if copied is None else tuple(copied)), tuple(lost)
        if copied is None:
            numbers = [number for number in under_way if number not in gone]
            arrived, more = self.copier.over(numbers, at_least_one=not (batch.chunks or gone))
            gone += more
        result = self.executor.complete(batch, STEP_NS, tuple(failed), arrived, gone)
        fallen = self._note_copies([under_way[n] for n in arrived], [under_way[n] for n in gone])
        events = self.core.finish_step(batch, result, self.now_ns)
        order = [chunk.request_id for chunk in batch.chunks]
        of_copies = [event for event in events if event.request_id not in order]
        places = [order.index(e.request_id) for e in events[: len(events) - len(of_copies)]]
        assert places == sorted(places), "events are not in the batch's order"
        # Three faults in a row, without a token in between, are the end.
        assert {event.request_id for event in of_copies} == self._hopeless(fallen)
        for number in arrived:
            entry = under_way[number]
            request = self.core._scheduler.find(entry.copy.request_id)
            if entry.truth.end is None:
                assert request is not None
                assert request.status is (Status.RUNNING if entry.is_return else Status.PARKED)
        self._check_started_over(fallen)
        self._note_progress(bool(events))
        return self._take(events)

    def _note_copies(self, arrived: list[Carried], lost: list[Carried]) -> list[Truth]:
        """Keep the books of copies that are over; return whose contexts are lost, the live."""
        self.num_copied += sum(entry.num_tokens for entry in arrived)
        self.num_lost += len(lost)
        for entry in (*arrived, *lost):
            if entry.truth.end is None and (entry.is_return or entry in lost):
                self._end_parking(entry.truth)
        fallen = [entry.truth for entry in lost if entry.truth.end is None]
        for truth in fallen:
            self.faults[id(truth)] = self.faults.get(id(truth), 0) + 1
        return fallen

    def _hopeless(self, fallen: list[Truth]) -> set[str]:
        return {t.order.id for t in fallen if self.faults[id(t)] > MAX_FAULTS}

    def _check_started_over(self, fallen: list[Truth]) -> None:
        """Law L33: whoever was carried, or computed in a step that failed, is computed again."""
        for truth in fallen:
            request = self.core._scheduler.find(truth.order.id)
            assert request is None or request.status is Status.WAITING
            assert request is None or request.num_computed == 0

    def fault(self) -> list[TokenEvent]:
        self.is_sound = False
        batch = self._take_out()
        self.now_ns += STEP_NS
        fallen = self._note_copies([], list(self.executor.under_way.values()))
        for truth in self.executor.lose():
            if truth.end is None and not any(truth is other for other in fallen):
                fallen.append(truth)
                self.faults[id(truth)] = self.faults.get(id(truth), 0) + 1
        events = self.core.fail_step(batch, self.now_ns, "device memory ran out")
        self._check_started_over(fallen)
        assert {event.request_id for event in events} == self._hopeless(fallen)
        assert all(event.finish_reason is FinishReason.FAILED for event in events)
        self.steps_without_progress = 0
        return self._take(events)

    def fail_all(self) -> list[TokenEvent]:
        self.is_sound = False
        self.abandoned += self.out is not None
        self.out = None
        self.num_lost += len(self.executor.under_way)
        self.executor.stop()
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
        assert snapshot.free_host_blocks == snapshot.num_host_blocks
        assert (snapshot.waiting, snapshot.running, snapshot.parked) == (0, 0, 0)
        assert snapshot.waiting_prompt_tokens == 0
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
                self.faults.pop(id(truth), None)
                truth.output.append(event.token_id)
                truth.token_times.append(event.at_ns)
                expected = truth.expected[: len(truth.output)]
                assert tuple(truth.output) == expected, "laws L30, L31"
            assert (event.stats is None) == (event.finish_reason is None)
            if event.stats is not None:
                truth.end = event.stats
                if truth.parked_since is not None:
                    truth.parked_ns += self.now_ns - truth.parked_since
                    truth.parked_since = None
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
        expected = truth.expected
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
        assert (stats.parks, stats.parked_ns) == (truth.num_parks, truth.parked_ns)
        assert stats.parks <= len(order.prompt) + order.sampling.max_tokens, "law L16"

    def _check_batch(self, batch: Batch) -> None:
        names = [chunk.request_id for chunk in batch.chunks]
        under_way = self.executor.under_way
        assert names or under_way or batch.parks or batch.returns
        assert set(names) <= self.live.keys()
        assert batch.step == len(self.batches) + 1
        self.witness.after(batch)
        for request in self.core._scheduler.planner.preempted:
            self.executor.forget_table(self.live[request.id])

    def _note_parks(self, batch: Batch) -> None:
        for copy in batch.parks:
            truth = self.live[copy.request_id]
            truth.num_parks += 1
            truth.parked_since = self.now_ns

    def _end_parking(self, truth: Truth) -> None:
        if truth.parked_since is not None:
            truth.parked_ns += self.now_ns - truth.parked_since
            truth.parked_since = None

    def _num_computed(self, name: str) -> int:
        request = self.core._scheduler.find(name)
        assert request is not None
        return request.num_computed

    def _note_progress(self, progressed: bool) -> None:
        """Law L12: within K steps somebody gets a token or ends, whatever the policy.

        Every step computes a token or carries somebody. Nobody is carried out again before it
        computed more, and computed tokens are lost only when somebody is dropped, which happens
        MAX_PREEMPTIONS times at most. So with n live requests of at most L tokens K is less than
        3 * n * L * (1 + MAX_PREEMPTIONS): no state stands still for ever.

        Where ranks stand still and nothing but tokens is short, K is the steps of one longest
        history, and two more while copies are under way. Everybody else stays within four such
        histories of lone tokens. Late copies make steps of other kinds: each without chunks ends a
        copy, and each with some computes tokens.
        """
        self.steps_without_progress = 0 if progressed else self.steps_without_progress + 1
        self.most_steps_without_progress = max(
            self.most_steps_without_progress, self.steps_without_progress
        )
        capacity, policy = self.core.capacity, self.core.policy
        limits = policy.limits(self.core._scheduler.planner.view(self.now_ns))
        longest = capacity.max_model_len
        bound = 4 * longest + 8
        if policy.name in STILL and limits.max_step_ns >= NO_LIMIT:
            # A limit of nothing is not kept (law L11): the executor's own holds then.
            budget = min(limits.max_tokens, capacity.max_batch_tokens) or capacity.max_batch_tokens
            bound = -(-longest // budget) + (4 if capacity.num_host_blocks else 2)
        if self.copier.is_late:
            bound = 8 * longest + 8
        assert self.steps_without_progress <= bound, "law L12"

    def check(self) -> None:
        self.core.check_integrity()
        snapshot = self.core.snapshot(self.now_ns)
        assert snapshot.waiting + snapshot.running + snapshot.parked == len(self.live)  # law L1
        tenants = Counter(r.order.tenant for r in self.core._scheduler.queues)
        assert tenants == Counter(truth.order.tenant for truth in self.live.values())
        assert snapshot.submitted_total == len(self.live) + len(self.ended)
        assert snapshot.finished_total == len(self.ended)
        assert self.recorder.finished == [truth.end for truth in self.ended]
        everyone = (*self.ended, *self.live.values())
        assert snapshot.output_tokens_total == sum(len(truth.output) for truth in everyone)
        assert snapshot.parks_total == sum(truth.num_parks for truth in everyone)
        assert snapshot.copied_tokens_total == self.num_copied
        assert snapshot.lost_copies_total == self.num_lost
        ways = [entry.is_return for entry in self.executor.under_way.values()]
        assert (snapshot.leaving, snapshot.returning) == (ways.count(False), ways.count(True))
        assert snapshot.leaving + snapshot.returning or not snapshot.coming_blocks
        assert snapshot.recomputed_tokens_total <= snapshot.computed_tokens_total
        assert sum(count for _, count in snapshot.waiting_by_tier) == snapshot.waiting
        assert sum(count for _, count in snapshot.running_by_tier) == snapshot.running
        assert snapshot.free_host_blocks <= snapshot.num_host_blocks
        over = len(self.batches) - self.abandoned - (self.out is not None)
        assert len(self.recorder.steps) == over
        self.is_sound = True


def late_tokens(truth: Truth) -> int:
    """The lateness rule of the tiers, told a second time."""
    slo, times = truth.order.slo, truth.token_times
    if slo.tbt_mode is TbtMode.GAP:
        # A client sees token j at its time, or behind any earlier one by as many paces.
        seen = [
            max(time + (i - j) * slo.pace_ns for j, time in enumerate(times[: i + 1]))
            for i in range(len(times))
        ]
        return sum(b - a > slo.tbt_ns for a, b in zip(seen, times[1:], strict=False))
    return sum(time > times[0] + i * slo.tbt_ns for i, time in enumerate(times))
