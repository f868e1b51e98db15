"""The simulated link: one pipe per direction, whose copies go one after the other beside steps.

It knows when a copy begins and how long it takes, and reports those that are over by a time. What
is wrong with a copy (late, lost) is the faults' word.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from engine.core.batch import Copy
from engine.core.latency_model import LatencyModel
from engine.sim.faults import CopyFaults


class _Way(NamedTuple):
    """A copy in a pipe: when it is over, its number, and whether anything arrived."""

    end_ns: int
    number: int
    is_lost: bool


class SimulatedLink:
    """Both pipes of a device; times are those of the executor's own clock."""

    __slots__ = ("_block_size", "_faults", "_model", "_pipes")

    def __init__(
        self, model: LatencyModel, block_size: int, faults: CopyFaults | None = None
    ) -> None:
        self._model = model
        self._block_size = block_size
        self._faults = faults
        self._pipes: tuple[deque[_Way], deque[_Way]] = (deque(), deque())  # out, in

    @property
    def is_idle(self) -> bool:
        """True where no copy is under way."""
        return not (self._pipes[0] or self._pipes[1])

    def begin(self, copy: Copy, now_ns: int, *, is_return: bool) -> None:
        """Queue a copy behind those of its direction."""
        pipe, faults = self._pipes[is_return], self._faults
        num_tokens = len(copy.block_ids) * self._block_size
        takes_ns = self._model.copy_ns(num_tokens, is_return=is_return)
        is_lost = False
        if faults is not None:
            takes_ns *= faults.lateness()
            is_lost = faults.loses()
        start_ns = max(now_ns, pipe[-1].end_ns) if pipe else now_ns
        pipe.append(_Way(start_ns + max(1, int(takes_ns)), copy.number, is_lost))

    def next_end_ns(self) -> int:
        """Return when the first copy under way will be over."""
        return min([pipe[0].end_ns for pipe in self._pipes if pipe])

    def take(self, now_ns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the numbers of copies that arrived by now, and of those that were lost."""
        over: list[_Way] = []
        for pipe in self._pipes:
            while pipe and pipe[0].end_ns <= now_ns:
                over.append(pipe.popleft())
        over.sort()
        return (
            tuple([way.number for way in over if not way.is_lost]),
            tuple([way.number for way in over if way.is_lost]),
        )

    def stop(self) -> None:
        """Bring every copy to a standstill: none is under way any more."""
        for pipe in self._pipes:
            pipe.clear()
