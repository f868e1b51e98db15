"""How good predicted lengths are: order, error, coverage; it knows numbers only.

Definitions (papers.md 8.3 uses the same): a pair counts where the true lengths differ; it is right
when the predictions differ the same way, and half right when they are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

MOST_PAIRED = 20_000  # of more values, as many are drawn: pairs grow with the square
BLOCK = 512


@dataclass(frozen=True, slots=True)
class PairCounts:
    """All pairs of n values: `right` and `wrong` order, tied in truth, in prediction, in both."""

    right: int
    wrong: int
    tied_truth: int
    tied_guess: int
    tied_both: int

    @property
    def order_accuracy(self) -> float:
        """Return the share of pairs in the right order, ties of the guess half; NaN for none."""
        ties = self.tied_guess - self.tied_both
        pairs = self.right + self.wrong + ties
        return (self.right + 0.5 * ties) / pairs if pairs else math.nan

    @property
    def kendall_tau(self) -> float:
        """Return Kendall's tau-b, ties on either side considered; NaN where all are tied."""
        untied = self.right + self.wrong
        truth = untied + self.tied_guess - self.tied_both
        guess = untied + self.tied_truth - self.tied_both
        return (self.right - self.wrong) / math.sqrt(truth * guess) if truth and guess else math.nan


def pair_counts(truth: Numbers, guess: Numbers, seed: int = 0) -> PairCounts:
    """Count the pairs of (n,) true and (n,) predicted values."""
    if len(truth) > MOST_PAIRED:
        drawn = np.random.default_rng(seed).choice(len(truth), MOST_PAIRED, replace=False)
        truth, guess = truth[drawn], guess[drawn]
    right = wrong = tied_truth = tied_guess = tied_both = 0
    later = np.arange(len(truth))
    for start in range(0, len(truth), BLOCK):
        rows = slice(start, start + BLOCK)
        true = np.sign(truth[rows, None] - truth[None])
        said = np.sign(guess[rows, None] - guess[None])
        once = later[None] > later[rows, None]
        product = true * said
        right += int(((product > 0) & once).sum())
        wrong += int(((product < 0) & once).sum())
        tied_truth += int(((true == 0) & once).sum())
        tied_guess += int(((said == 0) & once).sum())
        tied_both += int(((true == 0) & (said == 0) & once).sum())
    return PairCounts(right, wrong, tied_truth, tied_guess, tied_both)


def coverage(truth: Numbers, high: Numbers) -> float:
    """Return the share of values at or below their predicted high quantile."""
    return float((truth <= high).mean()) if len(truth) else math.nan


def mean_error(truth: Numbers, guess: Numbers) -> float:
    """Return the mean absolute error, in tokens where both are."""
    return float(np.abs(truth - guess).mean()) if len(truth) else math.nan
