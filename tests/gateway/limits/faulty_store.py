"""A memory store behind a line that can be cut: before a call arrives, or after it was done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeVar

from gateway.limits.memory_store import MemoryStore
from gateway.limits.store import NO_SEEDS, Closed, Closing, Mode, Outcome, Reply, Seeds, StoreAway
from gateway.limits.values import Ask, Totals

T = TypeVar("T")


class Fault(Enum):
    NONE = "none"
    CALL_LOST = "the call never arrives"
    REPLY_LOST = "the call is done, its answer is lost"
    LATE = "the call is done after its caller has given up"


class FaultyStore:
    """Calls take `delay_s` and fail as told; `late` holds the calls that are still to be done."""

    def __init__(self, make: Callable[[], MemoryStore], delay_s: float = 0.001) -> None:
        self._make = make
        self.inner = make()
        self.fault = Fault.NONE
        self.delay_s = delay_s
        self.late: list[Callable[[], object]] = []

    def lose_memory(self) -> None:
        """Restart empty."""
        self.inner = self._make()

    def arrive_late(self) -> None:
        """Let the delayed calls be done at last."""
        for call in self.late:
            call()
        self.late.clear()

    def reserve(
        self, ask: Ask, seeds: Seeds = NO_SEEDS, *, mode: Mode = Mode.ASK, age_us: int = 0
    ) -> asyncio.Task[Reply]:
        return self._do(lambda: self.inner.reserve(ask, seeds, mode=mode, age_us=age_us).value)

    def settle(self, closing: Closing, seeds: Seeds = NO_SEEDS) -> asyncio.Task[Closed]:
        return self._do(lambda: self.inner.settle(closing, seeds).value)

    def renew(self, asks: Sequence[Ask]) -> asyncio.Task[tuple[Outcome, ...]]:
        return self._do(lambda: self.inner.renew(asks).value)

    def totals(self, group: str) -> asyncio.Task[Totals]:
        return self._do(lambda: self.inner.totals(group).value)

    async def ping(self) -> None:
        await self._do(lambda: None)

    async def run(self) -> None:
        await asyncio.Event().wait()

    def _do(self, call: Callable[[], T]) -> asyncio.Task[T]:
        return asyncio.create_task(self._done(call, self.fault))

    async def _done(self, call: Callable[[], T], fault: Fault) -> T:
        if fault is Fault.NONE:
            await asyncio.sleep(self.delay_s)
            return call()
        if fault is Fault.REPLY_LOST:
            call()
        if fault is Fault.LATE:
            self.late.append(call)
        await asyncio.sleep(0.25)
        raise StoreAway(fault.value)
