"""Finished requests that resemble a new one, and how long their answers were; it fits nothing.

ALISE's retrieval with a cheap embedding: a prompt's weighted grams, folded with signs into
DIMENSIONS numbers (feature hashing keeps cosines up to about 1 / sqrt(DIMENSIONS)), one matrix
product against all rows of a bounded index. Weights as in papers.md 5.1. How many numbers: with
256 or 64 answers are put in order as well as with 128, to three digits; what a guess costs beside
other work is the memory it walks through.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from engine.learning.grams import NUM_GRAMS, Grams

Floats = npt.NDArray[np.float32]

DIMENSIONS = 128
MOST_NEAR = 8
SHARPNESS = 0.05  # weights are exp(cosine / SHARPNESS)
SIMILAR = 0.35  # cosine of folded grams from which a finished request counts as similar
NOTHING = np.array([np.nan, 0.0, np.nan, 0.0], np.float32)
NEAR_NAMES = ("near answer", "best similarity", "near spread", "near count")


@cache
def folding(seed: int = 20) -> tuple[npt.NDArray[np.int16], Floats]:
    """Return where each gram goes and with which sign, the same at every call (and shared)."""
    draw = np.random.default_rng(seed)
    places = draw.integers(0, DIMENSIONS, NUM_GRAMS).astype(np.int16)
    return places, draw.choice(np.array([-1.0, 1.0], np.float32), NUM_GRAMS)


def fold(grams: Grams, idf: Floats, places: npt.NDArray[np.int16], signs: Floats) -> Floats:
    """Return a prompt's embedding, (DIMENSIONS,), of length 1, or 0 where no gram is known."""
    found = np.bincount(places[grams], weights=idf[grams] * signs[grams], minlength=DIMENSIONS)
    norm = float(np.sqrt(found @ found))
    return (found / norm if norm > 0.0 else found).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """A bounded index: `embeddings` (n, DIMENSIONS) and `targets` (n,), the logs of lengths."""

    embeddings: Floats
    targets: Floats

    def near(self, embedding: Floats) -> Floats:
        """Return what the nearest rows say, (4,) as NEAR_NAMES has it; NaN where none is near."""
        if not len(self.targets):
            return NOTHING
        return answer(self.embeddings @ embedding, self.targets)

    def near_others(self) -> Floats:
        """Return for each row what the nearest other rows say, (n, 4)."""
        out = np.empty((len(self.targets), 4), np.float32)
        for start in range(0, len(out), 256):
            cosines = self.embeddings[start : start + 256] @ self.embeddings.T
            for place, row in enumerate(cosines):
                row[start + place] = -1.0
                out[start + place] = answer(row, self.targets)
        return out


def answer(cosines: Floats, targets: Floats) -> Floats:
    """Return the weighted answer of the nearest rows, the best cosine, spread and count."""
    most = min(MOST_NEAR, len(cosines))
    near = np.argpartition(cosines, len(cosines) - most)[-most:]
    found = cosines[near]
    best = float(found.max())
    weights = np.exp((found - best) / SHARPNESS)
    weights /= weights.sum()
    logs = targets[near]
    middle = float(weights @ logs)
    spread = float(np.sqrt(weights @ (logs - middle) ** 2))
    return np.array([middle, best, spread, float((found >= SIMILAR).sum())], np.float32)
