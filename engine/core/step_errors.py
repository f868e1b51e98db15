"""How far the predictions of the last steps were off; it keeps a window of them, sorted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

WINDOW = 500


class RecentErrors:
    """Relative errors of the last WINDOW steps: |predicted / measured - 1|."""

    __slots__ = ("_ordered", "_window")

    def __init__(self) -> None:
        self._window: deque[float] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._window)

    def add(self, error: float) -> None:
        """Take the error of one more step in; the oldest falls out of a full window."""
        window, ordered = self._window, self._ordered
        if len(window) == WINDOW:
            del ordered[bisect_left(ordered, window.popleft())]
        window.append(error)
        insort(ordered, error)

    def quantile(self, share: float) -> float | None:
        """Return the error that this share of the steps stays within; None before any step."""
        if not self._ordered:
            return None
        return self._ordered[min(len(self._ordered) - 1, int(share * len(self._ordered)))]
