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

    A node asks whether one number is below its `limit`: if so the next node is `first`, else the
    one behind that. `asked` says which number, among those of a row with NaN as the least, then
    those of the row with NaN as the greatest: so NaN goes where the tree wants it. A leaf asks
    nothing and leads to itself; it has a `leaf` value. `base` (2,) is what all trees share.
    """

    roots: Ints
    which: Ints
    asked: Ints
    limit: Floats
    first: Ints
    leaf: Floats
    base: Floats

    def predict(self, numbers: Floats) -> tuple[float, float]:
        """Return the two quantiles for one row of numbers, NaN allowed.

        All nodes are asked at once: that is half the calls of asking level by level, and each call
        costs more than what it computes.
        """
        unknown = np.isnan(numbers)
        both = np.concatenate(
            [np.where(unknown, -np.inf, numbers), np.where(unknown, np.inf, numbers)]
        )
        turn = (both.take(self.asked) >= self.limit).view(np.int8)
        first, node = self.first, self.roots
        for _ in range(DEPTH):
            node = first.take(node) + turn.take(node)
        found = np.bincount(self.which, weights=self.leaf.take(node), minlength=2)
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
    return from_json(json.loads(booster.save_raw("json").decode()), numbers.shape[1])


def from_json(model: Any, num_numbers: int) -> QuantileTrees:
    """Return XGBoost's model as arrays (its JSON model schema, format of 3.x)."""
    learner = model["learner"]
    base = np.array(json.loads(learner["learner_model_param"]["base_score"]), np.float32)
    grown = learner["gradient_booster"]["model"]
    roots: list[int] = []
    nodes: list[tuple[int, float, int, float]] = []  # asked, limit, first, leaf
    for tree in grown["trees"]:
        roots.append(len(nodes))
        nodes += _laid_out(tree, len(nodes), num_numbers)
    asked, limit, first, leaf = zip(*nodes, strict=True)
    return QuantileTrees(
        roots=np.array(roots, np.int32),
        which=np.array(grown["tree_info"], np.int32),
        asked=np.array(asked, np.int32),
        limit=np.array(limit, np.float32),
        first=np.array(first, np.int32),
        leaf=np.array(leaf, np.float32),
        base=np.broadcast_to(base, (2,)).copy(),
    )


def _laid_out(
    tree: dict[str, list[Any]], start: int, num_numbers: int
) -> list[tuple[int, float, int, float]]:
    """Return one tree's nodes, the two below a node side by side, from place `start` on."""
    left, right = tree["left_children"], tree["right_children"]
    asked, limits = tree["split_indices"], tree["split_conditions"]
    nodes: list[tuple[int, float, int, float]] = []
    order, end = [0], 1
    for own in order:  # grows while it is walked: level by level
        if left[own] < 0:
            nodes.append((0, np.inf, start + len(nodes), limits[own]))
            continue
        number = asked[own] if tree["default_left"][own] else asked[own] + num_numbers
        nodes.append((number, limits[own], start + end, 0.0))
        order += [left[own], right[own]]
        end += 2
    return nodes
