"""Which prompts can still all be on time, and which to give up so that the fewest miss.

It knows jobs with a due time and a length, and neither tiers nor memory. Served in the order of
their due times, one after the other, the jobs that are kept all end on time, and no choice keeps
more of them: J. M. Moore, "An n job, one machine sequencing algorithm for minimizing the number of
late jobs", Management Science 15(1), 1968 (the algorithm is Hodgson's).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt: when it is due, how long it takes alone, and how dear it is to keep.

    `weight` chooses whom to give up: Hodgson's own choice is the length. `is_fixed` jobs are kept
    whatever happens (they are under way).
    """

    id: str
    due_ns: float
    length_ns: float
    weight: float
    is_fixed: bool = False


def give_up(jobs: Iterable[Job], now_ns: float) -> set[str]:
    """Return the ids of jobs to give up; `jobs` must come in the order of their due times."""
    given_up: set[str] = set()
    kept: list[tuple[float, str, float]] = []
    ends_ns = now_ns
    for job in jobs:
        ends_ns += job.length_ns
        if not job.is_fixed:
            heapq.heappush(kept, (-job.weight, job.id, job.length_ns))
        while ends_ns > job.due_ns and kept:
            _, victim, length_ns = heapq.heappop(kept)
            ends_ns -= length_ns
            given_up.add(victim)
    return given_up
