"""The requests that were let in lately, and the same again as those to come; it forecasts nothing.

The nearest guess of the next seconds is a piece of the last minutes, with its bursts, its mix of
lengths and its classes. A path mirrors such a piece: what came last comes first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from engine.core.clock import NS_PER_S
from engine.core.drain import Coming

MOST_ARRIVALS = 512
MOST_PER_PATH = 128
NUM_PATHS = 16
PATH_ORDER = tuple([5 * number % NUM_PATHS for number in range(NUM_PATHS)])  # neighbours apart
REACH_NS = 96 * NS_PER_S  # that paths begin ago: what came earlier says less of what comes


def _at(one: Coming) -> float:
    return one.at_ns


class Arrivals:
    """In order of arrival, the latest `MOST_ARRIVALS`."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: deque[Coming] = deque(maxlen=MOST_ARRIVALS)

    def add(self, one: Coming) -> None:
        """A request was let in; one that comes before the last counts as coming with it."""
        latest = self._latest
        if latest and one.at_ns < latest[-1].at_ns:
            one = one._replace(at_ns=latest[-1].at_ns)
        latest.append(one)

    def before(self, begin_ns: float, most: int = MOST_PER_PATH) -> Sequence[Coming]:
        """Return those up to a time, the latest first."""
        latest = self._latest
        end = bisect_right(latest, begin_ns, key=_at)
        return [latest[index] for index in range(end - 1, max(-1, end - 1 - most), -1)]

    def starts(self, now_ns: int, length_ns: float) -> list[float]:
        """Return the times at which the paths of that length begin, over the latest `REACH_NS`."""
        if not self._latest:
            return [float(now_ns)]
        span_ns = min(REACH_NS, max(0.0, now_ns - self._latest[0].at_ns - length_ns))
        return [now_ns - span_ns * number / NUM_PATHS for number in PATH_ORDER]

    def mirrored(self, now_ns: int, length_ns: float) -> list[Coming]:
        """Return the latest of them as arrivals from now on, `at_ns` counting from now."""
        path: list[Coming] = []
        new = tuple.__new__
        for at_ns, rank, tokens, due_ns, dear_ns in self.before(now_ns):
            age_ns = now_ns - at_ns
            if age_ns > length_ns:
                break
            path.append(new(Coming, (age_ns, rank, tokens, due_ns, dear_ns)))
        return path

    def flow(self, now_ns: int, *, below_rank: int | None = None) -> float:
        """Return the prompt tokens per ns that came, of all or of the classes ahead of a rank."""
        if not self._latest:
            return 0.0
        tokens = sum(
            [one.num_tokens for one in self._latest if below_rank is None or one.rank < below_rank]
        )
        return tokens / max(now_ns - self._latest[0].at_ns, 1.0)
