"""Time as a value: the only file that asks the machine what time it is; it decides nothing.

Everything else is handed a `Clock`, or better, the number `now_ns` (nanoseconds of one monotonic
clock). On Linux the monotonic clock is the same for all processes of a machine, so a stamp taken
in the gateway may be compared with one taken in the engine's process.
"""

from __future__ import annotations

import datetime
import time
from typing import Protocol

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """Anything that tells a never-decreasing time in integer nanoseconds."""

    def now_ns(self) -> int:
        """Return the time now, in nanoseconds since an arbitrary but fixed point."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    __slots__ = ()

    def now_ns(self) -> int:
        """Return the machine's monotonic time in nanoseconds."""
        return time.monotonic_ns()


class VirtualClock:
    """A clock that moves only when told to; used by tests and the simulator."""

    __slots__ = ("_now_ns",)

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """Return the virtual time in nanoseconds."""
        return self._now_ns

    def advance_to(self, now_ns: int) -> None:
        """Move to `now_ns`; moving back is a programming error (law L36)."""
        assert now_ns >= self._now_ns, f"time ran back from {self._now_ns} to {now_ns}"
        self._now_ns = now_ns


def cpu_time_ns() -> int:
    """Return the CPU time this process has used so far, all threads together, in nanoseconds."""
    return time.process_time_ns()


def utc_now() -> datetime.datetime:
    """Return the wall-clock time as an aware UTC datetime, for database rows and API bodies."""
    return datetime.datetime.now(datetime.UTC)
