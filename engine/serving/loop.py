"""The engine's loop: commands in, one step, everything it produced out; it knows no transport.

The same object runs in the engine's process (commands come from a socket) and in a thread of the
tests' process (commands come from a queue). It owns the only thread that touches core and executor.
"""

from __future__ import annotations

import logging
from typing import Protocol

from engine.core.clock import Clock
from engine.core.errors import ExecutorFault, RequestRefused
from engine.core.request import FinishReason, RequestOrder
from engine.core.stats import RequestStats, TokenEvent
from engine.serving.build import Engine
from engine.serving.messages import (
    Abort,
    ChannelClosed,
    Command,
    Explain,
    Explained,
    Failed,
    Output,
    Ping,
    Pong,
    Shutdown,
    StepOutput,
    Stop,
    Submit,
)

logger = logging.getLogger(__name__)


class Inbox(Protocol):
    """Where commands come from."""

    def receive(self, wait_s: float | None) -> list[Command]:
        """Return every pending command, in order.

        With nothing pending, wait up to `wait_s` seconds (0: not at all, None: until one comes)
        and return what is there then, possibly nothing. Raises ChannelClosed when the sender is
        gone.
        """
        ...


class Outbox(Protocol):
    """Where outputs go."""

    def send(self, output: Output) -> None:
        """Hand one output over; may wait for a slow reader. Raises ChannelClosed."""
        ...


class EngineLoop:
    """Runs an engine until it is told to shut down or breaks; see `run`."""

    def __init__(self, engine: Engine, clock: Clock, inbox: Inbox, outbox: Outbox) -> None:
        self._core = engine.core
        self._executor = engine.executor
        self._recorder = engine.recorder
        self._clock = clock
        self._inbox = inbox
        self._outbox = outbox

    def run(self) -> bool:
        """Serve; True when told to shut down, False when the engine broke and must be replaced.

        Either way every open request has got its last event. Raises ChannelClosed when nobody
        listens any more.
        """
        try:
            while self._turn():
                pass
        except ChannelClosed:
            raise
        except Exception as error:
            logger.exception("the engine breaks off")
            detail = f"engine failure: {type(error).__name__}: {error}"
            self._fail_all(detail)
            self._outbox.send(Failed(detail, loading=False))
            return False
        self._fail_all("engine shut down")
        return True

    def _turn(self) -> bool:
        """Apply every pending command, then compute one step; False when told to shut down."""
        commands = self._inbox.receive(0 if self._core.has_work else None)
        events: list[TokenEvent] = []
        serving = True
        for command in commands:
            serving = serving and self._apply(command, events)
        if events:
            # A refusal or an abort need not wait for a step that may take long.
            self._hand_over(events)
        if not serving:
            return False
        batch = self._core.start_step(self._clock.now_ns())
        if batch is None:
            # Nobody would ever wake a loop that sleeps on work it could not start (law L11).
            assert not self._core.has_work, "the scheduler has work and plans nothing"
            return True
        try:
            result = self._executor.execute(batch)
        except ExecutorFault as fault:
            logger.warning("step %d failed: %s", batch.step, fault)
            events = self._core.fail_step(batch, self._clock.now_ns(), str(fault))
        else:
            events = self._core.finish_step(batch, result, self._clock.now_ns())
        self._hand_over(events)
        return True

    def _apply(self, command: Command, events: list[TokenEvent]) -> bool:
        """Carry out one command; False for the last one ever."""
        now_ns = self._clock.now_ns()
        match command:
            case Submit(order):
                try:
                    self._core.submit(order, now_ns)
                except RequestRefused as refusal:
                    events.append(refused_event(order, refusal, now_ns))
            case Abort(request_id):
                events += self._core.abort(request_id, now_ns)
            case Stop(request_id, num_output_tokens):
                events += self._core.stop(request_id, num_output_tokens, now_ns)
            case Ping(number):
                self._outbox.send(Pong(number))
            case Explain(number, request_id):
                self._outbox.send(Explained(number, self._core.explain(request_id, now_ns)))
            case Shutdown():
                return False
        return True

    def _hand_over(self, events: list[TokenEvent]) -> None:
        """Send everything that is new in one message."""
        snapshot = self._core.snapshot(self._clock.now_ns())
        self._outbox.send(StepOutput(tuple(events), self._recorder.take(), snapshot))

    def _fail_all(self, detail: str) -> None:
        """End whatever is open; a core too broken for that leaves it to the other side."""
        self._hand_over(self._core.fail_all(self._clock.now_ns(), detail))


def refused_event(order: RequestOrder, refusal: RequestRefused, now_ns: int) -> TokenEvent:
    """Return the only event of a request that was not taken."""
    stats = RequestStats(
        request_id=order.id,
        tenant=order.tenant,
        tier=order.tier,
        finish_reason=FinishReason.REJECTED,
        arrival_ns=order.arrival_ns,
        finished_ns=now_ns,
        first_scheduled_ns=None,
        first_token_ns=None,
        last_token_ns=None,
        num_prompt_tokens=len(order.prompt),
        num_cached_tokens=0,
        num_output_tokens=0,
        preemptions=0,
        detail=f"{refusal.reason}: {refusal.detail}",
    )
    return TokenEvent(order.id, None, now_ns, finish_reason=FinishReason.REJECTED, stats=stats)
