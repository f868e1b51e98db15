"""The one thing the door asks: may this request in; and tells: it is over. It knows no HTTP.

It holds a store (this process's memory, or Redis for many workers), renews the leases of what is
open, and knows what to do while the store is away:

    the store answers        ask it; settlements go the same way
    it does not (breaker)    by the tier: `local`, this worker's share of each limit, or `refuse`
    it is back               open holds and settlements of the meantime are handed in, then ask it

A hold is open from `reserve` to `settle` or `release`. Both of these only take note: nothing of a
request's end waits for a store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from engine.core.clock import NS_PER_S, Clock
from gateway.limits.breaker import LEAST_PAUSE_MS, MOST_PAUSE_MS, Breaker
from gateway.limits.emergency import Emergency
from gateway.limits.memory_store import MemoryStore
from gateway.limits.seeding import Seeder, Spent, SpentUnknown
from gateway.limits.settlements import BATCH, Settlement, Settlements
from gateway.limits.store import LEASE_US, Mode, Outcome, Reply, Seeds, Store, StoreAway
from gateway.limits.values import NOTHING, Alert, Ask, Away, Denial, Grant, Spend, Totals, Verdict
from tenants.values import LimiterAway

logger = logging.getLogger(__name__)

RETRY_PAUSE_NS = NS_PER_S  # while something is owed to a store that answers
EMERGENCY_NS = 120 * NS_PER_S  # an emergency is over when nobody has needed it for so long


class Hold:
    """An open request, as this worker knows it."""

    __slots__ = ("ask", "began_ns", "known_ns")

    def __init__(self, ask: Ask, now_ns: int) -> None:
        self.ask = ask
        self.began_ns = now_ns
        self.known_ns = now_ns  # when the store last knew of it


@dataclass(frozen=True, slots=True)
class LimiterState:
    """The limiter as operators see it. What is not said otherwise only ever grows.

    `state` is the breaker's, `open_holds` and `owed` are of now. `denied` is by dimension.
    """

    state: str
    open_holds: int
    owed: int
    opened: int
    granted: int
    denied: Mapping[str, int]
    granted_locally: int
    refused_away: int
    adopted: int
    charged: int
    lost: int
    alerts: int


class Limiter:
    """Reserves, settles and releases; `run` must be running. Used from one event loop."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        workers: int = 1,
        spent: Spent | None = None,
        lease_us: int = LEASE_US,
        on_alert: Callable[[Alert], None] = lambda _: None,
        make_emergency: Callable[[], MemoryStore] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._renew_ns = lease_us * 1000 // 3
        self._on_alert = on_alert
        self._breaker = Breaker(clock)
        self._seeder = Seeder(spent)
        self._settlements = Settlements(
            store, clock, self._seeder, on_failure=self._failed, on_alert=self._alert
        )
        self._emergency = Emergency(
            self._seeder, make_emergency or (lambda: MemoryStore(share=workers, lease_us=lease_us))
        )
        self._holds: dict[str, Hold] = {}
        self._strays: dict[str, Hold] = {}  # open holds that the store does not know
        self._asking: set[str] = set()
        self._renewed_ns = self._retried_ns = self._emergency_ns = clock.now_ns()
        self._wake = asyncio.Event()
        self._granted = self._granted_locally = self._refused_away = self._adopted = 0
        self._alerts = 0
        self._denied: Counter[str] = Counter()

    @property
    def state(self) -> LimiterState:
        """Return the limiter's state."""
        return LimiterState(
            state=self._breaker.state,
            open_holds=len(self._holds),
            owed=self._settlements.num_waiting,
            opened=self._breaker.num_opened,
            granted=self._granted,
            denied=dict(self._denied),
            granted_locally=self._granted_locally,
            refused_away=self._refused_away,
            adopted=self._adopted,
            charged=self._settlements.num_charged,
            lost=self._settlements.num_lost,
            alerts=self._alerts,
        )

    # ---- what the door calls ----

    async def reserve(self, ask: Ask, on_away: LimiterAway = LimiterAway.LOCAL) -> Verdict:
        """Let a request in, all of its rules agreeing, or say why not and when.

        After a `Grant`, and only then, `settle` or `release` must follow. A caller that is
        cancelled meanwhile holds nothing.
        """
        if ask.id in self._holds or ask.id in self._asking:
            raise ValueError(f"request {ask.id} asks twice")
        self._asking.add(ask.id)
        began_ns = self._clock.now_ns()
        verdict: Verdict | None = None
        in_doubt = False
        try:
            if self._breaker.is_closed:
                in_doubt = True
                verdict = await self._ask_store(ask)
                in_doubt = verdict is None
            if verdict is None:
                verdict = await self._ask_emergency(ask, on_away)
            return verdict
        finally:
            self._asking.discard(ask.id)
            if in_doubt and not isinstance(verdict, Grant):
                # The store may have let it in, or may yet do so when it gets to it.
                self._hand_in(Settlement(ask, NOTHING, True, began_ns, began_ns, began_ns))

    def settle(
        self, request_id: str, *, prompt_tokens: int, output_tokens: int, cost_nano: int = 0
    ) -> None:
        """A request is over and has taken this much: the rest is given back where it was taken.

        Harmless when repeated, or for a request that was never let in.
        """
        spent = Spend(1, prompt_tokens, output_tokens, cost_nano)
        self._close(request_id, spent, is_release=False)

    def release(self, request_id: str) -> None:
        """A request was refused or failed before it was served anything: it never was.

        All of it is given back, its place among the requests too. Harmless when repeated.
        """
        self._close(request_id, NOTHING, is_release=True)

    async def totals(self, group: str) -> Totals:
        """Return what the store has of an organisation; raises StoreAway."""
        return await self._store.totals(group)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the store has confirmed every settlement; False where it did not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._settlements.num_waiting:
                    self._wake.set()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Do the limiter's own work until cancelled; a store that is away is noticed at once."""
        await self._look()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.run())
            tasks.create_task(self._tend())

    # ---- asking ----

    async def _ask_store(self, ask: Ask) -> Verdict | None:
        """Return the store's verdict; None where it is away."""

        def call(seeds: Seeds) -> Awaitable[Reply]:
            return self._store.reserve(ask, seeds)

        try:
            reply = await self._seeder.seeded(ask, call)
        except StoreAway:
            self._failed()
            return None
        except SpentUnknown:
            return None
        self._breaker.succeeded()
        if reply.outcome is Outcome.CLOSED:
            raise ValueError(f"request {ask.id} is over already")
        self._emergency.hear(ask, reply)
        if reply.outcome is Outcome.GRANTED:
            self._granted += 1
            self._holds[ask.id] = Hold(ask, self._clock.now_ns())
            return Grant(ask, reply.readings, reply.at_us)
        return self._deny(Denial(ask, reply.readings, reply.at_us))

    async def _ask_emergency(self, ask: Ask, on_away: LimiterAway) -> Verdict:
        if on_away is LimiterAway.REFUSE:
            return self._refuse(ask, self._breaker.wait_ms())
        self._emergency_ns = self._clock.now_ns()
        reply = await self._emergency.reserve(ask)
        limits = reply.limits or tuple(rule.limit for rule in ask.rules)
        if reply.outcome is Outcome.GRANTED:
            self._granted_locally += 1
            self._holds[ask.id] = self._strays[ask.id] = Hold(ask, self._clock.now_ns())
            return Grant(ask, reply.readings, reply.at_us, limits)
        denial = Denial(ask, reply.readings, reply.at_us, limits)
        held_up = zip(ask.rules, ask.costs(), reply.readings, strict=True)
        if any(cost and used + cost > rule.limit for rule, cost, (used, _, _) in held_up):
            return self._deny(denial)
        # Within its limits, for all that is known here: not the caller's fault.
        wait_us = denial.wait_us
        return self._refuse(ask, MOST_PAUSE_MS if wait_us is None else -(-wait_us // 1000))

    def _deny(self, denial: Denial) -> Denial:
        self._denied[denial.blocked_by().rule.dimension] += 1
        return denial

    def _refuse(self, ask: Ask, wait_ms: int) -> Away:
        self._refused_away += 1
        return Away(ask, min(max(wait_ms, LEAST_PAUSE_MS), MOST_PAUSE_MS))

    # ---- ending ----

    def _close(self, request_id: str, spent: Spend, *, is_release: bool) -> None:
        hold = self._holds.pop(request_id, None)
        if hold is None:
            return
        self._strays.pop(request_id, None)
        now_ns = self._clock.now_ns()
        settlement = Settlement(hold.ask, spent, is_release, hold.began_ns, now_ns, hold.known_ns)
        self._emergency.settle(settlement.closing(now_ns))
        self._hand_in(settlement)

    def _hand_in(self, settlement: Settlement) -> None:
        if self._breaker.is_closed:
            self._settlements.send(settlement)
        else:
            self._settlements.owe(settlement)
        if self._settlements.num_waiting:
            self._wake.set()

    def _alert(self, alert: Alert) -> None:
        self._alerts += 1
        self._on_alert(alert)

    # ---- the limiter's own work ----

    def _failed(self) -> None:
        if self._breaker.failed():
            logger.error("the store of limits is away; workers grant their share, or refuse")
            now_ns = self._clock.now_ns()
            for hold in self._holds.values():
                self._emergency.adopt(hold.ask, (now_ns - hold.began_ns) // 1000)
        self._wake.set()

    async def _look(self) -> None:
        """Find out whether the store is there, before anybody asks; the loop may be busy as yet."""
        while self._breaker.is_closed:
            try:
                await self._store.ping()
            except StoreAway:
                self._failed()
            else:
                self._breaker.succeeded()
                return

    async def _tend(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._step()
            except StoreAway:
                self._failed()

    def _pause_s(self) -> float:
        if not self._breaker.is_closed:
            return self._breaker.wait_ms() / 1000
        pause_ns = max(self._renewed_ns + self._renew_ns - self._clock.now_ns(), 0)
        if self._settlements.num_owed or self._strays:
            pause_ns = min(pause_ns, RETRY_PAUSE_NS)
        return pause_ns / NS_PER_S

    async def _step(self) -> None:
        await self._settlements.read()
        now_ns = self._clock.now_ns()
        if not self._breaker.is_closed:
            if self._breaker.wait_ms() == 0:
                await self._probe()
        elif now_ns - self._renewed_ns >= self._renew_ns:
            self._renewed_ns = now_ns
            await self._renew()
            await self._catch_up()
            if now_ns - self._emergency_ns > EMERGENCY_NS:
                self._emergency.clear()
        elif now_ns - self._retried_ns >= RETRY_PAUSE_NS:
            self._retried_ns = now_ns
            await self._catch_up()

    async def _probe(self) -> None:
        """Find out whether the store is back, and hand in what it has missed before it counts."""
        self._breaker.probe()
        is_well = False
        try:
            await self._store.ping()
            await self._renew()
            # Twice: the first time takes long, and requests go on being let in here meanwhile.
            is_well = await self._catch_up() and await self._catch_up()
        except StoreAway:
            is_well = False
        finally:
            self._breaker.probed(well=is_well)
        if is_well:
            logger.warning("the store of limits is back")
            self._emergency.clear()
            await self._catch_up()

    async def _catch_up(self) -> bool:
        """Hand in strays and settlements; False where the store is away."""
        strays = list(self._strays.values())
        for start in range(0, len(strays), BATCH):
            adoptions = [self._adopt(hold) for hold in strays[start : start + BATCH]]
            if not all(await asyncio.gather(*adoptions)):
                self._failed()
                return False
        return await self._settlements.pay()

    async def _adopt(self, hold: Hold) -> bool:
        """Let the store count a request that was let in without it; False where it is away."""

        def call(seeds: Seeds) -> Awaitable[Reply]:
            age_us = (self._clock.now_ns() - hold.began_ns) // 1000
            return self._store.reserve(hold.ask, seeds, mode=Mode.ADOPT, age_us=age_us)

        try:
            await self._seeder.seeded(hold.ask, call)
        except StoreAway:
            return False
        except SpentUnknown:
            return True
        # Where it has ended meanwhile, its settlement came first, and the store took it as that.
        if self._strays.pop(hold.ask.id, None) is not None:
            self._adopted += 1
            hold.known_ns = self._clock.now_ns()
        return True

    async def _renew(self) -> None:
        """Prolong the leases of all that the store knows; what it has lost becomes a stray."""
        groups: dict[str, list[Hold]] = {}
        for hold in self._holds.values():
            if hold.ask.id not in self._strays:
                groups.setdefault(hold.ask.group, []).append(hold)
        for holds in groups.values():
            outcomes = await self._store.renew([hold.ask for hold in holds])
            now_ns = self._clock.now_ns()
            for hold, outcome in zip(holds, outcomes, strict=True):
                if hold.ask.id not in self._holds:
                    continue
                if outcome is Outcome.UNKNOWN:
                    self._strays[hold.ask.id] = hold
                else:
                    hold.known_ns = now_ns
