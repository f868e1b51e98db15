"""One look at the whole gateway a second, however many pages watch; it sends nothing.

Whoever asks within a second gets what was found for the first who asked. Promises are read from the
ledger every few seconds only, and may be missing where it does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from engine.core.clock import NS_PER_S, utc_now
from gateway.dashboard.doing import doing, first_line
from gateway.dashboard.points import (
    MOST_DOTS,
    SPAN_S,
    SUMMARY_S,
    Dot,
    Sample,
    in_order,
    samples_of,
)
from gateway.dashboard.promises import Promise, promises_of
from gateway.routes.admin import describe
from gateway.workers.answers import DOTS, all_doors, own_dots
from tenants.errors import LedgerError

if TYPE_CHECKING:
    from gateway.services import Services

logger = logging.getLogger(__name__)

LOOK_NS = NS_PER_S * 9 // 10
PROMISES_NS = 5 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at one moment. `promises` is None where the ledger does not answer.

    Of `num_dots` dots so far the latest are in `dots`, in the order in which they were found.
    """

    now: datetime
    now_ns: int
    state: dict[str, Any]
    workers: list[dict[str, Any]]
    promises: list[Promise] | None
    dots: Sequence[Dot] = ()
    num_dots: int = 0
    samples: list[Sample] = field(default_factory=list)
    tiers: tuple[str, ...] = ()  # by rank

    @property
    def first_line(self) -> tuple[str, str]:
        """Whether the gateway serves, as (kind of badge, words)."""
        return first_line(self.state, self.silent_ms)

    @property
    def silent_ms(self) -> int:
        """For how long the engine has owed the doors something without a word."""
        return max((int(worker["engine_silent_ms"]) for worker in self.workers), default=0)

    @property
    def waiting_by_tier(self) -> dict[str, int]:
        """Who waits at the doors of all workers."""
        found = dict.fromkeys(self.tiers, 0)
        for worker in self.workers:
            for tier, num in worker["waiting_by_tier"].items():
                found[tier] = found.get(tier, 0) + num
        return found

    @property
    def latest(self) -> list[Dot]:
        """The dots of the last minute."""
        since = self.now.timestamp() * 1000 - SUMMARY_S * 1000
        found = []
        for dot in reversed(self.dots):
            if dot[0] <= since:
                break
            found.append(dot)
        return found

    def new_dots(self, seen: int) -> list[Dot]:
        """Return the dots behind the first `seen`, as far as they are still here."""
        found = list(islice(reversed(self.dots), max(self.num_dots - seen, 0)))
        found.reverse()
        return found


class Pulse:
    """The looks of one gateway; used from its event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = asyncio.Lock()
        self._look: Look | None = None
        self._dots: deque[Dot] = deque(maxlen=MOST_DOTS)
        self._num_dots = 0
        self._seen: dict[int, int] = {}  # of each worker's requests
        self._promises: list[Promise] | None = None
        self._promises_ns: int | None = None

    async def look(self) -> Look:
        """Return the present, at most a second old."""
        async with self._lock:
            now_ns = self._services.clock.now_ns()
            if self._look is None or now_ns - self._look.now_ns >= LOOK_NS:
                self._look = await self._taken(now_ns)
            return self._look

    def sentences(self, look: Look) -> list[str]:
        """Return what the scheduler is doing, in words."""
        snapshot = self._services.host.engine.snapshot
        return doing(
            look.state["engine"],
            None if snapshot is None else snapshot.load,
            is_away="engine" in look.state["missing"],
            num_waiting=sum(look.waiting_by_tier.values()),
            silent_ms=look.silent_ms,
        )

    async def _taken(self, now_ns: int) -> Look:
        services, now = self._services, utc_now()
        await self._find_dots(now.timestamp() * 1000 - SPAN_S * 1000)
        return Look(
            now=now,
            now_ns=now_ns,
            state=describe(services),
            workers=await all_doors(services),
            promises=await self._promised(now_ns, now),
            dots=self._dots,
            num_dots=self._num_dots,
            samples=samples_of(services.watch.history(), now_ns, now),
            tiers=in_order(services.tiers.current),
        )

    async def _find_dots(self, oldest_ms: float) -> None:
        """Add what all workers have done since the last look, and drop what is old."""
        services, place = self._services, self._services.peers.place
        answers = {place.index: own_dots(services, self._seen.get(place.index, 0))}
        others = list(place.others)
        asked = [
            services.peers.ask_one(other, DOTS, str(self._seen.get(other, 0))) for other in others
        ]
        for other, found in zip(others, await asyncio.gather(*asked), strict=True):
            if found is not None:
                answers[other] = orjson.loads(found)
        new: list[Dot] = []
        for index, answer in answers.items():
            self._seen[index] = answer["seen"]
            new += answer["dots"]
        new.sort(key=lambda dot: float(dot[0]))
        self._dots += new
        self._num_dots += len(new)
        while self._dots and self._dots[0][0] <= oldest_ms:
            self._dots.popleft()

    async def _promised(self, now_ns: int, now: datetime) -> list[Promise] | None:
        if self._promises_ns is None or now_ns - self._promises_ns >= PROMISES_NS:
            services = self._services
            try:
                self._promises = await promises_of(
                    services.ledger.database, services.tiers.current, now
                )
            except LedgerError as error:
                logger.warning("promises cannot be read: %s", error)
                self._promises = None
            self._promises_ns = now_ns
        return self._promises
