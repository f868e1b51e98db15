"""When copies end: with their step, or late, in any order, and some of them lost."""

from __future__ import annotations

import random


class Copier:
    """Says which copies are over when a step ends: late ones, in any order, some of them lost.

    Without dice every copy is over with the step in which it began.
    """

    def __init__(self, seed: int | None = None, *, lost_share: float = 0.0) -> None:
        self._rng = None if seed is None else random.Random(seed)
        self._lost_share = lost_share
        self._haste = 0.5 if self._rng is None else self._rng.choice([0.03, 0.2, 0.6])

    @property
    def is_late(self) -> bool:
        return self._rng is not None

    def over(
        self, numbers: list[int], *, at_least_one: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return which of these arrived, and which are lost."""
        rng = self._rng
        if rng is None:
            return tuple(numbers), ()
        ended = [number for number in numbers if rng.random() < self._haste]
        if at_least_one and not ended:
            ended = [rng.choice(numbers)]
        rng.shuffle(ended)
        lost = [number for number in ended if rng.random() < self._lost_share]
        return tuple(n for n in ended if n not in lost), tuple(lost)
