"""How far forecasts were off: what was said and what happened, as quantiles for the next forecast.

It knows pairs of numbers, and neither queues nor clocks. One band holds forecasts of one kind, so
that an interval is as wide as forecasts of that kind deserve. Few data are mixed with a wide prior;
old data expire, so that what was learnt in one state of the world does not rule for ever.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque

from engine.core.clock import NS_PER_S

MOST_PAIRS = 256
NEWEST_PAIRS = (
    64  # of them the middle is taken: what all are off by at present changes with the load
)
EXPIRE_NS = 600 * NS_PER_S
EVERY_PAIRS = 8  # quantiles are made again after so many new pairs
EVERY_NS = 2 * NS_PER_S
# What is assumed of a kind of forecast that nobody has checked yet: half as long to thrice.
PRIOR = (-1.2, -0.7, -0.4, -0.2, -0.05, 0.0, 0.1, 0.3, 0.6, 1.1, 1.6)
PRIOR_FADES = 64  # pairs after which the prior is gone
MOST_WAYS = 64
MOST_OPEN = 4096  # forecasts whose outcome is awaited
# Up to so many outcomes of a tier those overdue are counted as well: they are looked for one by
# one at every forecast. More than this no rule may ask for (admission.py).
ENOUGH = 64
NOBODY: tuple[None, int, int, float] = (None, 0, 0, 0.0)
PRIOR_WEIGHT = 16  # pairs that a prior chance weighs as much as
# One that is open for more than twice as long as usual has been passed over: it will wait for four
# times as long yet. Factors, as logarithms.
OVERDUE, LONGER = math.log(2.0), math.log(4.0)


class Band:
    """Errors of one kind of forecast: log(actual / reference), the latest `MOST_PAIRS`."""

    __slots__ = ("_errors", "_made_ns", "_middle", "_num_new", "_open", "_pairs", "_seen")

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, float]] = deque(maxlen=MOST_PAIRS)
        self._open: dict[str, tuple[int, float]] = {}  # said and not seen yet: when, reference
        self._errors: list[float] = sorted(PRIOR)
        self._middle = quantile(self._errors, 0.5)
        self._seen: list[float] = []  # without the prior
        self._num_new = 0
        self._made_ns = 0

    def num_pairs(self, now_ns: int) -> int:
        """Return how many outcomes were seen that have not expired."""
        self._expire(now_ns)
        return len(self._pairs)

    def is_checked(self, least: int, now_ns: int) -> bool:
        """True where so many outcomes are known; open for longer than was said is one, too.

        Who missed would be known much later than who did not, or never, by first tokens alone.
        """
        lacking = least - self.num_pairs(now_ns)
        if lacking > 0:
            for said_ns, reference in self._open.values():
                lacking -= EXPIRE_NS >= now_ns - said_ns > reference
                if lacking <= 0:
                    break
        return lacking <= 0

    def said(self, name: str, reference_ns: float, now_ns: int) -> None:
        """A forecast was made; its outcome may come, or `forget`."""
        self._open[name] = (now_ns, max(reference_ns, 1.0))

    def saw(self, name: str, actual_ns: float, now_ns: int) -> None:
        """The outcome of a forecast."""
        said = self._open.pop(name, None)
        if said is not None:
            self._pairs.append((now_ns, math.log(max(actual_ns, 1.0) / said[1])))
            self._num_new += 1

    def is_overdue(self, name: str, now_ns: int) -> bool:
        """True where an outcome is awaited for longer than was said."""
        said = self._open.get(name)
        return said is not None and now_ns - said[0] > said[1]

    def forget(self, name: str) -> None:
        """There will be no outcome."""
        self._open.pop(name, None)

    def errors(self, now_ns: int) -> list[float]:
        """Return the errors in order, those still open counted by how long they wait already.

        Without the latter, who waits longest would be missing, and every interval be too short.
        """
        if self._num_new >= EVERY_PAIRS or now_ns - self._made_ns > EVERY_NS:
            self._make(now_ns)
        return self._errors

    def middle(self, now_ns: int) -> float:
        """Return the middle error of the newest outcomes, those still open counted likewise."""
        self.errors(now_ns)
        return self._middle

    def chance(self, error: float, prior: float, now_ns: int) -> float:
        """Return the chance that the next error is no greater; `prior` is the chance before any."""
        self.errors(now_ns)
        seen = self._seen
        return (bisect_right(seen, error) + PRIOR_WEIGHT * prior) / (len(seen) + PRIOR_WEIGHT)

    def _expire(self, now_ns: int) -> None:
        pairs = self._pairs
        while pairs and now_ns - pairs[0][0] > EXPIRE_NS:
            pairs.popleft()

    def _make(self, now_ns: int) -> None:
        self._expire(now_ns)
        errors = [error for _, error in self._pairs]
        middle = sorted(errors)[len(errors) // 2] if errors else 0.0
        newest = errors[-NEWEST_PAIRS:]
        since_ns = self._pairs[-len(newest)][0] if newest else 0
        for said_ns, reference in self._open.values():
            error = math.log(max(now_ns - said_ns, 1) / reference)
            if error <= middle:  # those younger than usual say nothing yet
                continue
            errors.append(error + LONGER if error > middle + OVERDUE else error)
            if said_ns >= since_ns:
                newest.append(errors[-1])
        self._seen = sorted(errors)
        self._errors = sorted([*errors, *_prior(len(errors))])
        self._middle = quantile(sorted([*newest, *_prior(len(errors))]), 0.5)
        self._num_new, self._made_ns = 0, now_ns


def _prior(num_errors: int) -> list[float]:
    """Return what is left of the prior beside so many errors."""
    kept = round(len(PRIOR) * max(0.0, 1.0 - num_errors / PRIOR_FADES))
    return [PRIOR[int((number + 0.5) * len(PRIOR) / kept)] for number in range(kept)]


def quantile(ordered: list[float], share: float) -> float:
    """Return the value that this share of the ordered values does not exceed, interpolated.

    The n values divide the line into n + 1 parts that are equally likely for the next one.
    """
    place = share * (len(ordered) + 1) - 1
    low = min(max(math.floor(place), 0), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    part = min(max(place - low, 0.0), 1.0)
    return ordered[low] + part * (ordered[high] - ordered[low])


class Way:
    """How long first tokens are on their way from the engine to the door: the usual of the latest.

    It adds to every time, short or long, so it is no share of what is forecast.
    """

    __slots__ = ("_latest", "_num_new", "usual_ns")

    def __init__(self) -> None:
        self._latest: deque[int] = deque(maxlen=MOST_WAYS)
        self._num_new = 0
        self.usual_ns = 0.0

    def took(self, way_ns: int) -> None:
        """One took so long."""
        self._latest.append(max(0, way_ns))
        self._num_new += 1
        if self._num_new >= EVERY_PAIRS:
            self._num_new = 0
            self.usual_ns = float(sorted(self._latest)[len(self._latest) // 2])


class Experience:
    """The bands of all kinds of forecasts, and whose outcomes are still awaited.

    A kind is a tier and a basis. Each has two bands: errors against the forecast, and against the
    target, for where what was said is no measure (it is on time, or it is passed over).
    """

    __slots__ = ("_bands", "_num_outcomes", "_open")

    def __init__(self) -> None:
        self._bands: dict[tuple[str, str], tuple[Band, Band]] = {}
        # Kind, when it was said, when it had arrived, when it is due.
        self._open: dict[str, tuple[tuple[str, str], int, int, float]] = {}
        self._num_outcomes: Counter[str] = Counter()

    def bands(self, tier: str, basis: str) -> tuple[Band, Band]:
        """Return a kind's errors against the forecast, and against the target."""
        found = self._bands.get((tier, basis))
        if found is None:
            found = self._bands[tier, basis] = (Band(), Band())
        return found

    def num_outcomes(self, tier: str, now_ns: int) -> int:
        """Return how many outcomes of a tier are known; open for longer than was owed is one, too.

        Else a class of which nobody is served would have none, and be promised everything for ever.
        From `ENOUGH` on those still open are not looked for.
        """
        num = self._num_outcomes[tier]
        if num < ENOUGH:
            num += sum(
                kind[0] == tier and now_ns > due_ns for kind, _, _, due_ns in self._open.values()
            )
        return num

    def expect(
        self,
        name: str,
        kind: tuple[str, str],
        raw_ns: float,
        target_ns: float,
        said_ns: int,
        arrival_ns: int,
    ) -> None:
        """A forecast was made, and its outcome will be told: `first_token` or `forget`.

        `raw_ns` counts from when it was said, the target from the arrival.
        """
        if len(self._open) >= MOST_OPEN:
            self.forget(next(iter(self._open)))
        by_raw, by_target = self.bands(*kind)
        by_raw.said(name, raw_ns, said_ns)
        by_target.said(name, target_ns, arrival_ns)
        self._open[name] = (kind, said_ns, arrival_ns, arrival_ns + target_ns)

    def first_token(self, name: str, now_ns: int) -> None:
        """An outcome; one that nobody waits for is ignored."""
        kind, said_ns, arrival_ns, _ = self._open.pop(name, NOBODY)
        if kind is not None:
            self._num_outcomes[kind[0]] += 1
            by_raw, by_target = self.bands(*kind)
            by_raw.saw(name, now_ns - said_ns, now_ns)
            by_target.saw(name, now_ns - arrival_ns, now_ns)

    def missed(self, name: str, now_ns: int) -> None:
        """It left without a first token after that was due.

        How late it would have come nobody knows: it counts as late as it left. Against the forecast
        it is one only where it had waited for longer than was said.
        """
        kind, said_ns, arrival_ns, _ = self._open.pop(name, NOBODY)
        if kind is not None:
            self._num_outcomes[kind[0]] += 1
            by_raw, by_target = self.bands(*kind)
            by_target.saw(name, now_ns - arrival_ns, now_ns)
            if by_raw.is_overdue(name, now_ns):
                by_raw.saw(name, now_ns - said_ns, now_ns)
            else:
                by_raw.forget(name)

    def forget(self, name: str) -> None:
        """It left without a first token, or nobody will tell."""
        kind, *_ = self._open.pop(name, NOBODY)
        if kind is not None:
            for band in self.bands(*kind):
                band.forget(name)
