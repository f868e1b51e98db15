"""Lengths as normal scores and back; it knows lengths only.

A length's score is where it stands among the lengths seen, as a quantile of the normal
distribution. Ordering is what scheduling needs, and on this scale a few freak answers of one word
cannot outweigh the rest. It also lays models beside each other that are of one mind about which
prompts are long, and not about how long (papers.md 8.3, 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MOST_POINTS = 201


@dataclass(frozen=True, slots=True, eq=False)
class LengthScale:
    """A rising map: `logs` (k,) of one plus tokens, and their `scores` (k,), both ascending."""

    logs: Floats
    scores: Floats

    @staticmethod
    def of(logs: Floats) -> LengthScale:
        """Return the scale of these lengths, (n,), n at least 1."""
        ordered = np.sort(logs)
        values, first, counts = np.unique(ordered, return_index=True, return_counts=True)
        normal = NormalDist()
        ranks = (first + (counts - 1) / 2 + 0.5) / len(ordered)
        if len(values) > MOST_POINTS:
            kept = np.unique(np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(int))
            values, ranks = values[kept], ranks[kept]
        scores = np.array([normal.inv_cdf(rank) for rank in ranks.tolist()])
        return LengthScale(values.astype(np.float32), scores.astype(np.float32))

    def score(self, logs: Floats) -> Floats:
        """Return the scores of lengths; beyond those seen, the outermost."""
        return np.interp(logs, self.logs, self.scores).astype(np.float32)

    def log(self, score: float) -> float:
        """Return the log length of a score, rising without end beyond what was seen."""
        found = float(np.interp(score, self.scores, self.logs))
        beyond = max(score - float(self.scores[-1]), min(score - float(self.scores[0]), 0.0))
        return found + beyond * BEYOND


BEYOND = 0.5  # log length for each score beyond those seen: order is kept, sizes stay sane
