"""Plain predictors to stand beside ours; they share nothing with it but the hash.

Each is fitted to training records and returns log lengths for test records. None is served.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from engine.learning.cues import words_of
from engine.learning.features import running_mean
from engine.learning.kernel_ridge import gram_kernel
from engine.learning.records import Record

Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]

BUCKETS = 1 << 16
MOST_FITTED = 4096
NEAREST = 8
NOISE = 1.0


def constant(train: Sequence[Record], test: Sequence[Record]) -> Floats:
    """Return the median of all training lengths."""
    return np.full(len(test), np.median(logs_of(train)), np.float32)


def prompt_length(train: Sequence[Record], test: Sequence[Record]) -> Floats:
    """Return a straight line through log length against log prompt tokens."""
    known = np.log1p([record.question.num_prompt_tokens for record in train])
    asked = np.log1p([record.question.num_prompt_tokens for record in test])
    targets = logs_of(train)
    gap = known - known.mean()
    slope = float(gap @ targets) / max(1e-9, float(gap @ gap))
    line: Floats = (targets.mean() + slope * (asked - known.mean())).astype(np.float32)
    return line


def word_ridge(train: Sequence[Record], test: Sequence[Record]) -> Floats:
    """Return a ridge on TF-IDF of words and pairs of words."""
    cosines, targets = _word_cosines(train, test)
    size = len(targets)
    kernel = cosines[:size, :size].astype(np.float64)
    return ridge(kernel, cosines[size:, :size], targets)


def word_neighbours(train: Sequence[Record], test: Sequence[Record]) -> Floats:
    """Return the mean log length of the 8 nearest training prompts by TF-IDF cosine."""
    cosines, targets = _word_cosines(train, test)
    return nearest(cosines[len(targets) :, : len(targets)], targets)


def last_answers(train: Sequence[Record], test: Sequence[Record]) -> Floats:
    """Return the running mean of a conversation's answers; the median where there are none."""
    middle = float(np.median(logs_of(train)))
    found = [
        running_mean([float(np.log1p(n)) for n in record.question.previous_outputs], 0.5)
        if record.question.previous_outputs
        else middle
        for record in test
    ]
    return np.array(found, np.float32)


def embedding_ridge(embed: Callable[[Sequence[str]], Vectors], gamma: float = 1.0) -> Baseline:
    """Return a kernel ridge on embeddings (n, d) of texts, Gaussian, each of length 1."""

    def predict(train: Sequence[Record], test: Sequence[Record]) -> Floats:
        train = train[-MOST_FITTED:]
        vectors = embed([record.question.text for record in (*train, *test)])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, 1e-9)
        alike = np.exp(2 * gamma * (vectors @ vectors[: len(train)].T - 1))
        return ridge(
            alike[: len(train)].astype(np.float64), alike[len(train) :], logs_of(train), 0.3
        )

    return predict


Baseline = Callable[[Sequence[Record], Sequence[Record]], Floats]

BASELINES: dict[str, Baseline] = {
    "constant": constant,
    "prompt length": prompt_length,
    "ridge": word_ridge,
    "nearest neighbour": word_neighbours,
}


def logs_of(records: Sequence[Record]) -> Floats:
    """Return the logs of one plus the lengths."""
    return np.log1p([record.length for record in records]).astype(np.float32)


def ridge(
    kernel: npt.NDArray[np.float64], cosines: Floats, targets: Floats, noise: float = NOISE
) -> Floats:
    """Return the ridge's predictions from the kernel among training rows and test to training."""
    kernel = kernel.copy()
    kernel[np.diag_indices_from(kernel)] += noise
    mean = float(targets.mean())
    dual = np.linalg.solve(kernel, targets.astype(np.float64) - mean)
    return (mean + cosines @ dual).astype(np.float32)


def nearest(cosines: Floats, targets: Floats) -> Floats:
    """Return the mean target of the nearest training rows of each test row."""
    most = min(NEAREST, cosines.shape[1])
    found = np.argpartition(cosines, cosines.shape[1] - most, axis=1)[:, -most:]
    means: Floats = targets[found].mean(axis=1).astype(np.float32)
    return means


def _word_cosines(train: Sequence[Record], test: Sequence[Record]) -> tuple[Floats, Floats]:
    """Return TF-IDF cosines of all records, training ones first, and the training logs."""
    train = train[-MOST_FITTED:]
    rows = [_word_grams(record.question.text) for record in (*train, *test)]
    counts = np.zeros(BUCKETS)
    for row in rows[: len(train)]:
        counts[row] += 1
    idf = np.log((1 + len(train)) / (1 + counts))
    idf[counts == 0] = 0.0
    values = []
    for row in rows:
        value = idf[row]
        values.append((value / max(1e-9, float(np.sqrt(value @ value)))).astype(np.float32))
    return gram_kernel(rows, values), logs_of(train)


def _word_grams(text: str) -> npt.NDArray[np.uint16]:
    words = words_of(text)
    keys = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    found = {zlib.crc32(key.encode("utf-8", "replace")) & (BUCKETS - 1) for key in keys}
    return np.array(sorted(found), np.uint16)
