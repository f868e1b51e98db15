"""A limiter in virtual time, over a store whose line can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from faulty_store import FaultyStore
from store_kit import NOON
from virtual_loop import run_virtually

from engine.core.clock import VirtualClock
from gateway.limits.limiter import Limiter
from gateway.limits.memory_store import MemoryStore
from gateway.limits.rules import Rule
from gateway.limits.values import Alert
from tenants.errors import DatabaseUnavailable


@dataclass
class Bench:
    clock: VirtualClock
    store: FaultyStore
    limiter: Limiter
    alerts: list[Alert] = field(default_factory=list)
    spent: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, datetime]] = field(default_factory=list)
    ledger_is_away: bool = False

    async def ledger(self, rule: Rule, since: datetime) -> int:
        self.asked.append((rule.key, since))
        await asyncio.sleep(0.01)
        if self.ledger_is_away:
            raise DatabaseUnavailable("away")
        return self.spent.get(rule.key, 0)


@asynccontextmanager
async def running(clock: VirtualClock, workers: int, start_us: int) -> AsyncIterator[Bench]:
    def now_us() -> int:
        return start_us + clock.now_ns() // 1000

    store = FaultyStore(lambda: MemoryStore(now_us))
    bench: Bench

    def alert(told: Alert) -> None:
        bench.alerts.append(told)

    async def ledger(rule: Rule, since: datetime) -> int:
        return await bench.ledger(rule, since)

    limiter = Limiter(
        store,
        clock,
        workers=workers,
        spent=ledger,
        on_alert=alert,
        make_emergency=lambda: MemoryStore(now_us, share=workers),
    )
    bench = Bench(clock, store, limiter)
    task = asyncio.create_task(limiter.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def play(
    story: Callable[[Bench], Coroutine[Any, Any, None]], workers: int = 4, start_us: int = NOON
) -> None:
    """Run a story to its end, in no time."""
    clock = VirtualClock()

    async def told() -> None:
        async with running(clock, workers, start_us) as bench:
            await story(bench)

    run_virtually(clock, told())
