"""Holds that are over, on their way to the store: sent at once, kept while it is away; bounded.

A settlement is never waited for by the request that it ends. It stands in the store's line before
the next ask of this worker. What the store did not confirm is sent again until it does: the store
knows holds by their id, so sending twice changes nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.core.clock import Clock
from gateway.limits.seeding import Seeder, SpentUnknown
from gateway.limits.store import (
    KEEP_US,
    Closed,
    Closing,
    Mode,
    Outcome,
    Ready,
    Seeds,
    Store,
    StoreAway,
)
from gateway.limits.values import Alert, Ask, Spend

logger = logging.getLogger(__name__)

MAX_OWED = 50_000
BATCH = 64
_NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class Settlement:
    """One hold that is over. `known_ns` is when the store last knew of it, by this worker."""

    ask: Ask
    spent: Spend
    is_release: bool
    began_ns: int
    ended_ns: int
    known_ns: int

    def closing(self, now_ns: int) -> Closing:
        """Return it as the store is told at `now_ns`."""
        mode = Mode.RELEASE
        if not self.is_release:
            # After so long the store has taken it in full, and forgotten it: not twice.
            is_lost = now_ns - self.known_ns > KEEP_US * _NS_PER_US
            mode = Mode.SETTLE if is_lost else Mode.CHARGE
        age_us = (now_ns - self.began_ns) // _NS_PER_US
        ended_us = (now_ns - self.ended_ns) // _NS_PER_US
        return Closing(self.ask, mode, self.spent, age_us, ended_us)


class Settlements:
    """Those under way, and those that the store has still to be told of; of one event loop."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        seeder: Seeder,
        *,
        on_failure: Callable[[], None],
        on_alert: Callable[[Alert], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._seeder = seeder
        self._on_failure = on_failure
        self._on_alert = on_alert
        self._sent: deque[tuple[Settlement, Awaitable[Closed]]] = deque()
        self._owed: deque[Settlement] = deque()
        self.num_lost = 0  # the store was never told: it takes these in full
        self.num_charged = 0  # the store had lost the hold, and took what was spent

    @property
    def num_owed(self) -> int:
        """Settlements that the store has to be told of, again or for the first time."""
        return len(self._owed)

    @property
    def num_waiting(self) -> int:
        """Settlements that the store has not confirmed."""
        return len(self._owed) + len(self._sent)

    def send(self, settlement: Settlement) -> None:
        """Put it into the store's line now; `read` sees to the answer."""
        answer = self._store.settle(settlement.closing(self._clock.now_ns()))
        if isinstance(answer, Ready) and answer.value.outcome is not Outcome.UNSEEDED:
            self._note(settlement, answer.value)
        else:
            self._sent.append((settlement, answer))

    def owe(self, settlement: Settlement) -> None:
        """Keep it until `pay`."""
        if len(self._owed) >= MAX_OWED:
            self.num_lost += 1
            logger.error("a settlement of limits is lost; %d so far", self.num_lost)
            return
        self._owed.append(settlement)

    async def read(self) -> bool:
        """Take the answers to what was sent; what failed is owed. False where the store is away."""
        all_well = True
        while self._sent:
            settlement, answer = self._sent[0]  # it waits until its answer is dealt with
            try:
                closed = await answer
                if closed.outcome is Outcome.UNSEEDED:
                    closed = await self._with_seeds(settlement)
            except StoreAway:
                all_well = False
                self.owe(settlement)
                self._on_failure()
            except SpentUnknown:
                self.owe(settlement)
            else:
                self._note(settlement, closed)
            self._sent.popleft()
        return all_well

    async def pay(self) -> bool:
        """Tell the store once of all that it is owed; False where it is away."""
        for start in range(0, len(self._owed), BATCH):
            for _ in range(min(BATCH, len(self._owed) - start)):
                self.send(self._owed.popleft())
            if not await self.read():
                return False
        return True

    async def _with_seeds(self, settlement: Settlement) -> Closed:
        def call(seeds: Seeds) -> Awaitable[Closed]:
            return self._store.settle(settlement.closing(self._clock.now_ns()), seeds)

        return await self._seeder.seeded(settlement.ask, call)

    def _note(self, settlement: Settlement, closed: Closed) -> None:
        if closed.outcome is Outcome.UNKNOWN and not settlement.is_release:
            self.num_charged += 1
        for index in closed.alerts:
            self._on_alert(Alert(settlement.ask.group, settlement.ask.rules[index]))
