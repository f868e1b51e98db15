"""An event loop whose time is a virtual clock: waiting takes none, and equal runs are equal."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.core.clock import VirtualClock

T = TypeVar("T")


class _Leap(selectors.SelectSelector):
    """Looks for what is ready, and lets the time pass that it would have waited."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits and nothing will ever happen"
        if timeout > 0:
            self._clock.advance_to(self._clock.now_ns() + round(timeout * 1e9))
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Leap(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock.now_ns() / 1e9


def run_virtually(clock: VirtualClock, work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in no time."""
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock)) as runner:
        return runner.run(work)
