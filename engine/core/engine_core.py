"""The engine's mind as one object: commands and steps in, events out; no loop, thread or clock.

It keeps the totals, tells the observer, and is told the time. A driver puts time between
`start_step` and `finish_step`; whatever happens in between (abort, stop, submit) is legal.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from engine.core.bank import BankMeter
from engine.core.batch import Batch, StepResult
from engine.core.decision import RequestRecord
from engine.core.decision_log import DecisionLog
from engine.core.errors import RefusalReason, RequestRefused
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.length_predictor import LengthPredictor
from engine.core.load_meter import LoadMeter
from engine.core.policy import SchedulingPolicy
from engine.core.request import FinishReason, RequestOrder
from engine.core.scheduler import Scheduler
from engine.core.stats import Observer, Snapshot, StepStats, TokenEvent


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Bounds of the waiting queue; whoever comes to a full one is refused (law L39)."""

    max_waiting_requests: int = 1024
    max_waiting_prompt_tokens: int = 4_000_000
    follow_one_in: int = 1  # of how many requests the steps of one are recorded; 0: of none

    def __post_init__(self) -> None:
        if self.max_waiting_requests < 1 or self.max_waiting_prompt_tokens < 1:
            raise ValueError("the waiting queue must hold at least one request and one token")
        if self.follow_one_in < 0:
            raise ValueError("steps are recorded of one in so many requests, or of none (0)")


class EngineCore:
    """Submit, abort, stop; start_step, finish_step, fail_step; snapshot.

    Every accepted request ends in exactly one event that carries stats, and the observer is told
    of it once. A refused one raises RequestRefused, holds nothing and has no stats here: its
    caller knows all there is to know.
    """

    def __init__(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        config: CoreConfig | None = None,
        *,
        observer: Observer | None = None,
        enable_prefix_cache: bool = True,
        model: LatencyModel | None = None,
        predictor: LengthPredictor | None = None,
    ) -> None:
        config = config or CoreConfig()
        self._log = DecisionLog(config.follow_one_in)
        self._scheduler = Scheduler(
            capacity,
            policy,
            max_waiting_requests=config.max_waiting_requests,
            max_waiting_prompt_tokens=config.max_waiting_prompt_tokens,
            enable_prefix_cache=enable_prefix_cache,
            model=model,
            predictor=predictor,
            log=self._log,
        )
        self._observer = observer
        self._draining = False
        self._now_ns: int | None = None
        self._step_started_ns = 0
        self._submitted_total = 0
        self._finished_total = 0
        self._preemptions_total = 0
        self._prompt_tokens_total = 0
        self._output_tokens_total = 0
        self._cached_tokens_total = 0
        self._parks_total = 0
        self._bank = BankMeter()
        scheduler = self._scheduler
        self._load = LoadMeter(scheduler.queues, scheduler.kv, scheduler.planner, policy, model)

    @property
    def capacity(self) -> Capacity:
        """What the executor said it can hold."""
        return self._scheduler.capacity

    @property
    def policy(self) -> SchedulingPolicy:
        """The policy in use."""
        return self._scheduler.policy

    @property
    def has_work(self) -> bool:
        """True while any request waits, runs or is carried, or a step or a copy is out."""
        scheduler = self._scheduler
        return (
            len(scheduler.queues) > 0
            or scheduler.dispatched is not None
            or len(scheduler.kv.copies) > 0
        )

    # Commands

    def submit(self, order: RequestOrder, now_ns: int) -> None:
        """Take a request; raises RequestRefused with a reason from the closed list."""
        self._move_to(now_ns)
        assert order.arrival_ns <= now_ns, f"{order.id} arrives in the future (law L36)"
        try:
            if self._draining:
                raise RequestRefused(RefusalReason.DRAINING, "the engine takes no new requests")
            request = self._scheduler.add(order, now_ns)
        except RequestRefused as refusal:
            self._log.refused(order, refusal.reason, now_ns)
            raise
        self._log.submitted(request, now_ns)
        self._load.note_arrival(order.arrival_ns)
        self._submitted_total += 1

    def drain(self) -> None:
        """Refuse new requests from now on; those taken are served to their end."""
        self._draining = True

    def abort(
        self, request_id: str, now_ns: int, reason: FinishReason = FinishReason.CANCELLED
    ) -> list[TokenEvent]:
        """End a request at once, in whatever state; an unknown or finished id is ignored."""
        self._move_to(now_ns)
        request = self._scheduler.find(request_id)
        if request is None:
            return []
        return self._ended([self._scheduler.end(request, reason, now_ns)])

    def stop(self, request_id: str, num_output_tokens: int, now_ns: int) -> list[TokenEvent]:
        """End a request as STOP: the gateway found a stop string in its first tokens.

        The stats count `num_output_tokens`, at most what was generated. An unknown or finished id
        is ignored: its stats are already told, and count all that was generated.
        """
        self._move_to(now_ns)
        request = self._scheduler.find(request_id)
        if request is None:
            return []
        counted = max(0, min(num_output_tokens, len(request.output)))
        event = self._scheduler.end(request, FinishReason.STOP, now_ns, num_output_tokens=counted)
        return self._ended([event])

    # Steps

    def start_step(self, now_ns: int) -> Batch | None:
        """Return the next batch to execute; None when there is nothing to do."""
        self._move_to(now_ns)
        self._step_started_ns = now_ns
        batch = self._scheduler.schedule(now_ns)
        if batch is not None:
            planner = self._scheduler.planner
            self._preemptions_total += len(planner.preempted)
            self._parks_total += len(batch.parks)
            for request in planner.started:
                self._prompt_tokens_total += request.num_prompt_tokens
                self._cached_tokens_total += request.num_cached
        return batch

    def finish_step(self, batch: Batch, result: StepResult, now_ns: int) -> list[TokenEvent]:
        """Take the result of the batch that is out; returns every event of the step."""
        self._move_to(now_ns)
        work, copies = self._scheduler.planner.work, self._scheduler.kv.copies
        recomputed, copied = work.recomputed, copies.copied_total
        events = self._scheduler.update(batch, result, now_ns)
        self._load.note_step(self._step_started_ns, now_ns)
        recomputed, copied = work.recomputed - recomputed, copies.copied_total - copied
        for event in events:
            self._output_tokens_total += event.token_id is not None
        self._tell_step(batch, result.elapsed_ns, recomputed, copied)
        return self._ended(events)

    def fail_step(self, batch: Batch, now_ns: int, detail: str) -> list[TokenEvent]:
        """The batch that is out met an ExecutorFault: its requests are computed again.

        So is everybody who was being carried. A request that meets its third fault ends as FAILED
        with `detail`.
        """
        self._move_to(now_ns)
        events = self._scheduler.recompute(batch, now_ns, detail)
        self._tell_step(batch, now_ns - self._step_started_ns, 0, 0)
        return self._ended(events)

    def fail_all(self, now_ns: int, detail: str) -> list[TokenEvent]:
        """End every request as FAILED; only when the executor is gone, and its step with it."""
        self._move_to(now_ns)
        return self._ended(self._scheduler.abandon(now_ns, detail))

    # Reading

    def snapshot(self, now_ns: int) -> Snapshot:
        """Return the present as a value; cheap enough for every step."""
        scheduler = self._scheduler
        queues, kv = scheduler.queues, scheduler.kv
        copies, bank, model = kv.copies, self._bank, scheduler.model
        bank.read(itertools.chain(queues.decoding.values(), queues.parked.values()), now_ns)
        return Snapshot(
            step=scheduler.step,
            at_ns=now_ns,
            waiting=len(queues.waiting),
            running=queues.num_running,
            parked=len(queues.parked),
            waiting_prompt_tokens=queues.waiting.num_prompt_tokens,
            free_blocks=kv.num_free,
            num_blocks=kv.num_blocks,
            waiting_by_tier=tuple(sorted(queues.waiting_by_tier.items())),
            running_by_tier=tuple(sorted(queues.running_by_tier.items())),
            submitted_total=self._submitted_total,
            finished_total=self._finished_total,
            preemptions_total=self._preemptions_total,
            prompt_tokens_total=self._prompt_tokens_total,
            output_tokens_total=self._output_tokens_total,
            cached_tokens_total=self._cached_tokens_total,
            computed_tokens_total=scheduler.planner.work.computed,
            recomputed_tokens_total=scheduler.planner.work.recomputed,
            parks_total=self._parks_total,
            free_host_blocks=kv.num_free_host,
            num_host_blocks=scheduler.capacity.num_host_blocks,
            leaving=copies.num_out,
            returning=copies.num_in,
            parked_tokens=queues.parked_tokens,
            coming_blocks=kv.num_coming,
            copied_out_tokens_total=copies.copied_out_total,
            copied_in_tokens_total=copies.copied_in_total,
            lost_copies_total=copies.lost_total,
            bank_ms=bank.total_ms,
            least_bank_ms=bank.least_ms,
            parked_by_tier=tuple(sorted(queues.parked_by_tier.items())),
            latency_factor=None if model is None else model.factor,
            latency_error_p50=None if model is None else model.errors.quantile(0.50),
            latency_error_p99=None if model is None else model.errors.quantile(0.99),
            load=self._load.read(now_ns, draining=self._draining),
        )

    def explain(self, request_id: str, now_ns: int) -> RequestRecord | None:
        """Return what was decided about a request, live or kept; None where it is not known."""
        request, standing = self._scheduler.find(request_id), ""
        if request is not None:
            standing = self.policy.explain(request, self._scheduler.planner.view(now_ns))
        return self._log.read(request_id, now_ns, standing)

    def check_integrity(self) -> None:
        """Assert laws L1 to L6 and L10 by walking everything; for tests and debugging."""
        self._scheduler.check_integrity()
        assert self._submitted_total == self._finished_total + len(self._scheduler.queues)

    # Keeping the books

    def _move_to(self, now_ns: int) -> None:
        """Time never runs back (law L36)."""
        assert self._now_ns is None or now_ns >= self._now_ns, "time ran back"
        self._now_ns = now_ns

    def _ended(self, events: list[TokenEvent]) -> list[TokenEvent]:
        """Count the ends among the events and tell the observer of each, once."""
        for event in events:
            if event.stats is not None:
                self._finished_total += 1
                self._log.ended(event.stats)
                if self._observer is not None:
                    self._observer.on_finish(event.stats)
        return events

    def _tell_step(
        self, batch: Batch, elapsed_ns: int, num_recomputed: int, num_copied: int
    ) -> None:
        if self._observer is None:
            return
        scheduler = self._scheduler
        num_decodes = len(scheduler.planner.decodes)
        self._observer.on_step(
            StepStats(
                step=batch.step,
                started_ns=self._step_started_ns,
                elapsed_ns=elapsed_ns,
                num_decodes=num_decodes,
                num_prefill_tokens=batch.num_tokens - num_decodes,
                num_preempted=len(scheduler.planner.preempted),
                num_running=scheduler.queues.num_running,
                num_waiting=len(scheduler.queues.waiting),
                free_blocks=scheduler.kv.num_free,
                num_recomputed_tokens=num_recomputed,
                num_parked=len(scheduler.queues.parked),
                num_copied_tokens=num_copied,
                predicted_ns=scheduler.predicted_ns,
            )
        )
