"""Guesses of hidden output lengths, good, noisy and false; the true lengths never leave this file.

What each one answers depends on the seed and the request's id alone, never on the order in which
it is asked.
"""

from __future__ import annotations

import csv
import io
import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate

from engine.core.length_predictor import HistoryPredictor, LengthPredictor
from engine.core.request import LengthEstimate, RequestOrder
from engine.sim.text_file import read_text

DEFAULT_SIGMA = 0.4
Z90 = 1.2816  # the 90th percentile of the standard normal distribution
MIDDLE_TOKENS = 256.0  # the liar's mirror: a quarter of it becomes four times as much
HISTOGRAM_BIN = 16


class PredictorError(ValueError):
    """The predictor is not one we know, or its file is no histogram; one sentence says so."""


def make_predictor(
    text: str,
    lengths: Mapping[str, int],
    seed: int,
    learned: Callable[[int], LengthPredictor] | None = None,
) -> LengthPredictor:
    """Return `oracle`, `noisy:SIGMA`, `histogram:PATH`, `liar`, `constant:N`, `history`, `learned`.

    `lengths` are the true output lengths by request id; `learned` makes the predictor that learns,
    of so many other requests first (`learned:N`). Raises PredictorError.
    """
    kind, _, argument = text.partition(":")
    if kind == "oracle" and not argument:
        return NoisyPredictor(lengths, 0.0, seed)
    if kind == "noisy":
        sigma = _positive(text, argument) if argument else DEFAULT_SIGMA
        return NoisyPredictor(lengths, sigma, seed)
    if kind == "histogram" and argument:
        return HistogramPredictor(lengths, load_histogram(argument), seed)
    if kind == "liar" and not argument:
        return LiarPredictor(lengths)
    if kind == "constant" and argument:
        return ConstantPredictor(_positive(text, argument))
    if kind == "history" and not argument:
        return HistoryPredictor()
    if kind == "learned" and learned is not None:
        num_warm = _positive(text, argument) if argument else 0
        if num_warm != int(num_warm):
            raise PredictorError(f"predictor {text!r}: needs a whole number after the colon")
        return learned(int(num_warm))
    raise PredictorError(
        f"predictor {text!r}: must be oracle, noisy:SIGMA, histogram:PATH, liar, constant:N, "
        "history, learned or learned:N"
    )


def _positive(text: str, argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e7:
        raise PredictorError(f"predictor {text!r}: needs a number above 0 after the colon")
    return value


def _estimate(middle: float, high: float, order: RequestOrder) -> LengthEstimate:
    most = float(order.sampling.max_tokens)
    return LengthEstimate(min(max(middle, 1.0), most), min(max(high, 1.0), most))


class _Deaf:
    """Learns nothing from how requests end."""

    __slots__ = ()

    def observe(self, order: RequestOrder, num_output_tokens: int) -> None:
        """Nothing to learn."""


class NoisyPredictor(_Deaf):
    """The true length times a log-normal factor exp(sigma * z); sigma 0 is the oracle."""

    __slots__ = ("_lengths", "_seed", "_sigma")

    def __init__(self, lengths: Mapping[str, int], sigma: float, seed: int) -> None:
        self._lengths = lengths
        self._sigma = sigma
        self._seed = seed

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return the middle, and the 90th percentile of what the truth may be."""
        middle = float(self._lengths[order.id])
        if self._sigma:
            noise = random.Random(f"{self._seed}/length/{order.id}").gauss(0.0, self._sigma)
            middle *= math.exp(noise)
        return _estimate(middle, middle * math.exp(Z90 * self._sigma), order)


class LiarPredictor(_Deaf):
    """Mirrors lengths about 256 tokens: what is long looks short, and the other way round."""

    __slots__ = ("_lengths",)

    def __init__(self, lengths: Mapping[str, int]) -> None:
        self._lengths = lengths

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return the mirror image, sure of itself."""
        false = MIDDLE_TOKENS**2 / self._lengths[order.id]
        return _estimate(false, false, order)


class ConstantPredictor(_Deaf):
    """Says the same of everyone."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: float) -> None:
        self._tokens = tokens

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return the constant."""
        return _estimate(self._tokens, self._tokens, order)


class Histogram:
    """How often a predictor says class c of an answer whose length falls into bin b."""

    __slots__ = ("_by_bin", "_classes", "_quantiles")

    def __init__(self, counts: Mapping[tuple[int, int], int]) -> None:
        self._classes = sorted({c for c, _ in counts})
        self._by_bin: dict[int, list[int]] = {}  # running sums over the classes
        for low in {b for _, b in counts}:
            row = [counts.get((c, low), 0) for c in self._classes]
            if sum(row):
                self._by_bin[low] = list(accumulate(row))
        self._quantiles = {c: _class_quantiles(counts, c) for c in self._classes}

    def draw(self, num_tokens: int, coin: float) -> tuple[float, float]:
        """Return median and 90th percentile of the class said of such an answer."""
        low = num_tokens // HISTOGRAM_BIN * HISTOGRAM_BIN
        nearest = min(self._by_bin, key=lambda b: (abs(b - low), b))  # the last bin holds the tail
        sums = self._by_bin[nearest]
        index = bisect_left(sums, max(coin * sums[-1], math.ulp(0.0)))
        return self._quantiles[self._classes[index]]


def _class_quantiles(counts: Mapping[tuple[int, int], int], wanted: int) -> tuple[float, float]:
    rows = sorted((low, n) for (c, low), n in counts.items() if c == wanted)
    total = sum(n for _, n in rows)

    def quantile(share: float) -> float:
        seen = 0
        for low, n in rows:
            seen += n
            if n and seen >= share * total:
                return low + HISTOGRAM_BIN * (1.0 - (seen - share * total) / n)
        return float(rows[-1][0] + HISTOGRAM_BIN)

    return quantile(0.5), quantile(0.9)


def load_histogram(path: str) -> Histogram:
    """Read `predicted_class5,output_tokens_bin_lo16,count`; raises PredictorError."""
    counts: dict[tuple[int, int], int] = {}
    number = 0  # of the row being read, for the message
    try:
        text = read_text(path)
    except ValueError as error:
        raise PredictorError(f"histogram {path}: {error}") from error
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            number += 1
            cell = int(row["predicted_class5"]), int(row["output_tokens_bin_lo16"])
            counts[cell] = counts.get(cell, 0) + int(row["count"])
    except KeyError as error:
        raise PredictorError(f"histogram {path}: column {error.args[0]} is missing") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise PredictorError(f"histogram {path}: row {number} is no row of counts") from error
    if min(counts.values(), default=0) < 0 or not sum(counts.values()):
        raise PredictorError(f"histogram {path}: counts must not be negative, nor all 0")
    return Histogram({cell: n for cell, n in counts.items() if n})


class HistogramPredictor(_Deaf):
    """Errs as a real classifier did: a class drawn given the true length, then that class's middle.

    Made for the error of SSJF's BERT predictor (https://arxiv.org/abs/2404.08509).
    """

    __slots__ = ("_histogram", "_lengths", "_seed")

    def __init__(self, lengths: Mapping[str, int], histogram: Histogram, seed: int) -> None:
        self._lengths = lengths
        self._histogram = histogram
        self._seed = seed

    def predict(self, order: RequestOrder) -> LengthEstimate:
        """Return the drawn class's median and 90th percentile."""
        coin = random.Random(f"{self._seed}/length/{order.id}").random()
        middle, high = self._histogram.draw(self._lengths[order.id], coin)
        return _estimate(middle, high, order)
