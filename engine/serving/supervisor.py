"""Keeps one engine process alive: starts it, watches it, buries it, starts the next.

It knows processes and time, not streams: its owner is told when an engine is ready, what it says,
and that it is gone. One task does everything; it ends, with the process, when the owner closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from engine.core.clock import NS_PER_S, Clock
from engine.core.errors import EngineUnavailable, ModelLoadError
from engine.serving.config import EngineConfig
from engine.serving.messages import (
    Command,
    Explained,
    Failed,
    Output,
    Ping,
    Pong,
    Progress,
    Ready,
    Shutdown,
    StepOutput,
)
from engine.serving.spawn import EngineChild

logger = logging.getLogger(__name__)

_CHECKS_PER_TIMEOUT = 4  # the watchdog looks this often within a timeout
_STRIKES = 2
_BACKOFF_FACTOR = 2.0


class Owner(Protocol):
    """Who a supervisor works for; called on the event loop's thread, must not wait."""

    def on_ready(self, ready: Ready) -> None:
        """An engine takes requests from now on."""
        ...

    def on_step(self, output: StepOutput) -> None:
        """An engine finished a step."""
        ...

    def on_explained(self, explained: Explained) -> None:
        """An engine answered a question."""
        ...

    def on_progress(self, progress: Progress) -> None:
        """An engine is loading."""
        ...

    def on_down(self) -> None:
        """The engine that was ready is gone; nothing more will come from it."""
        ...

    def busy_since_ns(self) -> int | None:
        """Since when the engine has owed an answer; None when it owes none."""
        ...


class Supervisor:
    """One engine process at a time, restarted until `close`.

    A process is given up when its channel ends, or when it is silent for a whole timeout while it
    owes something: a Ready while loading, an event or a Pong afterwards. Silence must be seen
    twice, so that a stall of this very event loop is not taken for one of the engine.
    """

    def __init__(
        self,
        config: EngineConfig,
        environment: Mapping[str, str],
        clock: Clock,
        owner: Owner,
        listener: socket.socket | None = None,
    ) -> None:
        """`listener`: every engine takes requests from whoever connects there, too."""
        self.restarts = 0
        self._listener = listener
        self._config = config
        self._environment = environment
        self._clock = clock
        self._owner = owner
        self._child: EngineChild | None = None
        self._answers = False
        self._loaded = asyncio.Event()  # Ready has come, or nothing will come any more
        self._failure: Failed | None = None
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """True while an engine answers."""
        return self._answers and not self._closing.is_set()

    @property
    def backlog_bytes(self) -> int:
        """Bytes of commands that wait for the engine to take them."""
        return 0 if self._child is None else self._child.backlog_bytes

    async def start(self) -> None:
        """Start the first engine and return when it is ready.

        Raises ModelLoadError, and then nothing runs and nothing is tried again: an operator who
        named a wrong model should read so, not watch it fail every ten seconds.
        """
        assert self._task is None, "started twice"
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(first), name="engine-supervisor")
        try:
            await first
        finally:
            if first.cancelled() or first.exception() is not None:
                await self.close()

    async def close(self) -> None:
        """End the engine, politely if it listens, and never start another."""
        if self._task is None:
            return
        child, was_ready = self._child, self.ready
        self._closing.set()
        if child is not None:
            with contextlib.suppress(EngineUnavailable, TimeoutError):
                if was_ready:
                    child.send(Shutdown())
                    await asyncio.wait_for(child.closed.wait(), self._config.close_grace_s)
            if not child.closed.is_set():
                child.end()
        await self._task

    def send(self, command: Command) -> None:
        """Queue a command; raises EngineUnavailable when no engine answers."""
        if self._child is None or not self.ready:
            raise EngineUnavailable("the engine is starting or restarting")
        self._child.send(command)

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        """Run one engine after the other; the only task of this class."""
        backoff_s = self._config.backoff_first_s
        try:
            while not self._closing.is_set():
                served_s = 0.0
                try:
                    served_s = await self._live(first)
                except ModelLoadError as error:
                    if not first.done():
                        first.set_exception(error)
                        return
                    if not self._closing.is_set():
                        logger.error("the engine did not come back: %s", error)
                if served_s >= self._config.healthy_after_s:
                    backoff_s = self._config.backoff_first_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), backoff_s)
                    return
                backoff_s = min(backoff_s * _BACKOFF_FACTOR, self._config.backoff_max_s)
                self.restarts += 1
        finally:
            if not first.done():
                first.set_exception(EngineUnavailable("closed before the engine was ready"))

    async def _live(self, first: asyncio.Future[None]) -> float:
        """Run one engine from birth to burial; return how long it served, in seconds.

        Raises ModelLoadError when it never did.
        """
        self._loaded.clear()
        child = EngineChild(self._clock, self._on_output, self._on_closed, self._listener)
        trouble = served_ns = None
        try:
            await child.spawn(self._config, self._environment)
            self._child = child
            if self._closing.is_set():
                child.end()
            born_ns = self._clock.now_ns()
            trouble = await self._watch(
                child, self._loaded, self._config.load_timeout_s, lambda: born_ns
            )
            if self._answers:
                if not first.done():
                    first.set_result(None)
                ready_ns = self._clock.now_ns()
                trouble = await self._watch(
                    child, child.closed, self._config.hang_timeout_s, self._owner.busy_since_ns
                )
                served_ns = self._clock.now_ns() - ready_ns
        except OSError as error:
            trouble = f"the engine process cannot be started: {error}"
        finally:
            self._child = None
            self._on_closed()
            returncode = await child.bury()
        failure, self._failure = self._failure, None
        if failure is not None:
            trouble = failure.detail
        trouble = trouble or f"the engine process died: {child.obituary(returncode)}"
        if served_ns is None:
            raise ModelLoadError(trouble)
        if not self._closing.is_set():
            logger.error("%s; starting another", trouble)
        return served_ns / NS_PER_S

    async def _watch(
        self,
        child: EngineChild,
        until: asyncio.Event,
        timeout_s: float,
        owes_since_ns: Callable[[], int | None],
    ) -> str | None:
        """Wait for `until`; a child that owes something and stays silent is killed first.

        Returns what was wrong, None when nothing was.
        """
        strikes = 0
        pings = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), timeout_s / _CHECKS_PER_TIMEOUT)
                return None
            since_ns = owes_since_ns()
            silent_ns = 0
            if since_ns is not None:
                silent_ns = self._clock.now_ns() - max(since_ns, child.last_heard_ns)
            strikes = strikes + 1 if silent_ns >= timeout_s * NS_PER_S else 0
            if strikes == _STRIKES:
                child.end()
                return f"the engine process hung: not a word for {silent_ns / NS_PER_S:.1f} s"
            if since_ns is not None and self._answers:
                # Work may rightly bring no event for a while; between steps it answers this.
                pings += 1
                with contextlib.suppress(EngineUnavailable):
                    child.send(Ping(pings))

    def _on_output(self, output: Output) -> None:
        """Take one message of the engine."""
        match output:
            case StepOutput():
                self._owner.on_step(output)
            case Progress():
                self._owner.on_progress(output)
            case Ready():
                self._answers = True
                self._owner.on_ready(output)
                self._loaded.set()
            case Explained():
                self._owner.on_explained(output)
            case Failed():
                self._failure = output
            case Pong():
                pass  # having been heard is all that counts

    def _on_closed(self) -> None:
        """The channel has ended, or is about to: from here on nobody answers."""
        if self._answers:
            self._answers = False
            self._owner.on_down()
        self._loaded.set()
