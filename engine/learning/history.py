"""What finished answers were like, as a few running numbers; it knows no prompt and no model.

Everything is in logs of one plus a token count: lengths are spread like a log-normal, so that a
mean of logs (a geometric mean) is their middle. Newer answers count more, none counts for ever.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.learning.features import NO_HISTORY, History

LONG_MEMORY = 400  # answers that the mean goes back, about
SHORT_MEMORY = 20  # answers that the recent mean goes back, about
WINDOW = 128  # answers that the quantiles are of
HOURS = 24
MOST_ANSWERS, MOST_LOG = 1 << 53, 64.0  # more no history can have
HOUR_DOUBT = 10.0  # answers in an hour of the day before its own mean counts as much as the whole


@dataclass(frozen=True, slots=True)
class HistoryFields:
    """A history as plain numbers, to be stored; hours are (hour, answers, mean)."""

    num_answers: int
    mean: float
    recent: float
    window: tuple[float, ...]
    hours: tuple[tuple[int, int, float], ...]


class LengthHistory:
    """The running numbers of one tenant; some 6 KB at most.

    One thread writes; any may read, and sees the numbers as they were after some whole answer.
    """

    __slots__ = ("_hours", "_mean", "_num", "_reading", "_recent", "_sorted", "_window")

    def __init__(self) -> None:
        self._num = 0
        self._mean = 0.0
        self._recent = 0.0
        self._window: deque[float] = deque()
        self._sorted: list[float] = []
        self._hours: dict[int, tuple[int, float]] = {}  # hour -> answers, mean
        self._reading = NO_HISTORY

    @property
    def num_answers(self) -> int:
        """Answers heard of."""
        return self._num

    def add(self, log_length: float, hour: float) -> None:
        """Take in one finished answer: log1p of its tokens, and the UTC hour it was asked at."""
        self._num += 1
        self._mean += (log_length - self._mean) / min(self._num, LONG_MEMORY)
        self._recent += (log_length - self._recent) / min(self._num, SHORT_MEMORY)
        self._window.append(log_length)
        insort(self._sorted, log_length)
        if len(self._window) > WINDOW:
            oldest = self._window.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        place = int(hour) % HOURS
        num, mean = self._hours.get(place, (0, 0.0))
        num = min(num + 1, LONG_MEMORY)
        self._hours[place] = (num, mean + (log_length - mean) / num)
        self._publish()

    def keep_newest(self, num_answers: int) -> None:
        """Forget all but the newest answers: those before were another traffic."""
        kept = list(self._window)[-num_answers:] if num_answers > 0 else []
        self._window, self._sorted, self._hours = deque(kept), sorted(kept), {}
        self._num = len(kept)
        self._mean = self._recent = 0.0
        for count, log_length in enumerate(kept, 1):
            self._mean += (log_length - self._mean) / count
            self._recent += (log_length - self._recent) / min(count, SHORT_MEMORY)
        self._publish()

    def reading(self, hour: float) -> History:
        """Return what is known now, as a question at this hour of the day sees it."""
        reading = self._reading
        if not reading.num_answers:
            return reading
        num, mean = self._hours.get(int(hour) % HOURS, (0, reading.mean))
        share = num / (num + HOUR_DOUBT)
        return replace(reading, hour=reading.mean + share * (mean - reading.mean))

    def fields(self) -> HistoryFields:
        """Return everything there is to it."""
        hours = tuple((hour, *of) for hour, of in sorted(self._hours.items()))
        return HistoryFields(self._num, self._mean, self._recent, tuple(self._window), hours)

    @staticmethod
    def of(fields: Mapping[str, Any]) -> LengthHistory:
        """Return the history of these fields; raises ValueError, TypeError or KeyError."""
        made = LengthHistory()
        window = [float(log) for log in fields["window"]]
        numbers = [float(fields["mean"]), float(fields["recent"]), *window]
        num = int(fields["num_answers"])
        hours = {int(h) % HOURS: (int(n), float(mean)) for h, n, mean in fields["hours"]}
        numbers += [mean for _, mean in hours.values()]
        counts = [of for of, _ in hours.values()]
        if (
            not len(window) <= num <= MOST_ANSWERS
            or len(window) > WINDOW
            or not all(-1e-6 <= log <= MOST_LOG for log in numbers)
            or not all(0 < of <= LONG_MEMORY for of in counts)
        ):
            raise ValueError("a history that does not fit together")
        if num and not window:
            raise ValueError("a history of answers without one")
        made._num, made._mean, made._recent = num, numbers[0], numbers[1]
        made._window, made._sorted, made._hours = deque(window), sorted(window), hours
        made._publish()
        return made

    def _publish(self) -> None:
        if not self._num:
            self._reading = NO_HISTORY
            return
        self._reading = History(
            num_answers=self._num,
            mean=self._mean,
            recent=self._recent,
            low=self._quantile(0.1),
            middle=self._quantile(0.5),
            high=self._quantile(0.9),
        )

    def _quantile(self, share: float) -> float:
        place = share * (len(self._sorted) - 1)
        below = int(place)
        above = min(below + 1, len(self._sorted) - 1)
        low, high = self._sorted[below], self._sorted[above]
        return low + (place - below) * (high - low)
