"""What every EngineClient does whose engine is another process: streams, questions, snapshots.

How commands get there, and who starts the engine, is for the classes made of this one
(process.py: a child of its own; link.py: a connection to one that is shared).
"""

from __future__ import annotations

import abc
import contextlib

from engine.core.clock import Clock, MonotonicClock
from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from engine.core.request import RequestOrder
from engine.core.stats import Snapshot
from engine.serving.client import EngineInfo, FinishListener, StepListener
from engine.serving.messages import (
    Abort,
    Command,
    Explained,
    Ready,
    StepOutput,
    Stop,
    Submit,
)
from engine.serving.questions import OpenQuestions
from engine.serving.streams import EventStream, StreamTable

RESTARTED = "engine restarted"
CLOSED = "engine closed"


class RemoteEngine(abc.ABC):
    """The common half of an EngineClient; all methods belong to one event loop's thread."""

    def __init__(
        self, *, max_open_requests: int, max_inbox_bytes: int, clock: Clock | None
    ) -> None:
        self._max_inbox_bytes = max_inbox_bytes
        self._clock = clock if clock is not None else MonotonicClock()
        self._streams = StreamTable(max_open_requests)
        self._questions = OpenQuestions()
        self._info: EngineInfo | None = None
        self._snapshot: Snapshot | None = None
        self._busy_since_ns: int | None = None
        self._closing = False

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """See EngineClient."""

    @property
    @abc.abstractmethod
    def _backlog_bytes(self) -> int:
        """Bytes of commands that wait for the engine to take them."""

    @abc.abstractmethod
    def _send(self, command: Command) -> None:
        """Queue a command; raises EngineUnavailable when no engine answers."""

    @property
    def info(self) -> EngineInfo | None:
        """See EngineClient."""
        return self._info

    @property
    def snapshot(self) -> Snapshot | None:
        """See EngineClient; the last one of a dead engine stays until the next is ready."""
        return self._snapshot

    def __contains__(self, request_id: str) -> bool:
        """True while the request's end has not been seen."""
        return request_id in self._streams

    def submit(self, order: RequestOrder) -> EventStream:
        """See EngineClient. Raises RequestRefused for an id that is open already."""
        if not self.ready:
            raise EngineUnavailable("the engine is starting or restarting")
        self._streams.check_unused(order.id)
        now_ns = self._clock.now_ns()
        if self._streams.full:
            return self._streams.refuse(order, "too many requests are open", now_ns)
        if self._backlog_bytes > self._max_inbox_bytes:
            return self._streams.refuse(order, "the engine's inbox is full", now_ns)
        # Sent before the stream is opened: what cannot be sent must not be billed.
        self._send(Submit(order))
        if self._busy_since_ns is None:
            self._busy_since_ns = now_ns
        return self._streams.open(order)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        self._tell(request_id, Abort(request_id))

    def stop(self, request_id: str, num_output_tokens: int) -> None:
        """See EngineClient."""
        self._tell(request_id, Stop(request_id, num_output_tokens))

    async def explain(self, request_id: str) -> RequestRecord | None:
        """See EngineClient."""
        return await self._questions.ask(request_id, self._send)

    def add_finish_listener(self, listener: FinishListener) -> None:
        """See EngineClient."""
        self._streams.add_finish_listener(listener)

    def add_step_listener(self, listener: StepListener) -> None:
        """See EngineClient."""
        self._streams.add_step_listener(listener)

    def _tell(self, request_id: str, command: Command) -> None:
        """Send a command about an open request; without an engine its end is on the way anyway."""
        if request_id in self._streams:
            with contextlib.suppress(EngineUnavailable):
                self._send(command)

    def on_ready(self, ready: Ready) -> None:
        """An engine takes requests."""
        self._info = ready.info
        self._snapshot = ready.snapshot

    def on_step(self, output: StepOutput) -> None:
        """The engine finished a step."""
        self._snapshot = output.snapshot
        self._streams.dispatch(output.events, output.stats)
        if not self._streams:
            self._busy_since_ns = None

    def on_explained(self, explained: Explained) -> None:
        """The engine answered a question."""
        self._questions.answer(explained)

    def on_down(self) -> None:
        """The engine that was ready is gone."""
        detail = CLOSED if self._closing else RESTARTED
        self._streams.fail_all(detail, self._clock.now_ns())
        self._questions.fail_all(detail)
        self._busy_since_ns = None
