"""Order accuracy and Kendall's tau against definitions written out pair by pair."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.learning.metrics import coverage, mean_error, pair_counts

values = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=30)


def naive_order(pairs: list[tuple[int, int]]) -> float:
    counted = [(a, b) for a, b in combinations(pairs, 2) if a[0] != b[0]]
    if not counted:
        return math.nan
    right = sum((a[0] < b[0]) == (a[1] < b[1]) for a, b in counted if a[1] != b[1])
    return (right + 0.5 * sum(a[1] == b[1] for a, b in counted)) / len(counted)


def naive_tau(pairs: list[tuple[int, int]]) -> float:
    """Tau-b: (concordant - discordant) / sqrt(pairs untied in one * pairs untied in the other)."""
    every = list(combinations(pairs, 2))
    total = sum(np.sign(a[0] - b[0]) * np.sign(a[1] - b[1]) for a, b in every)
    first = sum(a[0] != b[0] for a, b in every)
    second = sum(a[1] != b[1] for a, b in every)
    return float(total) / math.sqrt(first * second) if first and second else math.nan


@given(pairs=values)
def test_pairs_are_counted_as_the_definitions_say(pairs: list[tuple[int, int]]) -> None:
    truth, guess = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    found = pair_counts(truth, guess)
    assert found.order_accuracy == pytest.approx(naive_order(pairs), nan_ok=True)
    assert found.kendall_tau == pytest.approx(naive_tau(pairs), nan_ok=True)


def test_more_pairs_than_one_block_are_counted_once() -> None:
    truth = np.arange(1300.0)
    found = pair_counts(truth, truth)
    assert (found.right, found.wrong) == (1300 * 1299 // 2, 0)
    assert pair_counts(truth, -truth).order_accuracy == 0.0
    assert pair_counts(truth, np.zeros(1300)).order_accuracy == 0.5


def test_coverage_counts_equal_values_and_errors_are_absolute() -> None:
    truth, high = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.0, 9.0, 9.0])
    assert coverage(truth, high) == 0.75
    assert mean_error(truth, high) == (0 + 1 + 6 + 5) / 4
