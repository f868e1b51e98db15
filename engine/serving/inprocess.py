"""The engine in a thread of this very process: the same loop and core, queues for sockets.

For tests, and for whoever wants one process and can live with both sides sharing an interpreter.
It does not restart: when the loop ends, the engine is down for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable

from engine.core.clock import NS_PER_S, Clock, MonotonicClock
from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from engine.core.request import RequestOrder
from engine.core.stats import Snapshot
from engine.serving.build import build_engine
from engine.serving.client import EngineInfo, FinishListener, StepListener
from engine.serving.config import EngineConfig
from engine.serving.loop import EngineLoop
from engine.serving.messages import (
    Abort,
    ChannelClosed,
    Command,
    Explained,
    Output,
    Shutdown,
    StepOutput,
    Stop,
    Submit,
)
from engine.serving.questions import OpenQuestions
from engine.serving.streams import EventStream, StreamTable

CLOSED = "engine closed"
ENDED = "engine ended"


class QueueInbox:
    """An inbox filled by another thread; bounded by the number of requests its owner may open."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def put(self, command: Command) -> None:
        """Add a command; never waits."""
        self._queue.put(command)

    def receive(self, wait_s: float | None) -> list[Command]:
        """See Inbox."""
        commands: list[Command] = []
        try:
            if wait_s != 0:
                commands.append(self._queue.get(timeout=wait_s))
            while True:
                commands.append(self._queue.get_nowait())
        except queue.Empty:
            return commands


class LoopOutbox:
    """An outbox that hands outputs to an event loop, one wake-up for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: InProcessEngine) -> None:
        self._loop = loop
        self._owner = owner

    def send(self, output: Output) -> None:
        """See Outbox."""
        self._call(self._owner.on_output, output)

    def end(self) -> None:
        """Say that nothing more will come."""
        self._call(self._owner.on_end)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:
            raise ChannelClosed("the event loop is closed") from error


class InProcessEngine:
    """An EngineClient whose engine runs in a thread; made inside an event loop."""

    def __init__(self, config: EngineConfig, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock if clock is not None else MonotonicClock()
        self._streams = StreamTable(config.max_open_requests)
        self._questions = OpenQuestions()
        self._inbox = QueueInbox()
        self._info: EngineInfo | None = None
        self._snapshot: Snapshot | None = None
        self._answers = False
        self._thread: threading.Thread | None = None

    @property
    def info(self) -> EngineInfo | None:
        """See EngineClient."""
        return self._info

    @property
    def ready(self) -> bool:
        """See EngineClient."""
        return self._answers

    @property
    def snapshot(self) -> Snapshot | None:
        """See EngineClient."""
        return self._snapshot

    async def start(self) -> None:
        """See EngineClient."""
        assert self._thread is None, "started twice"
        began_ns = self._clock.now_ns()
        engine = await asyncio.to_thread(build_engine, self._config, lambda stage, fraction: None)
        load_s = (self._clock.now_ns() - began_ns) / NS_PER_S
        self._info = engine.describe(os.getpid(), load_s)
        self._snapshot = engine.core.snapshot(self._clock.now_ns())
        outbox = LoopOutbox(asyncio.get_running_loop(), self)
        loop = EngineLoop(engine, self._clock, self._inbox, outbox)
        self._thread = threading.Thread(target=self._run, args=(loop, outbox), name="engine")
        self._answers = True
        self._thread.start()

    async def close(self) -> None:
        """See EngineClient."""
        self._answers = False
        if self._thread is not None:
            self._inbox.put(Shutdown())
            await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # what the thread handed over last is dispatched now
        self._streams.fail_all(CLOSED, self._clock.now_ns())
        self._questions.fail_all(CLOSED)
        await asyncio.sleep(0)  # the finish listeners have run when this returns

    def submit(self, order: RequestOrder) -> EventStream:
        """See EngineClient. Raises RequestRefused for an id that is open already."""
        if not self._answers:
            raise EngineUnavailable("the engine does not run")
        self._streams.check_unused(order.id)
        if self._streams.full:
            now_ns = self._clock.now_ns()
            return self._streams.refuse(order, "too many requests are open", now_ns)
        self._inbox.put(Submit(order))
        return self._streams.open(order)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        if request_id in self._streams:
            self._inbox.put(Abort(request_id))

    def stop(self, request_id: str, num_output_tokens: int) -> None:
        """See EngineClient."""
        if request_id in self._streams:
            self._inbox.put(Stop(request_id, num_output_tokens))

    async def explain(self, request_id: str) -> RequestRecord | None:
        """See EngineClient."""
        if not self._answers:
            raise EngineUnavailable("the engine does not run")
        return await self._questions.ask(request_id, self._inbox.put)

    def add_finish_listener(self, listener: FinishListener) -> None:
        """See EngineClient."""
        self._streams.add_finish_listener(listener)

    def add_step_listener(self, listener: StepListener) -> None:
        """See EngineClient."""
        self._streams.add_step_listener(listener)

    def _run(self, loop: EngineLoop, outbox: LoopOutbox) -> None:
        """The thread: serve, and say so when it is over, however it ends."""
        with contextlib.suppress(ChannelClosed):
            try:
                loop.run()
            finally:
                outbox.end()

    def on_output(self, output: Output) -> None:
        """Take one message of the loop, on the event loop's thread."""
        if isinstance(output, StepOutput):
            self._snapshot = output.snapshot
            self._streams.dispatch(output.events, output.stats)
        elif isinstance(output, Explained):
            self._questions.answer(output)

    def on_end(self) -> None:
        """The loop has ended: from here on nobody answers."""
        self._answers = False
        self._streams.fail_all(ENDED, self._clock.now_ns())
        self._questions.fail_all(ENDED)
