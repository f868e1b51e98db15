"""Ridge regression on what prompts have in common; it knows arrays and no prompt.

Two prompts are alike by the grams they share (cosine, rare grams weigh more), by their cues and by
their context (Gaussian kernels). A ridge in this space is the mean of a Gaussian process: with few
rows it leans on what all rows say, and a new prompt is drawn towards those that resemble it.
Leave-one-out predictions come in closed form (Rasmussen and Williams, 5.4.2), so what is stacked
on top never sees a row's own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from engine.learning.features import NUM_CUES
from engine.learning.grams import NUM_GRAMS, Grams

Floats = npt.NDArray[np.float32]

FREQUENT = 24  # a gram in more rows than this is multiplied out densely
CLIP = 4.0  # standard deviations; a freak number must not outweigh all others
WIDTH = 0.5  # of the Gaussian kernels: exp(-WIDTH * mean squared difference)
CONTEXT_WIDTH = 0.25
SMALLEST_SCALE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class KernelRidge:
    """A fitted ridge. n rows, c cues and context numbers.

    `idf` (NUM_GRAMS,), `gram_weights` (NUM_GRAMS,), `mean`, `scale` (c,), `cues` (n, NUM_CUES) and
    `context` (n, c - NUM_CUES) the standardised numbers, `squares` (2, n) the squared lengths of
    their rows, `dual` (n,), `offset` the mean target.
    """

    idf: Floats
    gram_weights: Floats
    mean: Floats
    scale: Floats
    cues: Floats
    context: Floats
    squares: Floats
    dual: Floats
    offset: float

    def predict(self, grams: Grams, numbers: Floats) -> float:
        """Return the prediction for one prompt: its grams and numbers (c,), NaN allowed."""
        known = self.idf[grams]
        norm = float(np.sqrt(known @ known))
        found = self.offset
        if norm > 0.0:
            found += float(self.gram_weights[grams] @ known) / norm
        standard = standardise(numbers[None], self.mean, self.scale)[0]
        alike = near(self.cues, self.squares[0], standard[:NUM_CUES], WIDTH)
        alike += near(self.context, self.squares[1], standard[NUM_CUES:], CONTEXT_WIDTH)
        return found + float(self.dual @ alike)


def fit_ridge(
    grams: Sequence[Grams], numbers: Floats, targets: Floats, noise: Floats
) -> tuple[KernelRidge, Floats]:
    """Fit to n rows; return the ridge and its leave-one-out predictions (n,).

    `numbers` (n, c), `noise` (n,) the variance of each target in units of the kernel: a row with
    more of it counts less. Takes about n^2 * 12 bytes for a moment.
    """
    known = ~np.isnan(numbers)
    mean = np.where(known, numbers, 0).sum(0) / np.maximum(1, known.sum(0))
    gap = np.where(known, numbers - mean, 0)
    scale = np.sqrt((gap * gap).sum(0) / np.maximum(1, known.sum(0))) + SMALLEST_SCALE
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    rows = standardise(numbers, mean, scale)
    idf, values = weigh(grams)
    kernel = gram_kernel(grams, values)
    kernel += gaussian(rows[:, :NUM_CUES], WIDTH)
    kernel += gaussian(rows[:, NUM_CUES:], CONTEXT_WIDTH)
    kernel[np.diag_indices_from(kernel)] += noise
    inverse = np.linalg.inv(kernel)
    del kernel
    offset = float(np.average(targets, weights=1.0 / noise))
    dual = inverse @ (targets - offset).astype(np.float32)
    left_out = targets - dual / np.diagonal(inverse)
    gram_weights = np.zeros(NUM_GRAMS, np.float32)
    for row, value, weight in zip(grams, values, dual, strict=True):
        gram_weights[row] += value * weight
    cues, context = np.ascontiguousarray(rows[:, :NUM_CUES]), rows[:, NUM_CUES:].copy()
    squares = np.stack([(cues * cues).sum(1), (context * context).sum(1)])
    dual = dual.astype(np.float32)
    ridge = KernelRidge(idf, gram_weights, mean, scale, cues, context, squares, dual, offset)
    return ridge, left_out.astype(np.float32)


def standardise(numbers: Floats, mean: Floats, scale: Floats) -> Floats:
    """Return numbers (n, c) in standard deviations, clipped; what is not known is the mean."""
    standard: Floats = ((numbers - mean) / scale).astype(np.float32, copy=False)
    np.clip(standard, -CLIP, CLIP, out=standard)
    standard[np.isnan(standard)] = 0.0
    return standard


def weigh(grams: Sequence[Grams]) -> tuple[Floats, list[Floats]]:
    """Return the weight of every gram (NUM_GRAMS,), and each row's normed weights.

    A gram that no row has weighs nothing: there is nothing to be learned of it.
    """
    counts = np.zeros(NUM_GRAMS, np.int64)
    for row in grams:
        counts[row] += 1
    idf = np.log((1.0 + len(grams)) / (1.0 + counts))
    idf[counts == 0] = 0.0
    values = []
    for row in grams:
        value = idf[row]
        values.append((value / max(1e-9, float(np.sqrt(value @ value)))).astype(np.float32))
    return idf.astype(np.float32), values


def gram_kernel(grams: Sequence[Grams], values: Sequence[Floats]) -> Floats:
    """Return the cosines of all pairs of rows, (n, n).

    Grams of many rows are multiplied as a dense matrix, the others pair by pair: neither alone
    would do for 4,000 rows of 65,536 possible grams.
    """
    size = len(grams)
    kernel = np.zeros((size, size), np.float32)
    if not size:
        return kernel
    columns = np.concatenate(grams).astype(np.int64)
    rows = np.repeat(np.arange(size), [len(row) for row in grams])
    weights = np.concatenate(values)
    counts = np.bincount(columns, minlength=NUM_GRAMS)
    frequent = np.flatnonzero(counts > FREQUENT)
    place = np.full(NUM_GRAMS, -1)
    place[frequent] = np.arange(len(frequent))
    inside = place[columns] >= 0
    dense = np.zeros((size, len(frequent)), np.float32)
    dense[rows[inside], place[columns[inside]]] = weights[inside]
    kernel += dense @ dense.T
    columns, rows, weights = columns[~inside], rows[~inside], weights[~inside]
    order = np.argsort(columns, kind="stable")
    columns, rows, weights = columns[order], rows[order], weights[order]
    edges = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    for start, end in pairwise([0, *edges.tolist(), len(columns)]):
        who, weight = rows[start:end], weights[start:end]
        kernel[np.ix_(who, who)] += np.outer(weight, weight)
    return kernel


def gaussian(rows: Floats, width: float) -> Floats:
    """Return exp(-width * mean squared difference) of all pairs of rows, (n, n)."""
    squares = (rows * rows).sum(1)
    kernel: Floats = rows @ rows.T
    kernel *= -2.0
    kernel += squares[:, None]
    kernel += squares[None]
    np.maximum(kernel, 0.0, out=kernel)
    kernel *= -width / rows.shape[1]
    np.exp(kernel, out=kernel)
    return kernel


def near(rows: Floats, squares: Floats, one: Floats, width: float) -> Floats:
    """Return exp(-width * mean squared difference) of each row (n, c) and `one` (c,), (n,)."""
    gap: Floats = rows @ (-2.0 * one)
    gap += squares
    gap += one @ one
    gap *= -width / len(one)
    np.exp(gap, out=gap)
    return gap
