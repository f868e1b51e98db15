"""How long an answer will be, learned from finished requests; it knows features and no text.

ALISE's shape (papers.md 5.1) with today's parts. A ridge over what prompts have in common, the
answers of the nearest finished requests, and quantile trees over both and all other numbers. The
trees and the mixture only ever see what the ridge and the neighbours said of rows they had not
seen (stacking by leave-one-out), and the high quantile is set by the errors of such predictions
(conformal), so that nine answers of ten end below it.

Fitting is for a background thread; a fitted model does not change and may be used by any thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.core.request import LengthEstimate
from engine.learning.features import NUM_NUMBERS, Features
from engine.learning.grams import NUM_GRAMS, Grams
from engine.learning.kernel_ridge import KernelRidge, fit_ridge
from engine.learning.neighbours import NEAR_NAMES, Neighbours, fold, folding
from engine.learning.rows import Row, StateError, numbers_of, pack, unpack
from engine.learning.scale import LengthScale
from engine.learning.trees import QuantileTrees, fit_trees

Floats = npt.NDArray[np.float32]

FORMAT = 3  # raised when what is stored changes its meaning
FEWEST_ROWS = 16  # fewer tell nothing that a prior does not tell better
FEWEST_FOR_TREES = 200
MOST_ROWS = 4096  # of the ridge and the index; of more, the newest
MOST_TREE_ROWS = 3 * MOST_ROWS
MOST_ROUNDS, ROWS_A_ROUND = 160, 8  # trees grown: fewer where few rows could tell them apart
FOLDS = 5
NOISE = 0.7  # of a length, in units of the ridge's kernel
FOREIGN_NOISE = 1.0  # of an earlier model's length
HIGH = 0.9  # the quantile that LengthEstimate.high stands for
TREE_SHARES = np.linspace(0.0, 0.8, 9)
LEAST_SPREAD, MOST_SPREAD = 0.15, 2.5  # of the trees' distance between the two quantiles
USUAL_SPREAD = 0.8


class Guess(NamedTuple):
    """A prediction before it is bounded: logs of one plus tokens, and the best similarity."""

    middle: float
    high: float
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class LengthModel:
    """A fitted model. Make one with `fit`, ask it with `predict`.

    `tree_share` is the trees' part of the middle; `stretch` times the spread is what the high
    quantile lies above it. `num_rows` is how many rows were fitted to.
    """

    scale: LengthScale
    ridge: KernelRidge
    near: Neighbours
    places: npt.NDArray[np.int16]
    signs: Floats
    trees: QuantileTrees | None
    tree_share: float
    stretch: float
    num_rows: int

    @staticmethod
    def fit(rows: Sequence[Row], seed: int = 0) -> LengthModel:
        """Fit to finished requests, oldest first; equal rows and seeds give equal models.

        Of more than MOST_TREE_ROWS rows the newest count. Answers that were cut (`is_whole` False)
        are lower bounds: they count as what the others make likely, never as less than they are.
        Raises ValueError for fewer than FEWEST_ROWS rows. Seconds, not milliseconds.
        """
        rows = rows[-MOST_TREE_ROWS:]
        if len(rows) < FEWEST_ROWS:
            raise ValueError(
                f"{len(rows)} rows are too few to learn from; {FEWEST_ROWS} are needed"
            )
        return _fit(rows, seed)

    def predict(self, features: Features) -> LengthEstimate:
        """Return the middle and the high quantile in tokens, from 1 to `max_tokens`."""
        guess = self.guess(features)
        most = float(features.max_tokens)
        middle = min(max(1.0, math.expm1(min(guess.middle, 30.0))), most)
        high = min(max(middle, math.expm1(min(guess.high, 30.0))), most)
        return LengthEstimate(middle, high)

    def guess(self, features: Features) -> Guess:
        """Return what is predicted in logs, not bounded by `max_tokens`."""
        numbers = features.numbers.astype(np.float32)
        log = self.scale.log
        ridge = self.ridge.predict(features.grams, numbers)
        embedding = fold(features.grams, self.ridge.idf, self.places, self.signs)
        near = self.near.near(embedding)
        if self.trees is None:
            high = ridge + self.stretch * USUAL_SPREAD
            return Guess(log(ridge), log(high), float(near[1]))
        low, high = self.trees.predict(np.concatenate([[ridge], near, numbers], dtype=np.float32))
        middle = ridge + self.tree_share * (low - ridge)
        spread = min(max(high - low, LEAST_SPREAD), MOST_SPREAD)
        return Guess(log(middle), log(middle + self.stretch * spread), float(near[1]))

    def sizes(self) -> dict[str, int]:
        """Return the bytes in memory of each array, by name."""
        own = {name: array.nbytes for name, array in self._arrays().items()}
        return {**own, "places": self.places.nbytes, "signs": self.signs.nbytes}

    def to_bytes(self) -> bytes:
        """Return the model as bytes that `from_bytes` reads: arrays, no text, no code."""
        return pack(
            {
                "format": np.array([FORMAT, NUM_NUMBERS], np.int64),
                "scalars": np.array([self.tree_share, self.stretch, self.ridge.offset]),
                "num_rows": np.array([self.num_rows], np.int64),
                **self._arrays(),
            }
        )

    @staticmethod
    def from_bytes(data: bytes) -> LengthModel:
        """Return the model of `to_bytes`; raises StateError where the bytes are something else."""
        return _read(unpack(data))

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        parts: list[object] = [self.scale, self.ridge, self.near]
        if self.trees is not None:
            parts.append(self.trees)
        return {
            f"{type(part).__name__}.{field.name}": value
            for part in parts
            for field in fields(part)  # type: ignore[arg-type]
            if isinstance(value := getattr(part, field.name), np.ndarray)
        }


def _fit(rows: Sequence[Row], seed: int) -> LengthModel:
    scale, scores, noise = _scores(rows)
    grams = [row.features.grams for row in rows]
    numbers = numbers_of([row.features for row in rows]).astype(np.float32)
    newest = slice(max(0, len(rows) - MOST_ROWS), None)
    ridge, left_out = _fit_ridge(
        rows[newest], grams[newest], numbers[newest], scores[newest], noise
    )
    near = Neighbours(_embeddings(grams[newest], ridge), scores[newest])
    unseen = [left_out[:, None], near.near_others()]
    if newest.start:  # older rows, which neither of the two has seen
        old = _embeddings(grams[: newest.start], ridge)
        said = [ridge.predict(*of) for of in zip(grams[: newest.start], numbers, strict=False)]
        unseen[0] = np.concatenate([np.array(said, np.float32)[:, None], unseen[0]])
        unseen[1] = np.concatenate([np.stack([near.near(one) for one in old]), unseen[1]])
    own = np.flatnonzero([row.source == 0 for row in rows])
    if len(own) < FEWEST_ROWS:
        own = np.arange(len(rows))
    stacked = np.concatenate([*unseen, numbers], axis=1)[own]
    scores, middle = scores[own], stacked[:, 0]
    trees, share, spread = None, 0.0, np.full(len(own), USUAL_SPREAD, np.float32)
    if len(own) >= FEWEST_FOR_TREES:
        trees = fit_trees(stacked, scores, rounds=_rounds(scores), seed=seed)
        said_by_trees = _unseen(stacked, scores, seed)
        share = _share(middle, said_by_trees[:, 0], scores)
        middle = middle + share * (said_by_trees[:, 0] - middle)
        spread = np.clip(said_by_trees[:, 1] - said_by_trees[:, 0], LEAST_SPREAD, MOST_SPREAD)
    stretch = _stretch((scores - middle) / spread)
    places, signs = folding()
    return LengthModel(scale, ridge, near, places, signs, trees, share, stretch, len(rows))


def _scores(rows: Sequence[Row]) -> tuple[LengthScale, Floats, Floats]:
    """Return the scale of the answers, each row's score among those of its model, and its noise."""
    logs = np.log1p(np.array([row.length for row in rows], np.float64)).astype(np.float32)
    source = np.array([row.source for row in rows])
    scores = np.empty_like(logs)
    for one in sorted(set(source.tolist())):
        scores[source == one] = LengthScale.of(logs[source == one]).score(logs[source == one])
    own = logs[source == 0]
    scale = LengthScale.of(own if len(own) >= FEWEST_ROWS else logs)
    return scale, scores, np.where(source == 0, NOISE, FOREIGN_NOISE).astype(np.float32)


def _fit_ridge(
    rows: Sequence[Row], grams: Sequence[Grams], numbers: Floats, scores: Floats, noise: Floats
) -> tuple[KernelRidge, Floats]:
    """Fit, twice where answers were cut; their `scores` become what the others make likely."""
    noise = noise[-len(rows) :]
    ridge, left_out = fit_ridge(grams, numbers, scores, noise)
    cut = np.array([not row.is_whole for row in rows])
    if not cut.any() or cut.all():
        return ridge, left_out
    whole = np.flatnonzero(~cut)
    first, _ = fit_ridge(
        [grams[i] for i in whole.tolist()], numbers[whole], scores[whole], noise[whole]
    )
    for i in np.flatnonzero(cut).tolist():
        scores[i] = max(scores[i], first.predict(grams[i], numbers[i]))
    return fit_ridge(grams, numbers, scores, noise)


def _embeddings(grams: Sequence[Grams], ridge: KernelRidge) -> Floats:
    places, signs = folding()
    return np.stack([fold(row, ridge.idf, places, signs) for row in grams])


def _unseen(stacked: Floats, targets: Floats, seed: int) -> Floats:
    """Return for each row the quantiles of trees that did not see it, (n, 2)."""
    fold_of = np.random.default_rng(seed).permutation(len(targets)) % FOLDS
    out = np.empty((len(targets), 2), np.float32)
    for part in range(FOLDS):
        inside = fold_of == part
        trees = fit_trees(stacked[~inside], targets[~inside], rounds=_rounds(targets), seed=seed)
        out[inside] = trees.predict_many(stacked[inside])
    return out


def _rounds(targets: Floats) -> int:
    return min(MOST_ROUNDS, len(targets) // ROWS_A_ROUND)


def _share(ridge: Floats, trees: Floats, targets: Floats) -> float:
    """Return the trees' part of the mixture that errs least; with few rows, less of it."""
    errors = [
        float(np.abs(targets - (ridge + share * (trees - ridge))).mean()) for share in TREE_SHARES
    ]
    best = float(TREE_SHARES[int(np.argmin(errors))])
    return best * len(targets) / (len(targets) + 200.0)


def _stretch(ratios: Floats) -> float:
    """Return the conformal quantile: the (n + 1) * HIGH-th smallest ratio of error to spread."""
    ordered = np.sort(ratios)
    place = min(len(ordered), math.ceil((len(ordered) + 1) * HIGH)) - 1
    return max(0.0, float(ordered[place]))


def _read(arrays: dict[str, npt.NDArray[np.generic]]) -> LengthModel:
    try:
        if arrays["format"].tolist() != [FORMAT, NUM_NUMBERS]:
            raise StateError("a model of another version")
        share, stretch, offset = arrays["scalars"].tolist()
        (num_rows,) = arrays["num_rows"].tolist()
        if not isinstance(num_rows, int) or not 0 <= num_rows <= MOST_TREE_ROWS:
            raise StateError("a model of as many rows as none has")

        def part(name: str) -> dict[str, npt.NDArray[np.generic]]:
            prefix = f"{name}."
            return {
                key.removeprefix(prefix): value
                for key, value in arrays.items()
                if key.startswith(prefix)
            }

        scale = LengthScale(**part("LengthScale"))  # type: ignore[arg-type]
        ridge = KernelRidge(offset=offset, **part("KernelRidge"))  # type: ignore[arg-type]
        near = Neighbours(**part("Neighbours"))  # type: ignore[arg-type]
        found = part("QuantileTrees")
        trees = QuantileTrees(**found) if found else None  # type: ignore[arg-type]
    except StateError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"a model that lacks something: {error}") from error
    places, signs = folding()
    model = LengthModel(scale, ridge, near, places, signs, trees, share, stretch, num_rows)
    _check(model)
    return model


def _check(model: LengthModel) -> None:
    """Ask the model one question: shapes that do not fit must not be found out while serving."""
    for name, array in model._arrays().items():
        if array.dtype.kind not in "fiu":
            raise StateError(f"a model whose {name} are no numbers")
    if not model.ridge.gram_weights.shape == model.ridge.idf.shape == (NUM_GRAMS,):
        raise StateError("a model of other grams")
    blank = Features(np.array([1], np.uint16), np.full(NUM_NUMBERS, np.nan, np.float16), 16)
    try:
        found = model.predict(blank)
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise StateError(f"a model that does not fit together: {error}") from error
    if not (math.isfinite(found.middle) and math.isfinite(found.high)):
        raise StateError("a model that predicts nothing")


__all__ = ["NEAR_NAMES", "LengthModel"]
