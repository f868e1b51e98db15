"""Has the traffic changed? Recent errors against those of the longer run; it knows no model.

A cumulative sum (Page, Biometrika 1954) over ranks: an error counts by its place among earlier
ones, so that the long tails of lengths raise no alarm. Errors above the middle add up, those below
it pay off. It answers two things at once: that something changed, and since which answer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

LEAST_USUAL = 100  # errors before it is known what is usual
MOST_USUAL = 400  # errors that what is usual is taken from
LAG = 50  # newest errors, not usual yet: they may be the change itself
SLACK = 0.1  # ranks go from -0.5 to 0.5; so much above the middle is nothing
ALARM = 4.5  # of 10,000 errors that nothing is the matter with, less than one raises it


class DriftDetector:
    """Watches the sizes of errors, one after another."""

    __slots__ = ("_newest", "_since", "_sorted", "_sum", "_usual")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """What was usual is not known any more."""
        self._newest: deque[float] = deque()
        self._usual: deque[float] = deque()
        self._sorted: list[float] = []
        self._sum = 0.0
        self._since = 0  # errors since the sum was last 0

    def add(self, error: float) -> int:
        """Take in the size of one error; return for how many answers it has been otherwise.

        That is 0 as long as nothing has changed. After an alarm it starts anew.
        """
        usual = self._sorted
        if len(usual) >= LEAST_USUAL:
            below = (bisect_left(usual, error) + bisect_right(usual, error)) / 2
            self._sum = max(0.0, self._sum + below / len(usual) - 0.5 - SLACK)
            self._since = self._since + 1 if self._sum > 0.0 else 0
            if self._sum > ALARM:
                since = self._since
                self.restart()
                return since
        self._newest.append(error)
        if len(self._newest) > LAG:
            one = self._newest.popleft()
            self._usual.append(one)
            insort(usual, one)
            if len(self._usual) > MOST_USUAL:
                del usual[bisect_left(usual, self._usual.popleft())]
        return 0
