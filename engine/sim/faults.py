"""What goes wrong by seed: clients that leave, slow or failing steps, rows and copies, a host pool.

It says when and whom; the simulator and its executor do it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.sim.workload import SimRequest


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares are probabilities: of a request to be aborted, of a step to be slow or to fail.

    A `failed_row_share` of the rows that sample give no finite result. Copies are late with
    `late_copy_share`: they take up to `late_copy_factor` times as long, evenly drawn; and lost with
    `lost_copy_share`. `num_host_blocks` replaces the profile's host pool: 0 for none, a few for one
    that is always full.
    """

    abort_share: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 10.0
    error_share: float = 0.0
    failed_row_share: float = 0.0
    late_copy_share: float = 0.0
    late_copy_factor: float = 50.0
    lost_copy_share: float = 0.0
    num_host_blocks: int | None = None

    def __post_init__(self) -> None:
        shares = (
            self.abort_share,
            self.slow_share,
            self.error_share,
            self.failed_row_share,
            self.late_copy_share,
            self.lost_copy_share,
        )
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("the shares of faults must be from 0 to 1")
        if self.late_copy_factor < 1:
            raise ValueError("late_copy_factor must be at least 1")
        if self.slow_factor <= 0 or (self.num_host_blocks or 0) < 0:
            raise ValueError("slow_factor must be above 0, num_host_blocks not negative")


NO_FAULTS = Faults()


def draw_aborts(
    faults: Faults, requests: Sequence[SimRequest], life_ns: Callable[[SimRequest], int], seed: int
) -> list[tuple[int, str]]:
    """Return (time, request id) of every client that leaves.

    The time is uniform over twice the life that the request would have alone, so that all moments
    are hit: waiting, prompt, decoding, and some after the end, which must change nothing.
    """
    if not faults.abort_share:
        return []
    rng = random.Random(f"{seed}/aborts")
    aborts = []
    for request in requests:
        leaves, moment = rng.random() < faults.abort_share, rng.random()
        if leaves:
            aborts.append((request.arrival_ns + int(2 * moment * life_ns(request)), request.id))
    return aborts


class StepFaults:
    """Rolls the dice of each step, in order."""

    __slots__ = ("_faults", "_rng")

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._rng = random.Random(f"{seed}/steps")

    def slowdown(self) -> float:
        """Return how many times longer than usual this step takes."""
        faults = self._faults
        return faults.slow_factor if self._rng.random() < faults.slow_share else 1.0

    def fails(self) -> bool:
        """Return whether this step ends in an ExecutorFault."""
        return self._rng.random() < self._faults.error_share

    def failed_rows(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return those of the sampling rows that give no finite result."""
        share = self._faults.failed_row_share
        return tuple([i for i in ids if self._rng.random() < share]) if share else ()


class CopyFaults:
    """Rolls the dice of each copy, in the order in which they begin."""

    __slots__ = ("_faults", "_rng")

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._rng = random.Random(f"{seed}/copies")

    def lateness(self) -> float:
        """Return how many times longer than usual this copy takes."""
        faults, rng = self._faults, self._rng
        is_late, how_late = rng.random() < faults.late_copy_share, rng.random()
        return 1 + how_late * (faults.late_copy_factor - 1) if is_late else 1.0

    def loses(self) -> bool:
        """Return whether nothing of it arrives."""
        return self._rng.random() < self._faults.lost_copy_share
