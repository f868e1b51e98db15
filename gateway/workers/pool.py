"""Keeps a number of workers alive: starts them, watches them, buries them, starts others.

It knows processes and time, and no request. A worker that dies is replaced, after a pause that
grows while replacements die young. One that cannot start at all ends the first start; a later one
is tried again, because a database that is away comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from socket import socket

from engine.core.clock import NS_PER_S, Clock, MonotonicClock
from engine.serving.spawn import describe_exit
from gateway.live import CUT_GRACE_S
from gateway.settings import Settings
from gateway.workers.accepting import AWAY, LoadTable
from gateway.workers.child import WorkerChild
from gateway.workers.place import load_file
from gateway.workers.words import (
    Cut,
    Drain,
    Draining,
    Failed,
    Hurry,
    Order,
    Ping,
    Pong,
    Started,
    ToParent,
    portable,
)

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
HEALTHY_S = 60.0
PING_S = 5.0
SILENT_S = 60.0  # an event loop that stands still for so long will not go on
STRIKES = 2
END_S = 25.0  # after the drain: for the ledger, limits and telemetry, each with a limit of its own

Say = Callable[[str], None]


class WorkerError(Exception):
    """A worker cannot be started; the message is one clear line."""


class Slot:
    """The worker of one number: whoever holds it now."""

    __slots__ = ("child", "failure", "index", "is_started")

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: WorkerChild | None = None
        self.is_started = False
        self.failure = ""


class WorkerPool:
    """`settings.workers` processes at one listening socket; made inside an event loop."""

    def __init__(
        self,
        settings: Settings,
        admin_token: str,
        folder: Path,
        bound: socket,
        *,
        say: Say,
        clock: Clock | None = None,
    ) -> None:
        self.started = asyncio.Event()  # all of them answer, for the first time
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.restarts = 0
        self._settings = portable(settings)
        self._drain_timeout_s = settings.drain_timeout_s
        self._admin_token = admin_token
        self._folder = folder
        self._bound = bound
        self._say = say
        self._clock = clock or MonotonicClock()
        self._slots = [Slot(index) for index in range(settings.workers)]
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()
        self._loads = LoadTable(load_file(folder))

    @property
    def pids(self) -> list[int]:
        """The process ids of those that run."""
        return [slot.child.pid for slot in self._slots if slot.child is not None]

    def start(self) -> None:
        """Begin to keep them alive."""
        self._tasks = [
            asyncio.create_task(self._keep(slot), name=f"worker-{slot.index}")
            for slot in self._slots
        ]
        for task in self._tasks:
            task.add_done_callback(self._look_at)

    def _look_at(self, task: asyncio.Task[None]) -> None:
        """A task that keeps a worker has ended: by an error of ours, if by itself."""
        if not task.cancelled() and not self.failed.done():
            error = task.exception()
            if error is not None:
                self.failed.set_exception(error)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Let all of them finish and end; those that do not in time are killed. None comes after.

        `hurry` ends what runs at once.
        """
        self._ending.set()
        self._tell(Drain())
        ended = asyncio.create_task(self._all_ended())
        hurried = asyncio.create_task(hurry.wait())
        limit_s = self._drain_timeout_s + CUT_GRACE_S + END_S
        await asyncio.wait((ended, hurried), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            self._tell(Hurry())
            await asyncio.wait((ended,), timeout=CUT_GRACE_S + END_S)
        if not ended.done():
            logger.error("workers do not end; they are killed: %s", self.pids)
            for slot in self._slots:
                if slot.child is not None:
                    slot.child.kill()
        await ended
        self._loads.close()
        await asyncio.gather(hurried, return_exceptions=True)
        if not self.failed.done():
            self.failed.cancel()
        elif not self.failed.cancelled():
            self.failed.exception()  # heard, whether anybody asked or not

    async def _all_ended(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tell(self, word: Drain | Hurry) -> None:
        for slot in self._slots:
            if slot.child is not None:
                slot.child.send(word)

    # ---- one worker after the other ----

    async def _keep(self, slot: Slot) -> None:
        """Run one worker after the other under this number, until the end."""
        pause_s = FIRST_PAUSE_S
        while not self._ending.is_set():
            began_ns = self._clock.now_ns()
            detail = await self._live(slot)
            if self._ending.is_set():
                return
            if not self.started.is_set():
                if not self.failed.done():
                    self.failed.set_exception(WorkerError(detail))
                return
            logger.error("worker %d: %s; starting another", slot.index, detail)
            if self._clock.now_ns() - began_ns >= HEALTHY_S * NS_PER_S:
                pause_s = FIRST_PAUSE_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.restarts += 1

    async def _live(self, slot: Slot) -> str:
        """Run one worker from birth to burial; return how it ended, as one line."""

        def hear(word: ToParent) -> None:
            self._hear(slot, word)

        def order(control_fd: int) -> Order:
            folder, http_fd = str(self._folder), self._bound.fileno()
            token = self._admin_token
            is_patient = self.started.is_set()
            return Order(self._settings, token, slot.index, folder, http_fd, control_fd, is_patient)

        slot.failure, slot.is_started = "", False
        child = WorkerChild(self._clock, hear)
        try:
            await child.spawn(order, (self._bound.fileno(),))
            slot.child = child
            if self._ending.is_set():
                child.send(Drain())
            hung = await self._watch(child)
        except OSError as error:
            return f"it cannot be started: {error}"
        finally:
            slot.child = None
            code = await child.bury()
            self._loads.write(slot.index, AWAY)
        return hung or slot.failure or f"it died: {describe_exit(code)}"

    async def _watch(self, child: WorkerChild) -> str:
        """Wait for its end; one that is silent for too long is killed. Returns why, if so.

        Silence must be seen twice, so that a stall of this very event loop is not taken for one.
        """
        strikes = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.closed.wait(), PING_S)
                return ""
            silent_ns = self._clock.now_ns() - child.last_heard_ns
            strikes = strikes + 1 if silent_ns >= SILENT_S * NS_PER_S else 0
            if strikes == STRIKES:
                child.kill()
                return f"it hung: not a word for {silent_ns / NS_PER_S:.0f} s"
            child.send(Ping())

    def _hear(self, slot: Slot, word: ToParent) -> None:
        match word:
            case Started():
                slot.is_started = True
                if all(s.is_started for s in self._slots):
                    self.started.set()
            case Draining(num_answers):
                self._say(f"draining: {num_answers} answers are running in worker {slot.index}")
            case Cut(num_answers):
                self._say(f"{num_answers} answers were ended before they were done")
            case Failed(detail):
                slot.failure = detail
            case Pong():
                pass  # having been heard is all that counts
