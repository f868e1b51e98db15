"""Adds a tenant's judged requests up into what a report says of them; it reads no table.

Sums are kept for the whole span, for the burn windows that end with it, and for its days, weeks and
months (UTC; cut at the span's ends). A budget is measured by the objective in force at the end of
the span. Percentiles are nearest-rank over every request, so they are numbers that occurred.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from tenants.slo import COUNT_FIELDS, Budget, Objective, SloRecord, count_names, overrun, target_of
from tenants.slo_windows import BURN_WINDOWS, DAY, HOUR, LONGEST_BY_MINUTE, MINUTE, floor_to
from tenants.values import Period, TierVersion

MS = 1_000_000
PLACES = 6
WORST = 20
PERCENTILES = (50, 90, 95, 99)
SPAN = "span"
# Bars of the picture of how much of the time allowed was used: half powers of two around 1.
BARS = 24
EASED, SAVED = "eased_count", "eased_met"

Value = str | int | bool
Line = dict[str, Value]
Bounds = tuple[str, datetime, datetime]  # what kind of window, and its [since, until)


def digits(value: Fraction | None) -> str:
    """Return a fraction with six digits, the rest cut off: 0.9999999 is no 1. Empty for None."""
    if value is None:
        return ""
    scaled = abs(value.numerator) * 10**PLACES // value.denominator
    whole, rest = divmod(scaled, 10**PLACES)
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{rest:0{PLACES}d}"


def budget_fields(budget: Budget | None, counted: int, bad: int) -> Line:
    """Return a budget as the fields of a line; without a target only what was counted."""
    fields: Line = {"counted": counted, "bad": bad}
    good = Budget(counted, bad)
    said = {"attainment": digits(good.attainment)}
    if budget is not None:
        said["allowed"] = digits(budget.allowed)
        said["left"] = digits(budget.allowed - bad)
        said["left_share"] = digits(budget.left)
        said["burn"] = digits(budget.burn)
        if budget.is_met is not None:
            fields["kept"] = budget.is_met
    return fields | {name: text for name, text in said.items() if text}


def promised_ttft_ns(version: TierVersion, prompt_tokens: int) -> int:
    """Return within what time a tier's version owes the first token of such a prompt."""
    tier = version.tier
    return tier.ttft_ms * MS + tier.ttft_ms_per_1k_prompt_tokens * MS * prompt_tokens // 1000


@dataclass(frozen=True, slots=True)
class Worst:
    """A miss, and the number of its line."""

    times: Fraction
    number: int
    record: SloRecord

    def __lt__(self, other: Worst) -> bool:
        """Return True for the lesser one; of equals the earlier is the worse."""
        return (self.times, -self.number) < (other.times, -other.number)


class Versions:
    """Every version of the tiers, by name and number and by time."""

    def __init__(self, versions: Iterable[TierVersion]) -> None:
        self._all = sorted(versions, key=lambda v: (v.tier.name, v.tier.version))
        self._by_key = {(v.tier.name, v.tier.version): v for v in self._all}

    def get(self, tier: str, version: int) -> TierVersion | None:
        """Return one version, None for one that nobody knows."""
        return self._by_key.get((tier, version))

    def of(self, tier: str) -> list[TierVersion]:
        """Return a tier's versions, the oldest first."""
        return [v for v in self._all if v.tier.name == tier]

    def in_force(self, tier: str, until: datetime) -> TierVersion | None:
        """Return what a tier promised just before a moment; its first version, if that is later."""
        known = self.of(tier)
        before = [v for v in known if v.changed_at < until]
        return before[-1] if before else next(iter(known), None)


class Sums:
    """The sums of one report; `add` takes its requests, the oldest first."""

    def __init__(self, since: datetime, until: datetime, versions: Versions) -> None:
        self.since = since
        self.until = until
        self.versions = versions
        self.counts: dict[tuple[Bounds, str], Counter[str]] = {}
        self.reasons: Counter[tuple[str, str, str]] = Counter()
        self.downgrades: Counter[tuple[str, str]] = Counter()
        self.used: set[tuple[str, int]] = set()
        self.tiers: set[str] = set()
        self.ttft: dict[str, array[int]] = {}
        self.tbt: dict[str, array[int]] = {}
        self.bars: dict[tuple[str, str], list[int]] = {}
        self.worst: list[Worst] = []
        self.requests = 0
        self._rolling = list(rolling_bounds(since, until))
        # The windows of the minute of the latest request: they begin and end on minutes.
        self._minute: tuple[datetime, list[Bounds]] = (since, [])

    def add(self, record: SloRecord, number: int) -> str:
        """Count a request, whose line has this number; return how its promise compares."""
        state = self._compare(record)
        names = count_names(record)
        self.requests += 1
        self.tiers.update((record.tier, record.tier_asked))
        self.used.add((record.tier, record.tier_version))
        for bounds in self._windows(record.arrival):
            counts = self.counts.get((bounds, record.tier))
            if counts is None:
                counts = self.counts[bounds, record.tier] = Counter()
            counts.update(names)
            if record.tbt_met is not None:
                counts["gaps"] += record.gaps
                counts["late_gaps"] += record.late_gaps
        span = self.counts[(self.span, record.tier)]
        if state == "eased":
            span[EASED] += 1
            span[SAVED] += bool(record.met) and not self._is_met_as_promised(record)
        if record.reason:
            self.reasons[(record.tier, record.outcome.value, record.reason)] += 1
        if record.tier != record.tier_asked:
            self.downgrades[(record.tier_asked, record.tier)] += 1
        self._measure(record)
        if record.met is False:
            place = Worst(overrun(record), number, record)
            if len(self.worst) < WORST:
                heapq.heappush(self.worst, place)
            else:
                heapq.heappushpop(self.worst, place)
        return state

    @property
    def span(self) -> Bounds:
        """The whole span as a window."""
        return (SPAN, self.since, self.until)

    def target(self, tier: str) -> Fraction | None:
        """Return the objective by which a tier's budgets are measured; None: nobody knows."""
        version = self.versions.in_force(tier, self.until)
        return None if version is None else target_of(version.tier.objective)

    def windows(self) -> Iterator[tuple[Bounds, str, Mapping[str, int]]]:
        """Yield each window, tier and its counts: span and burn windows also where all is 0."""
        for bounds in (self.span, *self._rolling):
            for tier in sorted(self.tiers):
                yield bounds, tier, self.counts.get((bounds, tier), Counter())
        always = {self.span, *self._rolling}
        order = {"month": 0, "week": 1, "day": 2}
        rest = [key for key in self.counts if key[0] not in always]
        for bounds, tier in sorted(rest, key=lambda k: (order[k[0][0]], k[0][1], k[1])):
            yield bounds, tier, self.counts[(bounds, tier)]

    def _windows(self, arrival: datetime) -> list[Bounds]:
        end, found = self._minute
        if arrival >= end or not found or arrival < end - timedelta(seconds=MINUTE):
            found = [self.span, *(bounds for bounds in self._rolling if arrival >= bounds[1])]
            for period in (Period.DAY, Period.WEEK, Period.MONTH):
                since, until = period_around(arrival, period)
                found.append((period.value, max(since, self.since), min(until, self.until)))
            self._minute = (floor_to(arrival, MINUTE) + timedelta(seconds=MINUTE), found)
        return found

    def _compare(self, record: SloRecord) -> str:
        version = self.versions.get(record.tier, record.tier_version)
        if version is None:
            return "unknown"
        due = promised_ttft_ns(version, record.prompt_tokens)
        tbt = version.tier.tbt_ms * MS
        if (record.ttft_due_ns, record.tbt_ns) == (due, tbt):
            return "tier"
        if record.ttft_due_ns < due or record.tbt_ns < tbt:
            return "tighter"
        return "eased" if record.eased else "looser"

    def _is_met_as_promised(self, record: SloRecord) -> bool:
        """True where an eased request would have met its tier's own promise as well."""
        version = self.versions.get(record.tier, record.tier_version)
        first = record.ttft_ns
        if version is None or first is None:
            return False
        needed = record.needed_tbt_ns or 0
        in_time = first <= promised_ttft_ns(version, record.prompt_tokens)
        return in_time and needed <= version.tier.tbt_ms * MS

    def _measure(self, record: SloRecord) -> None:
        first = record.ttft_ns
        if record.ttft_met is not None and first is not None:
            self.ttft.setdefault(record.tier, array("q")).append(first)
            self._bar(record.tier, "ttft", first, record.ttft_due_ns)
        if record.tbt_met is not None and record.needed_tbt_ns is not None:
            self.tbt.setdefault(record.tier, array("q")).append(record.needed_tbt_ns)
            self._bar(record.tier, "tbt", record.needed_tbt_ns, record.tbt_ns)

    def _bar(self, tier: str, measure: str, took: int, allowed: int) -> None:
        bars = self.bars.setdefault((tier, measure), [0] * BARS)
        bars[bar_of(took, allowed)] += 1


def bar_of(took: int, allowed: int) -> int:
    """Return the bar of a share of the time allowed: those below BARS / 2 are in time.

    Bar i ends at sqrt(2) ** (i + 1 - BARS / 2) times the time allowed; compared as whole numbers.
    """
    middle = BARS // 2
    square, limit = took * took, allowed * allowed
    for i in range(BARS - 1):
        power = i + 1 - middle
        if power <= 0 and square << -power <= limit:
            return i
        if power > 0 and square <= limit << power:
            return i
    return BARS - 1


def rolling_bounds(since: datetime, until: datetime) -> Iterator[Bounds]:
    """Yield the burn windows that end with a span and do not begin before it."""
    for name, length in BURN_WINDOWS.items():
        grain = MINUTE if length <= LONGEST_BY_MINUTE else HOUR
        first = floor_to(until - length, grain)
        if first >= since:
            yield (name, first, until)


def period_around(moment: datetime, period: Period) -> tuple[datetime, datetime]:
    """Return [since, until) of the whole day, week (from Monday) or month of a moment."""
    day = floor_to(moment, DAY)
    if period is Period.DAY:
        return day, day + timedelta(days=1)
    if period is Period.WEEK:
        first = day - timedelta(days=day.weekday())
        return first, first + timedelta(days=7)
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def nearest_rank(values: Sequence[int], percent: int) -> int:
    """Return a percentile of sorted values: the least that so many percent do not exceed."""
    rank = -(-percent * len(values) // 100)
    return values[max(rank, 1) - 1]


def count_fields(counts: Mapping[str, int]) -> Line:
    """Return sums as the fields of a line."""
    return {name: counts.get(name, 0) for name in COUNT_FIELDS}


def budget_for(counts: Mapping[str, int], objective: Objective, target: Fraction | None) -> Line:
    """Return the budget of one objective as the fields of a line."""
    counted = counts.get(f"counted_{objective.value}", 0)
    bad = counts.get(f"bad_{objective.value}", 0)
    budget = None if target is None else Budget(counted, bad, target)
    return budget_fields(budget, counted, bad)
