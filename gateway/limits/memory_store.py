"""Keeps limits in this process: one worker's own, or its emergency; it knows no other process.

A step reads and writes without giving up the thread, so no two asks pass one limit (law L51). It
decides what limits.lua decides; with `share` above 1 it counts against that part of each limit.
What has expired is thrown away as time passes: memory follows what is in use, not what ever was.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gateway.limits.calendar import wall_us
from gateway.limits.rules import Kind, Rule
from gateway.limits.store import (
    CLOSED_US,
    KEEP_US,
    LEASE_US,
    LIVE_S,
    MAX_BACKWARD_US,
    MAX_SWEPT,
    NO_SEEDS,
    RETAIN_US,
    SEED_GRACE_US,
    Closed,
    Closing,
    Mode,
    Outcome,
    Ready,
    Reply,
    Seeds,
)
from gateway.limits.values import US_PER_S, Ask, Reading, Spend, Sum, Totals
from gateway.limits.window import Calendar, CalendarWindow, Expiring, Seats, SlidingWindow

_Keeper: TypeAlias = SlidingWindow | Calendar | Seats
_TIDIED_PER_STEP = 8


@dataclass(frozen=True, slots=True)
class _Hold:
    at_us: int
    due_us: int
    most: Spend
    amounts: tuple[int, ...]


class _Group:
    """What one organisation has: its keepers by rule, its open holds, its sums."""

    __slots__ = (
        "holds",
        "keepers",
        "lapsed",
        "mean_us",
        "now_us",
        "released",
        "reserved",
        "settled",
    )

    def __init__(self) -> None:
        self.keepers: dict[str, _Keeper] = {}
        self.holds: dict[str, _Hold] = {}  # in the order of their due moments
        self.reserved = self.settled = self.released = self.lapsed = Sum()
        self.mean_us = self.now_us = 0

    def sweep(self, now_us: int) -> list[str]:
        """Take in full what nobody settled in time; return the names of those holds."""
        swept: list[str] = []
        while len(swept) < MAX_SWEPT:
            name = next(iter(self.holds), None)
            if name is None or self.holds[name].due_us > now_us:
                break
            most = _sum(self.holds.pop(name).most)
            self.settled += most
            self.lapsed += most
            swept.append(name)
        return swept

    def keep(self, name: str, hold: _Hold) -> None:
        """Note an open hold, or its longer life."""
        self.holds.pop(name, None)
        self.holds[name] = hold


def _sum(spend: Spend) -> Sum:
    return Sum(spend.requests, spend.tokens, spend.cost_nano)


def _over(a: Sum, b: Sum) -> Sum:
    return Sum(
        max(a.requests - b.requests, 0),
        max(a.tokens - b.tokens, 0),
        max(a.cost_nano - b.cost_nano, 0),
    )


class MemoryStore:
    """A `Store` in memory. `now_us` is the wall clock; `share` workers count one limit apart."""

    def __init__(
        self,
        now_us: Callable[[], int] = wall_us,
        *,
        share: int = 1,
        lease_us: int = LEASE_US,
        keep_us: int = KEEP_US,
    ) -> None:
        assert share >= 1
        self._read_clock = now_us
        self._share = share
        self._lease_us = lease_us
        self._keep_us = keep_us
        self._groups: dict[str, _Group] = {}
        self._closed = Expiring()
        # When to look whether something has expired: (moment, organisation, rule's key or "").
        self._tidy_at: list[tuple[int, str, str]] = []

    @property
    def num_kept(self) -> int:
        """Windows, holds and remembered ids in memory."""
        groups = self._groups.values()
        return len(self._closed) + sum(len(g.keepers) + len(g.holds) + 1 for g in groups)

    def reserve(
        self, ask: Ask, seeds: Seeds = NO_SEEDS, *, mode: Mode = Mode.ASK, age_us: int = 0
    ) -> Ready[Reply]:
        """Take all of `ask.most` or nothing."""
        group = self._enter(ask.group)
        now_us = group.now_us
        if self._closed.holds(ask.id, now_us):
            return Ready(Reply(Outcome.CLOSED, now_us))
        missing = self._seed(group, ask, seeds)
        if missing:
            return Ready(Reply(Outcome.UNSEEDED, now_us, missing=missing))
        known = ask.id in group.holds
        amounts = (0,) * len(ask.rules) if known else ask.costs()
        stands = [
            self._stand(group, ask.group, rule, amount)
            for rule, amount in zip(ask.rules, amounts, strict=True)
        ]
        is_let_in = known or mode is Mode.ADOPT or all(wait == 0 for _, wait, _ in stands)
        if is_let_in and not known:
            self._take(group, ask, amounts, now_us - age_us)
        readings: list[Reading] = []
        for rule, amount, (used, wait, _) in zip(ask.rules, amounts, stands, strict=True):
            reset = self._empty_in(group, rule)
            readings.append((used + amount, 0, reset) if is_let_in else (used, wait, reset))
        limits = tuple(limit for _, _, limit in stands) if self._share > 1 else None
        outcome = Outcome.GRANTED if is_let_in else Outcome.DENIED
        return Ready(Reply(outcome, now_us, tuple(readings), limits=limits))

    def settle(self, closing: Closing, seeds: Seeds = NO_SEEDS) -> Ready[Closed]:
        """Keep what was spent and give back the rest where it was taken."""
        ask = closing.ask
        group = self._enter(ask.group)
        now_us = group.now_us
        if self._closed.holds(ask.id, now_us):
            return Ready(Closed(Outcome.CLOSED, now_us))
        hold = group.holds.pop(ask.id, None)
        if hold is None and closing.mode is Mode.CHARGE:
            missing = self._seed(group, ask, seeds)
            if missing:
                return Ready(Closed(Outcome.UNSEEDED, now_us, missing=missing))
        self._closed.put(ask.id, now_us + CLOSED_US)
        if hold is None and closing.mode is not Mode.CHARGE:
            return Ready(Closed(Outcome.UNKNOWN, now_us))
        alerts = self._change(group, closing, hold)
        held, spent = _sum(hold.most) if hold is not None else Sum(), _sum(closing.spent)
        group.reserved += _over(spent, held)
        group.settled += spent
        group.released += _over(held, spent)
        if hold is not None and closing.mode is not Mode.RELEASE:
            lasted_us = now_us - hold.at_us
            mean_us = group.mean_us or lasted_us
            group.mean_us = mean_us + (lasted_us - mean_us) // 8
        outcome = Outcome.UNKNOWN if hold is None else Outcome.GRANTED
        return Ready(Closed(outcome, now_us, alerts))

    def renew(self, asks: Sequence[Ask]) -> Ready[tuple[Outcome, ...]]:
        """Prolong the leases of open holds of one organisation."""
        return Ready(tuple(self._renew(ask) for ask in asks))

    def totals(self, group: str) -> Ready[Totals]:
        """Return what an organisation ever reserved and what became of it."""
        kept = self._enter(group)
        still = sum((_sum(hold.most) for hold in kept.holds.values()), Sum())
        return Ready(Totals(kept.reserved, kept.settled, kept.released, still, kept.lapsed))

    async def ping(self) -> None:
        """Return at once: this store is never away."""

    async def run(self) -> None:
        """Wait: there is nothing to do beside the calls."""
        await asyncio.Event().wait()

    def _enter(self, name: str) -> _Group:
        """Return a group with its clock set and its dead swept; throw away what has expired."""
        now_us = self._read_clock()
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
            heapq.heappush(self._tidy_at, (now_us + RETAIN_US, name, ""))
        # The clock may be set back: by up to a minute time stands still, beyond it is believed.
        if not group.now_us - MAX_BACKWARD_US <= now_us <= group.now_us:
            group.now_us = now_us
        self._sweep(group, group.now_us)
        self._tidy(group.now_us)
        return group

    def _sweep(self, group: _Group, now_us: int) -> None:
        for hold in group.sweep(now_us):
            self._closed.put(hold, now_us + CLOSED_US)

    def _tidy(self, now_us: int) -> None:
        for _ in range(_TIDIED_PER_STEP):
            if not self._tidy_at or self._tidy_at[0][0] > now_us:
                return
            _, name, key = heapq.heappop(self._tidy_at)
            group = self._groups.get(name)
            if group is None:
                continue
            keeper = group.keepers.get(key)
            if keeper is not None:
                expires_us = keeper.expires_us()
            else:
                self._sweep(group, now_us)
                in_use = group.keepers or group.holds
                expires_us = (now_us if in_use else group.now_us) + RETAIN_US
            if expires_us > now_us:
                heapq.heappush(self._tidy_at, (expires_us, name, key))
            elif keeper is not None:
                del group.keepers[key]
            else:
                del self._groups[name]

    def _keeper(self, group: _Group, name: str, rule: Rule) -> _Keeper:
        keeper = group.keepers.get(rule.key)
        if keeper is None:
            if rule.kind is Kind.SLIDING:
                keeper = SlidingWindow()
            else:
                keeper = Seats() if rule.kind is Kind.SEATS else Calendar(rule.kind)
            group.keepers[rule.key] = keeper
            heapq.heappush(self._tidy_at, (group.now_us + self._lease_us, name, rule.key))
        return keeper

    def _seed(self, group: _Group, ask: Ask, seeds: Seeds) -> tuple[tuple[int, int], ...]:
        """See to it that each calendar window has begun; return those that lack their seed."""
        missing: list[tuple[int, int]] = []
        for index, rule in enumerate(ask.rules):
            if rule.is_calendar:
                keeper = self._keeper(group, ask.group, rule)
                assert isinstance(keeper, Calendar)
                if keeper.at(group.now_us) is None:
                    first_day = keeper.first_day(group.now_us)
                    if seeds.get(index, (-1, 0))[0] == first_day:
                        keeper.begin(group.now_us, seeds[index][1])
                    else:
                        missing.append((index, first_day))
        return tuple(missing)

    def _stand(self, group: _Group, name: str, rule: Rule, amount: int) -> tuple[int, int, int]:
        """Return used, wait, and the limit counted against."""
        keeper, now_us = self._keeper(group, name, rule), group.now_us
        limit = rule.limit
        if isinstance(keeper, Calendar):
            window = keeper.at(now_us)
            assert window is not None, "windows are seeded first"
            if self._share > 1:
                limit = window.share_of(limit, self._share)
            return *window.stand(limit, amount, now_us), limit
        if self._share > 1 and limit > 0:
            limit = max(limit // self._share, 1)
        if isinstance(keeper, Seats):
            return *keeper.stand(limit, amount, now_us, group.mean_us), limit
        return *keeper.stand(limit, amount, now_us), limit

    def _empty_in(self, group: _Group, rule: Rule) -> int:
        keeper = group.keepers[rule.key]
        if isinstance(keeper, Calendar):
            window = keeper.at(group.now_us)
            assert window is not None
            return window.empty_in(group.now_us)
        return keeper.empty_in(group.now_us) if isinstance(keeper, SlidingWindow) else 0

    def _take(self, group: _Group, ask: Ask, amounts: tuple[int, ...], at_us: int) -> None:
        now_us = group.now_us
        for rule, amount in zip(ask.rules, amounts, strict=True):
            keeper = group.keepers[rule.key]
            if isinstance(keeper, Seats):
                if amount > 0:
                    keeper.put(ask.id, now_us + self._lease_us)
            else:
                _add(keeper, at_us, now_us, amount)
        due_us = now_us + self._lease_us + self._keep_us
        group.keep(ask.id, _Hold(at_us, due_us, ask.most, amounts))
        group.reserved += _sum(ask.most)

    def _change(self, group: _Group, closing: Closing, hold: _Hold | None) -> tuple[int, ...]:
        """Correct every rule to what was spent; return those whose budget reached its alert."""
        alerts: list[int] = []
        now_us = group.now_us
        at_us = now_us - closing.age_us if hold is None else hold.at_us
        ended_us = now_us - closing.ended_us if hold is None else None
        taken = closing.ask.taken(closing.spent)
        for index, (rule, amount) in enumerate(zip(closing.ask.rules, taken, strict=True)):
            keeper = self._keeper(group, closing.ask.group, rule)
            if isinstance(keeper, Seats):
                keeper.drop(closing.ask.id)
                continue
            change = amount - (0 if hold is None else hold.amounts[index])
            window = _add(keeper, at_us, now_us, change, ended_us)
            if window is not None and rule.alert_at >= 0 and window.spend(amount, rule.alert_at):
                alerts.append(index)
        return tuple(alerts)

    def _renew(self, ask: Ask) -> Outcome:
        group = self._enter(ask.group)
        hold = group.holds.get(ask.id)
        if hold is None:
            closed = self._closed.holds(ask.id, group.now_us)
            return Outcome.CLOSED if closed else Outcome.UNKNOWN
        due_us = group.now_us + self._lease_us + self._keep_us
        group.keep(ask.id, _Hold(hold.at_us, due_us, hold.most, hold.amounts))
        for rule, amount in zip(ask.rules, hold.amounts, strict=True):
            keeper = self._keeper(group, ask.group, rule)
            if isinstance(keeper, Seats) and amount > 0:
                keeper.put(ask.id, group.now_us + self._lease_us)
        return Outcome.GRANTED


def _add(
    keeper: SlidingWindow | Calendar,
    at_us: int,
    now_us: int,
    amount: int,
    ended_us: int | None = None,
) -> CalendarWindow | None:
    """Add to what held the moment `at_us`, where it is still there; return a calendar's window."""
    if isinstance(keeper, SlidingWindow):
        keeper.advance(now_us // US_PER_S)
        if at_us // US_PER_S >= now_us // US_PER_S - LIVE_S:
            keeper.add(at_us // US_PER_S, amount)
        return None
    window = keeper.at(at_us)
    # What ended well before the seed was taken is in the ledger, and so in the seed.
    if window is None or (ended_us is not None and ended_us + SEED_GRACE_US < window.seeded_us):
        return None
    window.add(amount)
    return window
