"""How many cores other processes kept busy while something was measured; it judges nothing.

It reads what Linux says under /proc; elsewhere nothing is known.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from engine.core.clock import NS_PER_S, Clock, MonotonicClock

_WORKING = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of a cpu line (proc(5))


class NeighbourMeter:
    """Counts from when it is made; `pids` are our own processes, which must live on till the end.

    `proc` is where /proc is.
    """

    def __init__(
        self,
        pids: Collection[int],
        *,
        clock: Clock | None = None,
        proc: Path = Path("/proc"),
        ticks_per_s: int | None = None,
    ) -> None:
        self._pids = pids
        self._clock = clock or MonotonicClock()
        self._proc = proc
        self._ticks_per_s = ticks_per_s or os.sysconf("SC_CLK_TCK")
        self._began_ns = self._clock.now_ns()
        self._before = self._others_ticks()

    def cores(self) -> float | None:
        """Return the mean number of cores since the beginning; None where nobody knows."""
        after, elapsed_ns = self._others_ticks(), self._clock.now_ns() - self._began_ns
        if self._before is None or after is None or elapsed_ns <= 0:
            return None
        busy_s = (after - self._before) / self._ticks_per_s
        return max(0.0, busy_s / (elapsed_ns / NS_PER_S))

    def _others_ticks(self) -> int | None:
        """Return the processor time of the whole machine less our own."""
        try:
            total = (self._proc / "stat").read_text().splitlines()[0].split()[1:]
            ours = 0
            for pid in self._pids:
                fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
                ours += int(fields[11]) + int(fields[12])  # utime, stime
        except (OSError, IndexError, ValueError):
            return None
        return sum(int(total[i]) for i in _WORKING) - ours
