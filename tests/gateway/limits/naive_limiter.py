"""A limiter that keeps every event and adds up from scratch: slow, plain, the judge of the stores.

It shares no arithmetic with them: windows are found by asking of every event whether it counts at
a moment, waits by trying every moment at which anything can change, the calendar by datetime.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from gateway.limits.rules import Counted, Kind, Rule
from gateway.limits.store import Closed, Closing, Mode, Outcome, Reply, Seeds
from gateway.limits.values import NEVER, Ask, Spend, Sum, Totals

SECOND = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window_of(kind: Kind, at_us: int) -> tuple[int, int]:
    """Return begin and end of the calendar window that holds a moment, in microseconds."""
    midnight = (EPOCH + timedelta(microseconds=at_us)).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    if kind is Kind.DAY:
        begin = midnight
        end = midnight + timedelta(days=1)
    elif kind is Kind.WEEK:
        begin = midnight - timedelta(days=midnight.weekday())
        end = begin + timedelta(days=7)
    else:
        begin = midnight.replace(day=1)
        end = (
            begin.replace(year=begin.year + 1, month=1)
            if begin.month == 12
            else begin.replace(month=begin.month + 1)
        )
    return tuple((moment - EPOCH) // timedelta(microseconds=1) for moment in (begin, end))


@dataclass
class Event:
    """What one hold has taken of one rule, now."""

    rule: Rule
    at_us: int
    amount: int


@dataclass
class Hold:
    ask: Ask
    at_us: int
    lease_us: int
    due_us: int
    events: list[Event] = field(default_factory=list)


@dataclass
class Begun:
    """A calendar window that has begun."""

    begin_us: int
    seeded_us: int
    spent: int
    told: bool = False


class NaiveLimiter:
    def __init__(self, lease_us: int, keep_us: int) -> None:
        self.lease_us, self.keep_us = lease_us, keep_us
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.holds: dict[str, Hold] = {}
        self.closed: set[str] = set()
        self.begun: dict[str, list[Begun]] = {}
        self.reserved = self.settled = self.released = self.lapsed = Sum()
        self.mean_us = 0

    # -- what counts --

    def used(self, rule: Rule, now_us: int) -> int:
        if rule.kind is Kind.SEATS:
            seats = (hold for hold in self.holds.values() if rule in hold.ask.rules)
            return sum(hold.lease_us > now_us for hold in seats)
        mine = self.events[rule.key]
        if rule.kind is Kind.SLIDING:
            # The end of the event's own second lies at most 60 seconds back.
            return sum(e.amount for e in mine if (e.at_us // SECOND + 61) * SECOND > now_us)
        begin, end = window_of(rule.kind, now_us)
        return sum(e.amount for e in mine if begin <= e.at_us < end)

    def changes(self, rule: Rule, now_us: int) -> list[int]:
        """Return the moments after now at which something of a rule leaves by itself."""
        if rule.kind is Kind.SLIDING:
            moments = {(e.at_us // SECOND + 61) * SECOND for e in self.events[rule.key]}
            return sorted(m for m in moments if m > now_us)
        return [window_of(rule.kind, now_us)[1]]

    def wait(self, rule: Rule, amount: int, now_us: int) -> int:
        if amount == 0 or self.used(rule, now_us) + amount <= rule.limit:
            return 0
        if amount > rule.limit:
            return NEVER
        if rule.kind is Kind.SEATS:
            if self.mean_us == 0:
                return SECOND
            return max(SECOND // 10, min(self.mean_us // self.used(rule, now_us), 60 * SECOND))
        for moment in self.changes(rule, now_us):
            if self.used(rule, moment) + amount <= rule.limit:
                return moment - now_us
        raise AssertionError("what fits an empty window fits at some time")

    def reset(self, rule: Rule, now_us: int) -> int:
        if rule.kind is Kind.SEATS:
            return 0
        if rule.is_calendar:
            return window_of(rule.kind, now_us)[1] - now_us
        there = [e for e in self.events[rule.key] if e.amount > 0]
        ends = ((e.at_us // SECOND + 61) * SECOND for e in there)
        return max(max(ends, default=now_us) - now_us, 0)

    # -- operations --

    def sweep(self, now_us: int) -> None:
        for name, hold in list(self.holds.items()):
            if hold.due_us <= now_us:
                del self.holds[name]
                self.closed.add(name)
                self.settled += total(hold.ask.most)
                self.lapsed += total(hold.ask.most)

    def seed(self, ask: Ask, seeds: Seeds, now_us: int) -> tuple[tuple[int, int], ...]:
        missing = []
        for index, rule in enumerate(ask.rules):
            if not rule.is_calendar:
                continue
            begin, _ = window_of(rule.kind, now_us)
            windows = self.begun.setdefault(rule.key, [])
            if any(w.begin_us == begin for w in windows):
                continue
            day = begin // (86400 * SECOND)
            if seeds.get(index, (None, 0))[0] == day:
                amount = seeds[index][1]
                windows.append(Begun(begin, now_us, amount))
                self.events[rule.key].append(Event(rule, begin, amount))
            else:
                missing.append((index, day))
        return tuple(missing)

    def window_at(self, rule: Rule, at_us: int) -> Begun | None:
        """Return a window that has begun and is one of the latest two."""
        begin, _ = window_of(rule.kind, at_us)
        windows = sorted(self.begun.get(rule.key, []), key=lambda w: w.begin_us)[-2:]
        return next((w for w in windows if w.begin_us == begin), None)

    def put(
        self, rule: Rule, at_us: int, now_us: int, amount: int, ended_us: int | None = None
    ) -> Event | None:
        if rule.kind is Kind.SEATS:
            return None
        if rule.kind is Kind.SLIDING:
            if (at_us // SECOND + 61) * SECOND <= now_us:
                return None
        else:
            window = self.window_at(rule, at_us)
            if window is None:
                return None
            if ended_us is not None and ended_us + 5 * SECOND < window.seeded_us:
                return None
        event = Event(rule, at_us, amount)
        self.events[rule.key].append(event)
        return event

    def reserve(self, ask: Ask, seeds: Seeds, mode: Mode, age_us: int, now_us: int) -> Reply:
        self.sweep(now_us)
        if ask.id in self.closed:
            return Reply(Outcome.CLOSED, now_us)
        if missing := self.seed(ask, seeds, now_us):
            return Reply(Outcome.UNSEEDED, now_us, missing=missing)
        known = ask.id in self.holds
        costs = tuple(0 for _ in ask.rules) if known else ask.costs()
        used = [self.used(rule, now_us) for rule in ask.rules]
        waits = [self.wait(rule, c, now_us) for rule, c in zip(ask.rules, costs, strict=True)]
        granted = known or mode is Mode.ADOPT or not any(waits)
        if granted and not known:
            at_us = now_us - age_us
            lease_us = now_us + self.lease_us
            hold = Hold(ask, at_us, lease_us, lease_us + self.keep_us)
            for rule, cost in zip(ask.rules, costs, strict=True):
                if event := self.put(rule, at_us, now_us, cost):
                    hold.events.append(event)
            self.holds[ask.id] = hold
            self.reserved += total(ask.most)
        readings = tuple(
            (u + cost, 0, self.reset(rule, now_us))
            if granted
            else (u, wait, self.reset(rule, now_us))
            for rule, cost, u, wait in zip(ask.rules, costs, used, waits, strict=True)
        )
        return Reply(Outcome.GRANTED if granted else Outcome.DENIED, now_us, readings)

    def settle(self, closing: Closing, seeds: Seeds, now_us: int) -> Closed:
        ask, spent = closing.ask, closing.spent
        self.sweep(now_us)
        if ask.id in self.closed:
            return Closed(Outcome.CLOSED, now_us)
        hold = self.holds.pop(ask.id, None)
        if hold is None and closing.mode is not Mode.CHARGE:
            self.closed.add(ask.id)
            return Closed(Outcome.UNKNOWN, now_us)
        if hold is None and (missing := self.seed(ask, seeds, now_us)):
            return Closed(Outcome.UNSEEDED, now_us, missing=missing)
        self.closed.add(ask.id)
        alerts = []
        at_us = now_us - closing.age_us if hold is None else hold.at_us
        ended_us = now_us - closing.ended_us if hold is None else None
        for index, (rule, amount) in enumerate(zip(ask.rules, ask.taken(spent), strict=True)):
            if hold is None:
                counts = self.put(rule, at_us, now_us, amount, ended_us) is not None
            else:
                # Whatever still counts of it is now what was spent.
                counts = False
                for event in hold.events:
                    if event.rule is rule:
                        event.amount, counts = amount, True
            if rule.alert_at >= 0 and counts and (window := self.window_at(rule, at_us)):
                window.spent += amount
                if 0 < rule.alert_at <= window.spent and not window.told:
                    window.told = True
                    alerts.append(index)
        held = Sum() if hold is None else total(ask.most)
        gone = total(spent)
        self.reserved += above(gone, held)
        self.settled += gone
        self.released += above(held, gone)
        if hold is not None and closing.mode is not Mode.RELEASE:
            lasted = now_us - hold.at_us
            self.mean_us = self.mean_us or lasted
            self.mean_us += (lasted - self.mean_us) // 8
        return Closed(Outcome.UNKNOWN if hold is None else Outcome.GRANTED, now_us, tuple(alerts))

    def renew(self, ask: Ask, now_us: int) -> bool:
        """Return whether it is an open hold."""
        hold = self.holds.get(ask.id)
        if hold is not None:
            hold.lease_us = now_us + self.lease_us
            hold.due_us = hold.lease_us + self.keep_us
        return hold is not None

    def totals(self, now_us: int) -> Totals:
        self.sweep(now_us)
        still = sum((total(hold.ask.most) for hold in self.holds.values()), Sum())
        return Totals(self.reserved, self.settled, self.released, still, self.lapsed)

    # -- the law --

    def most_in_any_minute(self, rule: Rule) -> int:
        """Return the most that any 60 seconds hold, wherever they begin."""
        mine = sorted(self.events[rule.key], key=lambda e: e.at_us)
        assert all(a.at_us <= b.at_us for a, b in pairwise(mine))
        return max(
            (
                sum(e.amount for e in mine if last.at_us - 60 * SECOND < e.at_us <= last.at_us)
                for last in mine
            ),
            default=0,
        )


def total(spend: Spend) -> Sum:
    return Sum(spend.requests, spend.prompt_tokens + spend.output_tokens, spend.cost_nano)


def above(a: Sum, b: Sum) -> Sum:
    return Sum(
        max(a.requests - b.requests, 0),
        max(a.tokens - b.tokens, 0),
        max(a.cost_nano - b.cost_nano, 0),
    )


def is_sliding(rule: Rule) -> bool:
    return rule.kind is Kind.SLIDING and rule.counted is not Counted.SEATS
