"""Every answer being written at this moment, and who must be ended from outside; it writes nothing.

One sweep, a few times a second, looks for what no answer can see by itself: its deadline has
passed, its reader has stopped reading, its key is no longer good. Draining ends them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime

from engine.core.clock import NS_PER_S, Clock
from gateway.answer import Answer, deadline_exceeded
from gateway.errors import ApiError, Problem, unauthenticated

CUT_GRACE_S = 2.0  # an answer that was cut has this long to say so
STALL_S = 10.0  # a reader that takes nothing for so long has gone, whatever its socket says


class LiveAnswers:
    """The answers in the making; used from one event loop."""

    def __init__(self, clock: Clock, *, timeout_s: float, stall_s: float = STALL_S) -> None:
        self._clock = clock
        self._timeout_ns = int(timeout_s * NS_PER_S)
        self._stall_ns = int(stall_s * NS_PER_S)
        self._answers: set[Answer] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        """Number of answers in the making."""
        return len(self._answers)

    def __iter__(self) -> Iterator[Answer]:
        """Iterate over them as they are now."""
        return iter(tuple(self._answers))

    def add(self, answer: Answer) -> None:
        """An answer begins."""
        self._answers.add(answer)
        self._empty.clear()

    def remove(self, answer: Answer) -> None:
        """An answer is over, one way or another."""
        self._answers.discard(answer)
        if not self._answers:
            self._empty.set()

    def sweep(self, now: datetime) -> None:
        """End what must be ended by now; `now` is the wall clock's word, for keys that expire."""
        now_ns = self._clock.now_ns()
        for answer in self:
            since_ns = answer.writing_since_ns
            if since_ns is not None and now_ns - since_ns > self._stall_ns:
                # Nobody reads, so an error would never arrive: the connection itself is dropped.
                answer.leave(now_ns)
                if answer.drop_connection is not None:
                    answer.drop_connection()
            elif now_ns - answer.plan.arrival_ns > self._timeout_ns:
                answer.cut(deadline_exceeded())
            elif not answer.plan.principal.opens_door(now):
                answer.cut(unauthenticated())

    async def recheck_keys(self, still_opens: Callable[[str], Awaitable[bool]]) -> None:
        """Cut the answers of keys that no longer open the door; asks once per key."""
        for digest in {answer.plan.principal.digest for answer in self}:
            if not await still_opens(digest):
                for answer in self:
                    if answer.plan.principal.digest == digest:
                        answer.cut(unauthenticated())

    async def drain(self, timeout_s: float, hurry: asyncio.Event) -> int:
        """Wait for the answers to end; after the time, or on `hurry`, end them with an error.

        Returns how many had to be cut.
        """
        waits = [asyncio.create_task(event.wait()) for event in (self._empty, hurry)]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        cut = len(self._answers)
        for answer in self:
            answer.cut(
                ApiError(Problem.DRAINING, "This server is shutting down.", retry_after_ms=1000)
            )
        await asyncio.wait(waits[:1], timeout=CUT_GRACE_S)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return cut
