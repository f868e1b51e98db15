"""Gradient-boosted quantile trees as plain arrays; it knows numbers and no prompt.

XGBoost grows them (`reg:quantileerror`, both quantiles in one model) and is needed for nothing
else: a prediction walks all trees at once in numpy, some ten times as fast as a call of the
library for a single row, and a model read from disk is arrays, not code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

QUANTILES = (0.5, 0.9)
DEPTH = 4


@dataclass(frozen=True, slots=True, eq=False)
class QuantileTrees:
    """All trees in one row of nodes: `roots` (t,), the quantile of each tree in `which` (t,).

    A node: the number it asks for, the limit below which it goes left, where left and right are,
    where NaN goes. A leaf leads to itself and has a `leaf` value. `base` (2,) is what all share.
    """

    roots: Ints
    which: Ints
    asked: Ints
    limit: Floats
    left: Ints
    right: Ints
    missing: Ints
    leaf: Floats
    base: Floats

    def predict(self, numbers: Floats) -> tuple[float, float]:
        """Return the two quantiles for one row of numbers, NaN allowed."""
        node = self.roots
        for _ in range(DEPTH):
            value = numbers[self.asked[node]]
            after = np.where(value < self.limit[node], self.left[node], self.right[node])
            node = np.where(np.isnan(value), self.missing[node], after)
        found = np.bincount(self.which, weights=self.leaf[node], minlength=2)
        return float(self.base[0] + found[0]), float(self.base[1] + found[1])

    def predict_many(self, numbers: Floats) -> Floats:
        """Return the quantiles of n rows, (n, 2)."""
        return np.array([self.predict(row) for row in numbers], np.float32).reshape(-1, 2)


def fit_trees(numbers: Floats, targets: Floats, *, rounds: int, seed: int) -> QuantileTrees:
    """Grow trees for n rows of numbers (n, c), NaN allowed. One thread: the engine has the rest."""
    import xgboost

    fewest = max(4, min(20, len(targets) // 50))
    booster = xgboost.train(
        {
            "objective": "reg:quantileerror",
            "quantile_alpha": list(QUANTILES),
            "tree_method": "hist",
            "max_bin": 64,
            "max_depth": DEPTH,
            "eta": 0.06,
            "subsample": 0.7,
            "colsample_bytree": 0.4,
            "min_child_weight": fewest,
            "reg_lambda": 5.0,
            "nthread": 1,
            "seed": seed,
            "verbosity": 0,
        },
        xgboost.DMatrix(numbers, targets, nthread=1),
        rounds,
    )
    return from_json(json.loads(booster.save_raw("json").decode()))


def from_json(model: Any) -> QuantileTrees:
    """Return XGBoost's model as arrays (its JSON model schema, format of 3.x)."""
    learner = model["learner"]
    base = np.array(json.loads(learner["learner_model_param"]["base_score"]), np.float32)
    grown = learner["gradient_booster"]["model"]
    roots, parts = [], []
    at = 0
    for tree in grown["trees"]:
        left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
        own = np.arange(len(left))
        is_leaf = left < 0
        limit = np.array(tree["split_conditions"], np.float32)
        down, up = np.where(is_leaf, own, left), np.where(is_leaf, own, right)
        missing = np.where(np.array(tree["default_left"]) > 0, down, up)
        asked = np.where(is_leaf, 0, np.array(tree["split_indices"]))
        roots.append(at)
        parts.append(
            (asked, limit, down + at, up + at, missing + at, np.where(is_leaf, limit, 0.0))
        )
        at += len(left)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return QuantileTrees(
        roots=np.array(roots, np.int32),
        which=np.array(grown["tree_info"], np.int32),
        asked=columns[0].astype(np.int32),
        limit=columns[1].astype(np.float32),
        left=columns[2].astype(np.int32),
        right=columns[3].astype(np.int32),
        missing=columns[4].astype(np.int32),
        leaf=columns[5].astype(np.float32),
        base=np.broadcast_to(base, (2,)).copy(),
    )
