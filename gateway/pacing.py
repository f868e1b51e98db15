"""Holds back tokens that came early, so that a paced tier's client sees an even stream; no bytes.

A piece of text leaves no sooner than `pace` per token after the one before it. That is a schedule,
not a pause: it runs from the moment the piece before was to leave, so a busy event loop never
stretches an answer. The rules, in the order in which they win:

* the first token is never held back;
* nothing is held beyond its contract: a piece that came in time leaves in time, by the tier's TBT
  mode, and a stream that is behind its contract is not paced until it has caught up;
* no more than `MOST_HELD_TOKENS` pieces are held: the one too many lets the first leave at once;
* what was made leaves evenly to its end, also when the engine is done with it;
* an answer that is ended from outside or fails shows at once what is held. If that is all of it the
  answer is whole, else the error follows;
* when the client leaves, or its key no longer opens the door, what is held is dropped, and was not
  delivered.

With the rule of `Slo.shown_ns` the engine knows without being told when a token will be seen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

from engine.core.clock import NS_PER_MS, Clock
from engine.core.request import MOST_HELD_TOKENS, Slo, TbtMode
from gateway.answer import Answer, Piece
from gateway.errors import Problem

T = TypeVar("T")


class Held(NamedTuple, Generic[T]):
    """A piece that waits for its moment, the tokens behind its text, and when it came."""

    piece: T
    num_tokens: int
    made_ns: int


class Pacer(Generic[T]):
    """The pieces of one choice, in order, and when the first of them may leave; it reads no clock.

    A piece may stand for several tokens (characters of several tokens, text that could have been a
    stop string): it then takes the time of them all. One for none (an echo, a finish reason) leaves
    with the piece before it. Of one pacer all times are of one clock and never run back.
    """

    __slots__ = ("_first_ns", "_held", "_last_ns", "_most_held", "_num_out", "_slo")

    def __init__(self, slo: Slo, most_held: int = MOST_HELD_TOKENS) -> None:
        self._slo = slo
        self._most_held = most_held
        self._held: deque[Held[T]] = deque()
        self._num_out = 0  # tokens that have left
        self._first_ns = 0  # when the first and the last of them were to leave
        self._last_ns = 0

    def __len__(self) -> int:
        """Number of pieces held."""
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """True where the first piece must leave before another one may come."""
        return len(self._held) > self._most_held

    def push(self, piece: T, num_tokens: int, now_ns: int) -> None:
        """Take a piece that came now; only where it is not full."""
        assert not self.is_full, "a full pacer takes nothing"
        self._held.append(Held(piece, num_tokens, now_ns))

    def next_ns(self) -> int | None:
        """Return when the first piece may leave, None where nothing is held; past means now."""
        if not self._held:
            return None
        held = self._held[0]
        if self.is_full:
            return held.made_ns
        return self._due_ns(held)

    def _due_ns(self, held: Held[T]) -> int:
        """Return when a piece is to leave: paced, but neither beyond its contract nor made late."""
        num_tokens = held.num_tokens
        if not self._num_out or not num_tokens:
            return held.made_ns
        slo = self._slo
        paced_ns = self._last_ns + num_tokens * slo.pace_ns
        if slo.tbt_mode is TbtMode.STREAM:
            contract_ns = self._first_ns + self._num_out * slo.tbt_ns
        else:
            contract_ns = self._last_ns + slo.tbt_ns
        return max(held.made_ns, min(paced_ns, contract_ns))

    def pop(self, now_ns: int) -> T | None:
        """Return the first piece if it may leave by now."""
        next_ns = self.next_ns()
        if next_ns is None or next_ns > now_ns:
            return None
        return self._leave(now_ns)

    def _leave(self, now_ns: int) -> T:
        held = self._held[0]
        if held.num_tokens:
            # On its schedule where it has one; one that is pushed out makes the schedule anew.
            self._last_ns = min(self._due_ns(held), now_ns)
            if not self._num_out:
                self._first_ns = self._last_ns
            self._num_out += held.num_tokens
        return self._held.popleft().piece

    def flush(self, now_ns: int) -> Iterator[T]:
        """Yield everything held, whether it may leave or not."""
        while self._held:
            yield self._leave(now_ns)

    def clear(self) -> None:
        """Drop everything held."""
        self._held.clear()


class PacedAnswer:
    """The deltas of one answer, each choice's at its pace; yields and ends as `Answer.deltas` does.

    One task takes in what the engine makes, at once, so that stop strings are found and the engine
    is done with the request as early as ever; whoever iterates gets what may be seen.
    """

    def __init__(self, answer: Answer, clock: Clock, most_held: int = MOST_HELD_TOKENS) -> None:
        self._answer = answer
        self._clock = clock
        slo = answer.plan.slo
        self._pacers: list[Pacer[Piece]] = [Pacer(slo, most_held) for _ in answer.choices]
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()

    @property
    def _is_barred(self) -> bool:
        """True where the client may see no more: to revoke a key is no way to get all at once."""
        cut_by = self._answer.cut_by
        return cut_by is not None and cut_by.problem is Problem.UNAUTHENTICATED

    async def deltas(self) -> AsyncGenerator[Piece]:
        """Yield the pieces when they may be seen; raises what ends the answer, behind them."""
        answer = self._answer
        filler = asyncio.create_task(self._fill())
        filler.add_done_callback(lambda _: self._changed.set())
        answer.on_end = self._changed.set
        try:
            while True:
                self._changed.clear()
                is_made = filler.done()
                for piece in self._ready(is_made and filler.exception() is not None):
                    if not answer.client_left:
                        yield piece
                self._has_room.set()
                if is_made and not any(self._pacers):
                    filler.result()
                    if answer.has_withheld and answer.cut_by is not None:
                        raise answer.cut_by
                    return
                await self._wait()
        finally:
            answer.on_end = None
            filler.cancel()
            await asyncio.gather(filler, return_exceptions=True)

    async def _fill(self) -> None:
        """Take everything the engine makes; what does not fit waits in the engine's stream."""
        async with aclosing(self._answer.deltas()) as deltas:
            async for piece in deltas:
                choice, _, num_tokens = piece
                pacer = self._pacers[choice.index]
                while pacer.is_full:
                    self._has_room.clear()
                    await self._has_room.wait()
                pacer.push(piece, num_tokens, self._clock.now_ns())
                if len(pacer) == 1 or pacer.is_full:  # else the next to leave is the one it was
                    self._changed.set()

    def _ready(self, has_failed: bool) -> list[Piece]:
        """Return what may leave now, at most one piece of a choice unless the answer is ended."""
        now_ns = self._clock.now_ns()
        if self._answer.client_left or self._is_barred:
            self._answer.has_withheld |= any(self._pacers)
            for pacer in self._pacers:
                pacer.clear()
            return []
        if has_failed or self._answer.cut_by is not None:
            return [piece for pacer in self._pacers for piece in pacer.flush(now_ns)]
        popped = [pacer.pop(now_ns) for pacer in self._pacers]
        return [piece for piece in popped if piece is not None]

    async def _wait(self) -> None:
        """Wait until something has changed, or a piece may leave."""
        times = [at_ns for pacer in self._pacers if (at_ns := pacer.next_ns()) is not None]
        if not times:
            await self._changed.wait()
            return
        # In whole milliseconds, as loops count: told to wait for less they do not wait at all.
        delay_ms = -((self._clock.now_ns() - min(times)) // NS_PER_MS)
        if delay_ms <= 0:
            return
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
