"""Which prompts can still all be on time, and which to give up so that the fewest miss.

It knows jobs with a due time and a length, and neither tiers nor memory. Served in the order of
their due times, one after the other, the jobs that are kept all end on time, and no choice keeps
more of them: J. M. Moore, "An n job, one machine sequencing algorithm for minimizing the number of
late jobs", Management Science 15(1), 1968 (the algorithm is Hodgson's).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Job(NamedTuple):
    """One prompt: when it is due, how long it takes alone, and how dear it is to keep.

    `weight` chooses whom to give up: Hodgson's own choice is the length. `is_fixed` jobs are kept
    whatever happens (they are under way). Hundreds are made per step, hence the plain tuple.
    """

    id: str
    due_ns: float
    length_ns: float
    weight: float
    is_fixed: bool = False
    num_tokens: int = 0  # of the prompt, for whoever makes room for it


def give_up(jobs: Iterable[Job], now_ns: float) -> set[str]:
    """Return the ids of jobs to give up; `jobs` must come in the order of their due times."""
    given_up: set[str] = set()
    kept: list[tuple[float, str, float]] = []
    ends_ns = fixed_ns = now_ns
    for name, due_ns, length_ns, weight, is_fixed, _ in jobs:
        is_hopeless = fixed_ns + length_ns > due_ns  # whoever else is given up
        if is_fixed:
            fixed_ns += length_ns
        elif is_hopeless:
            given_up.add(name)
            continue
        else:
            heapq.heappush(kept, (-weight, name, length_ns))
        ends_ns += length_ns
        if is_hopeless:
            continue
        while ends_ns > due_ns and kept:
            _, victim, freed_ns = heapq.heappop(kept)
            ends_ns -= freed_ns
            given_up.add(victim)
    return given_up
