"""The largest rate at which a criterion holds: bisection with repeats over seeds, and an interval.

It knows tallies and rates, and no policy: what runs a point is handed in. Rates are those of one
geometric grid (each `1 + tolerance` times the one before), so that searches share their points.
The rate found was run and passed, and the next one of the grid was run and failed; attainment is
taken to fall with the rate, which noise may break between neighbours, and the interval shows that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from engine.sim.statistics import Interval, interval, mean
from engine.sim.tally import Tallies, Tally

TOLERANCE = 0.02
LOWEST_RATE, HIGHEST_RATE = 1e-3, 1e4
START_RATE = 1.0
MOST_UNSERVED = 0.01  # more than this share without an answer: means of the others tell nothing
ROUNDING = 1e-6  # points give shares in six digits: 99 of 100 is 0.99, whatever the last one says

# (label, rate, seed) of a point to run; what runs a list of them, in its order.
Key: TypeAlias = tuple[str, float, int]
Evaluate: TypeAlias = Callable[[Sequence[Key]], Sequence[Tally]]


class CriterionError(ValueError):
    """The criterion is not one we know; one sentence says so."""


class Criterion(Protocol):
    """What must hold at a rate for it to be within capacity."""

    @property
    def text(self) -> str:
        """The criterion in words."""
        ...

    def margin(self, tallies: Sequence[Tally], count: int | None = None) -> float:
        """Return how well it holds over the seeds of one rate: negative where it does not.

        With a `count` above the number of tallies: how well at best, were the others perfect.
        """
        ...


@dataclass(frozen=True, slots=True)
class EverySlo:
    """Each tier's attainment, averaged over the seeds, is at least its objective."""

    text: str = "every tier meets its objective"

    def margin(self, tallies: Sequence[Tally], count: int | None = None) -> float:
        """Return the least attainment above its objective, over the tiers that had requests."""
        margins = []
        for tier, objective in tallies[0].objectives.items():
            known = [
                t.number(tier, "attainment") or 0.0 for t in tallies if t.tier(tier)["offered"]
            ]
            known += [1.0] * ((count or 0) - len(tallies))
            if known:
                margins.append(mean(known) - objective)
        return min(margins, default=-1.0) + ROUNDING


@dataclass(frozen=True, slots=True)
class MedianTtft:
    """The median TTFT of all requests offered, averaged over the seeds, is below a limit."""

    limit_ms: float

    @property
    def text(self) -> str:
        """The criterion in words."""
        return f"median TTFT below {self.limit_ms:g} ms"

    def margin(self, tallies: Sequence[Tally], count: int | None = None) -> float:
        """Return the share of the limit that is left."""
        return _left(self.limit_ms, [t.ttft_p50_ms for t in tallies], count)


@dataclass(frozen=True, slots=True)
class NormalisedLatency:
    """The mean of (finish - arrival) / output tokens is below a limit (ALISE's and vLLM's)."""

    limit_ms: float

    @property
    def text(self) -> str:
        """The criterion in words."""
        return f"mean normalised latency below {self.limit_ms:g} ms a token"

    def margin(self, tallies: Sequence[Tally], count: int | None = None) -> float:
        """Return the share of the limit that is left; negative where too many got no answer."""
        offered = float(sum(h.offered for t in tallies for h in t.ttft.values()))
        offered *= max(1.0, (count or 0) / len(tallies))
        if sum(t.unserved for t in tallies) > MOST_UNSERVED * offered:
            return -1.0
        return _left(self.limit_ms, [t.normalised_mean_ms for t in tallies], count)


def _left(limit: float, values: Sequence[float], count: int | None) -> float:
    if not all(map(math.isfinite, values)):
        return -1.0
    average = math.fsum(values) / max(len(values), count or 0)
    # Bounded, so that one hopeless rate does not bend what is read between two rates.
    return max(-1.0, (limit - average) / limit)


def parse_criterion(text: str) -> Criterion:
    """Return `slo`, `ttft-p50:MS` or `normalised:MS`; raises CriterionError."""
    if text == "slo":
        return EverySlo()
    kind, _, number = text.partition(":")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if 0 < limit < math.inf and kind == "ttft-p50":
        return MedianTtft(limit)
    if 0 < limit < math.inf and kind == "normalised":
        return NormalisedLatency(limit)
    raise CriterionError(f"criterion {text!r:.40}: must be slo, ttft-p50:MS or normalised:MS")


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest rate that passes: over all seeds together, and for each seed alone.

    `at_least`: the highest rate tried passed as well. 0 where even the lowest one failed.
    `interval` is over the capacities of the single seeds, whose mean need not be `rate`.
    """

    label: str
    rate: float
    at_least: bool
    by_seed: Mapping[int, float]
    interval: Interval


# Yields the place on the grid to try next, is sent whether it passed, returns (place, open end);
# place None where nothing passed.
_Search: TypeAlias = Generator[int, bool, tuple[int | None, bool]]


class RateGrid:
    """Rates that are each `1 + tolerance` times the one before, by their place."""

    __slots__ = ("_growth", "first", "last")

    def __init__(self, tolerance: float, lowest: float, highest: float) -> None:
        self._growth = math.log1p(tolerance)
        self.first, self.last = self.place(lowest), self.place(highest)

    def place(self, rate: float) -> int:
        """Return the place nearest to a rate."""
        return round(math.log(rate) / self._growth)

    def rate(self, place: int) -> float:
        """Return the rate of a place, in five digits."""
        return float(f"{math.exp(place * self._growth):.5g}")


def _search(grid: RateGrid, start: int, stride: int, longest: int) -> _Search:
    """Find the last place that passes: ever longer strides from the start, then halves."""
    passed: int | None = None
    failed: int | None = None
    place = min(max(start, grid.first), grid.last)
    while passed is None or failed is None:
        if (yield place):
            passed = place
            if place == grid.last:
                return place, True
            place = min(place + stride, grid.last) if failed is None else place
        else:
            failed = place
            if place == grid.first:
                return None, False
            place = max(place - stride, grid.first) if passed is None else place
        stride = min(2 * stride, longest)
    while failed - passed > 1:
        middle = (passed + failed) // 2
        if (yield middle):
            passed = middle
        else:
            failed = middle
    return passed, False


def find_capacities(
    labels: Sequence[str],
    seeds: Sequence[int],
    criterion: Criterion,
    evaluate: Evaluate,
    *,
    tolerance: float = TOLERANCE,
    start: float = START_RATE,
    lowest: float = LOWEST_RATE,
    highest: float = HIGHEST_RATE,
    width: int = 1,
) -> list[Capacity]:
    """Return each policy's capacity; searches advance together, about `width` points at once.

    Seeds of a rate are run a few at a time: one that fails whatever the others do is left there.
    """
    grid = RateGrid(tolerance, lowest, highest)
    known: dict[Key, Tally] = {}
    doubling = grid.place(2.0) or 1
    places = _advance(
        {
            (label, tuple(seeds)): _search(grid, grid.place(start), doubling, doubling)
            for label in labels
        },
        grid,
        known,
        criterion,
        evaluate,
        width,
    )
    together = {label: places[label, tuple(seeds)] for label in labels}
    # A single seed's capacity is near that of all: short strides from there.
    alone = _advance(
        {
            (label, (seed,)): _search(grid, grid.first if at is None else at, 2, doubling)
            for label, (at, _) in together.items()
            for seed in seeds
        },
        grid,
        known,
        criterion,
        evaluate,
        width,
    )
    found = []
    for label in labels:
        at, open_end = together[label]
        by_seed = {seed: _rate(grid, alone[label, (seed,)][0]) for seed in seeds}
        found.append(
            Capacity(label, _rate(grid, at), open_end, by_seed, interval(by_seed.values()))
        )
    return found


def _rate(grid: RateGrid, place: int | None) -> float:
    return 0.0 if place is None else grid.rate(place)


_Who: TypeAlias = tuple[str, tuple[int, ...]]  # a policy, and the seeds judged together


def _advance(
    searches: Mapping[_Who, _Search],
    grid: RateGrid,
    known: dict[Key, Tally],
    criterion: Criterion,
    evaluate: Evaluate,
    width: int,
) -> dict[_Who, tuple[int | None, bool]]:
    """Drive searches to their ends, a round for all at a time; `known` gathers the points."""
    asks = {who: next(search) for who, search in searches.items()}
    ends: dict[_Who, tuple[int | None, bool]] = {}
    while asks:
        some = max(1, width // len(asks))
        wanted: dict[Key, None] = {}
        for (label, seeds), place in asks.items():
            keys = [(label, grid.rate(place), seed) for seed in seeds]
            wanted |= dict.fromkeys([key for key in keys if key not in known][:some])
        known.update(zip(wanted, evaluate(list(wanted)) if wanted else (), strict=True))
        nexts = {}
        for who, place in asks.items():
            label, seeds = who
            keys = [(label, grid.rate(place), seed) for seed in seeds]
            rows = [known[key] for key in keys if key in known]
            passes = criterion.margin(rows, len(seeds)) >= 0
            if passes and len(rows) < len(seeds):
                nexts[who] = place  # it may still fail
                continue
            try:
                nexts[who] = searches[who].send(passes)
            except StopIteration as end:
                ends[who] = end.value
        asks = nexts
    return ends


def capacities_of(tallies: Tallies, criterion: Criterion) -> list[Capacity]:
    """Read capacities off a grid that was run: straight lines between its rates.

    No better than the grid is fine; where the lowest rate fails the capacity counts as 0.
    """
    found = []
    for label in tallies.labels:
        rate, open_end = _crossing(
            [(r, criterion.margin(cell)) for r in tallies.rates if (cell := tallies.cell(label, r))]
        )
        by_seed = {}
        for seed in tallies.seeds:
            line = [
                (r, criterion.margin(rows))
                for r in tallies.rates
                if (rows := [o for o in tallies.cell(label, r) if o.seed == seed])
            ]
            by_seed[seed] = _crossing(line)[0]
        found.append(Capacity(label, rate, open_end, by_seed, interval(by_seed.values())))
    return found


def _crossing(line: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """Return where the margin first falls below 0, and whether it never does."""
    before: tuple[float, float] | None = None
    for rate, margin in line:
        if margin < 0:
            if before is None:
                return 0.0, False
            share = before[1] / (before[1] - margin)
            return before[0] + share * (rate - before[0]), False
        before = rate, margin
    return (line[-1][0], True) if line else (0.0, False)
