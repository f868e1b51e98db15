"""The core's other driver: a heap of events in virtual time where service has a loop and a clock.

It decides nothing: arrivals, aborts and the ends of steps are handed to the same EngineCore at
their times, and the core plans at step boundaries only. At one instant the end of a step comes
first, then who leaves and who arrives, then the next step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from engine.core.admission import Action
from engine.core.batch import Batch, StepResult
from engine.core.errors import RequestRefused
from engine.core.executor import Executor
from engine.core.request import FinishReason, RequestOrder
from engine.core.stats import Snapshot, TokenEvent
from engine.sim.door import SimulatedDoor
from engine.sim.executor import SimulatedFault
from engine.sim.orders import OrderMaker
from engine.sim.records import Journal
from engine.sim.workload import SimRequest


class Core(Protocol):
    """What a driver needs of an EngineCore; a recording one has the same face."""

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs, or a step is out."""
        ...

    def submit(self, order: RequestOrder, now_ns: int) -> None:
        """Take a request; raises RequestRefused."""
        ...

    def abort(self, request_id: str, now_ns: int, reason: FinishReason = ...) -> list[TokenEvent]:
        """End a request at once."""
        ...

    def start_step(self, now_ns: int) -> Batch | None:
        """Return the next batch."""
        ...

    def finish_step(self, batch: Batch, result: StepResult, now_ns: int) -> list[TokenEvent]:
        """Take a result."""
        ...

    def fail_step(self, batch: Batch, now_ns: int, detail: str) -> list[TokenEvent]:
        """Take a fault."""
        ...

    def snapshot(self, now_ns: int) -> Snapshot:
        """Return the present."""
        ...


class Watch(Protocol):
    """Looks on after every change; law checks and counters are made of it."""

    def after_start(self, batch: Batch, now_ns: int) -> None:
        """A batch went out."""
        ...

    def after_step(
        self,
        batch: Batch,
        answer: StepResult | SimulatedFault,
        events: Sequence[TokenEvent],
        now_ns: int,
    ) -> None:
        """Its answer was taken in, with these events."""
        ...


class Kind(IntEnum):
    """What happens; at one instant in this order."""

    STEP_DONE = 0
    ABORT = 1
    ARRIVAL = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: virtual time of the last event, steps made, and the core's last word."""

    ended_ns: int
    num_steps: int
    snapshot: Snapshot


class Simulator:
    """Runs one workload through one core to its end, or to the horizon."""

    def __init__(
        self,
        core: Core,
        executor: Executor,
        orders: OrderMaker,
        journal: Journal,
        watches: Sequence[Watch] = (),
        door: SimulatedDoor | None = None,
    ) -> None:
        self._core = core
        self._executor = executor
        self._orders = orders
        self._journal = journal
        self._watches = watches
        self._door = door
        self._heap: list[tuple[int, Kind, int]] = []
        self._num_steps = 0
        self._out: tuple[Batch, StepResult | SimulatedFault] | None = None

    def run(
        self,
        requests: Sequence[SimRequest],
        aborts: Sequence[tuple[int, str]] = (),
        horizon_ns: int | None = None,
    ) -> Outcome:
        """Run until everyone has ended, or until the horizon, and say how it went."""
        heap = self._heap
        heap += [(r.arrival_ns, Kind.ARRIVAL, number) for number, r in enumerate(requests)]
        heap += [(at_ns, Kind.ABORT, number) for number, (at_ns, _) in enumerate(aborts)]
        heapq.heapify(heap)
        now_ns = 0
        while heap and (horizon_ns is None or heap[0][0] <= horizon_ns):
            now_ns = heap[0][0]
            while heap and heap[0][0] == now_ns:
                _, kind, number = heapq.heappop(heap)
                if kind is Kind.STEP_DONE:
                    self._finish_step(now_ns)
                elif kind is Kind.ARRIVAL:
                    self._submit(requests[number], now_ns)
                else:
                    self._abort(aborts[number][1], now_ns)
            if self._out is None and self._core.has_work:
                self._start_step(now_ns)
        stuck = horizon_ns is None and self._core.has_work
        assert not stuck, "there are requests, and nothing will ever happen to them (law L12)"
        return Outcome(now_ns, self._num_steps, self._core.snapshot(now_ns))

    def _submit(self, request: SimRequest, now_ns: int) -> None:
        self._journal.offer(request)
        order = self._orders.order(request)
        if self._door is not None:
            order, verdict = self._door.ask(order, now_ns)
            if verdict.action is not Action.ADMIT:
                assert verdict.reason is not None, "a refusal without a reason"
                self._journal.refuse(request, verdict.reason.value)
                return
        try:
            self._core.submit(order, now_ns)
        except RequestRefused as refusal:
            self._journal.refuse(request, refusal.reason.value)
            if self._door is not None:
                self._door.keeper.left(request.id)

    def _abort(self, request_id: str, now_ns: int) -> None:
        events = self._core.abort(request_id, now_ns)
        self._journal.take(events)
        if self._door is not None:
            self._door.left(events)

    def _start_step(self, now_ns: int) -> None:
        batch = self._core.start_step(now_ns)
        assert batch is not None, "there is work and no batch (law L11)"
        self._num_steps += 1
        answer: StepResult | SimulatedFault
        try:
            answer = self._executor.execute(batch)
        except SimulatedFault as fault:
            answer = fault
        self._out = (batch, answer)
        heapq.heappush(self._heap, (now_ns + answer.elapsed_ns, Kind.STEP_DONE, self._num_steps))
        for watch in self._watches:
            watch.after_start(batch, now_ns)

    def _finish_step(self, now_ns: int) -> None:
        assert self._out is not None, "a step ends that never began"
        batch, answer = self._out
        self._out = None
        if isinstance(answer, StepResult):
            events = self._core.finish_step(batch, answer, now_ns)
        else:
            events = self._core.fail_step(batch, now_ns, str(answer))
        self._journal.take(events)
        if self._door is not None:
            self._door.see(events, self._core.snapshot(now_ns))
        for watch in self._watches:
            watch.after_step(batch, answer, events, now_ns)
