"""Latency profiles from measured steps, by least squares; it knows the form and measures nothing.

The form is linear in its prices once the knee, the tile and the regime of a step are given, so a
fit is one non-negative least-squares problem (Lawson and Hanson, Solving Least Squares Problems,
1974, chapter 23) for each knee that is tried. What counts is the relative error of a step's time,
and the three regimes (decodes alone, prompts alone, both) count alike, however many points each
has: a sweep has many more mixed points than an engine has mixed steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.step_features import PRICES, Held, features

REGIMES = ("decode", "prefill", "mixed")
# A sweep tells the prices apart; traffic tells what they are where it matters: a prompt that comes
# to an idle engine finds everything cold and takes a third longer than the sweep's.
SERVICE_SHARE = 0.5
DIGITS = 4  # significant ones of a price: more would promise what no measurement holds


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured step: what it held (see `StepCost`) and how long it took, in nanoseconds.

    `samples` is how many equal steps stand behind it; it counts as that many. `in_service`: not
    from a sweep but from random traffic, and then the mean of steps that are alike.
    """

    num_decodes: float
    num_prefills: float
    num_tokens: float
    kv_tokens: float
    pairs: float
    prompt_kv: float
    ns: float
    samples: int = 1
    in_service: bool = False

    @property
    def regime(self) -> str:
        """Which of REGIMES the step belongs to."""
        if not self.num_prefills:
            return "decode"
        return "mixed" if self.num_decodes else "prefill"

    @property
    def held(self) -> Held:
        """What the step held."""
        return Held(
            self.num_tokens,
            self.num_decodes + self.num_prefills,
            self.num_prefills,
            self.kv_tokens,
            self.pairs,
            self.prompt_kv,
        )


@dataclass(frozen=True, slots=True)
class FitError:
    """How far a profile is from measured steps: relative errors, 0.05 being five percent.

    `points` counts observations; an observation of many samples weighs as many in mean and p95.
    """

    points: int
    mean: float
    p95: float
    max: float

    def as_dict(self) -> dict[str, float]:
        """Return it as a profile's `fit` says it: whole points, errors to a tenth of a percent."""
        errors = {name: round(getattr(self, name), 3) for name in ("mean", "p95", "max")}
        return {"points": self.points, **errors}


def predicted_ns(profile: LatencyProfile, seen: Observation) -> float:
    """Return what the profile says that a step takes."""
    return LatencyModel(profile).held_ns(*seen.held)


def fit_errors(profile: LatencyProfile, observations: Iterable[Observation]) -> dict[str, FitError]:
    """Return the errors regime by regime, for those that were measured."""
    errors: dict[str, list[tuple[float, int]]] = {}
    for seen in observations:
        error = abs(predicted_ns(profile, seen) / seen.ns - 1)
        errors.setdefault(seen.regime, []).append((error, seen.samples))
    return {regime: _summary(errors[regime]) for regime in REGIMES if regime in errors}


def _summary(errors: Sequence[tuple[float, int]]) -> FitError:
    """Sum up (error, samples): every sample counts."""
    ordered = sorted(errors)
    count = sum([samples for _, samples in ordered])
    mean = sum([error * samples for error, samples in ordered]) / count
    behind, p95 = 0, ordered[-1][0]
    for error, samples in ordered:
        behind += samples
        if behind >= 0.95 * count:
            p95 = error
            break
    return FitError(len(ordered), mean, p95, ordered[-1][0])


def fit_profile(
    rest: LatencyProfile,
    observations: Sequence[Observation],
    *,
    knees: Sequence[int] = (0,),
    tiles: Sequence[int] = (0,),
    without: Collection[str] = (),
) -> LatencyProfile:
    """Return `rest` with its step prices fitted to the observations.

    The best of `knees` and `tiles` (in tokens; 0: none) is taken; prices named in `without` are
    0. `rest` gives name, memory, link and `floor_ns`. Raises ValueError without observations.
    """
    if not observations:
        raise ValueError("nothing was measured")
    columns = [name not in without for name in PRICES]
    weights = _weights(observations)
    fits = [
        _fit_one(rest, observations, weights, columns, knee, tile)
        for knee in knees
        for tile in tiles
    ]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit_one(
    rest: LatencyProfile,
    observations: Sequence[Observation],
    weights: Sequence[float],
    columns: Sequence[bool],
    knee: int,
    tile_tokens: int,
) -> tuple[float, LatencyProfile]:
    """Return the weighted square error, and the profile, of one choice of knee and tile."""
    rows = [features(seen.held, knee or None, tile_tokens or None) for seen in observations]
    scale = [weight / seen.ns for weight, seen in zip(weights, observations, strict=True)]
    prices = non_negative_least_squares(
        [
            [value * s if column else 0.0 for value, column in zip(row, columns, strict=True)]
            for row, s in zip(rows, scale, strict=True)
        ],
        list(weights),
    )
    fields = dict(zip(PRICES, prices, strict=True))
    alone, beside_prompt = fields["decode_kv_ns"], fields["mixed_kv_factor"]
    if alone == 0:
        # Decodes alone showed no price of their context: the form has one factor, not two prices.
        alone, beside_prompt = beside_prompt, 0.0
    fields["decode_kv_ns"] = alone
    fields["mixed_kv_factor"] = 1 + beside_prompt / alone if alone else 1.0
    rounded: dict[str, Any] = {name: round_to_digits(value) for name, value in fields.items()}
    profile = dataclasses.replace(
        rest, tile_tokens=max(1, tile_tokens), knee_tokens=knee, **rounded
    )
    square = 0.0
    for seen, weight in zip(observations, weights, strict=True):
        square += (weight * (predicted_ns(profile, seen) / seen.ns - 1)) ** 2
    return square, profile


def _weights(observations: Sequence[Observation]) -> list[float]:
    """Return weights whose squares add up to one in every regime, shared by sweep and service."""
    counts: dict[tuple[str, bool], int] = {}
    for seen in observations:
        key = (seen.regime, seen.in_service)
        counts[key] = counts.get(key, 0) + seen.samples
    weights = []
    for seen in observations:
        share = 1.0
        if (seen.regime, not seen.in_service) in counts:
            share = SERVICE_SHARE if seen.in_service else 1 - SERVICE_SHARE
        weights.append(math.sqrt(share * seen.samples / counts[seen.regime, seen.in_service]))
    return weights


def round_to_digits(value: float, digits: int = DIGITS) -> float:
    """Return the value with that many significant digits."""
    return float(f"{value:.{digits}g}")


def non_negative_least_squares(
    rows: Sequence[Sequence[float]], targets: Sequence[float]
) -> list[float]:
    """Return the x >= 0 with the least sum of squares of `rows` x - `targets`.

    Columns that are all zero get 0. Made for a dozen columns: it works on the normal equations of
    columns scaled to length one.
    """
    width = len(rows[0])
    lengths = [math.sqrt(sum([row[i] * row[i] for row in rows])) for i in range(width)]
    used = [i for i in range(width) if lengths[i] > 0]
    scaled = [[row[i] / lengths[i] for i in used] for row in rows]
    size = len(used)
    gram = [[0.0] * size for _ in range(size)]
    gains = [0.0] * size
    for row, target in zip(scaled, targets, strict=True):
        for i, left in enumerate(row):
            gains[i] += left * target
            line = gram[i]
            for j in range(i, size):
                line[j] += left * row[j]
    for i in range(size):
        for j in range(i):
            gram[i][j] = gram[j][i]
    found = _active_set(gram, gains)
    answer = [0.0] * width
    for i, value in zip(used, found, strict=True):
        answer[i] = value / lengths[i]
    return answer


def _active_set(gram: list[list[float]], gains: list[float]) -> list[float]:
    """Solve gram x = gains for x >= 0: columns join while they gain, and leave when negative."""
    size = len(gains)
    x = [0.0] * size
    free: list[int] = []
    refused: set[int] = set()  # gained nothing but rounding errors with the present free ones
    for _ in range(10 * size):
        slope = [g - sum(map(float.__mul__, line, x)) for g, line in zip(gains, gram, strict=True)]
        candidates = [
            i for i in range(size) if i not in free and i not in refused and slope[i] > 1e-12
        ]
        if not candidates:
            break
        newest = max(candidates, key=slope.__getitem__)
        free.append(newest)
        while free:
            trial = _solve(gram, gains, free)
            if all(value > 0 for value in trial.values()):
                x = [trial.get(i, 0.0) for i in range(size)]
                break
            # Go towards the trial until the first one is zero, and leave that one out.
            negative = [i for i in free if trial[i] <= 0]
            step = min(x[i] / (x[i] - trial[i]) if x[i] > 0 else 0.0 for i in negative)
            x = [x[i] + step * (trial.get(i, x[i]) - x[i]) for i in range(size)]
            free = [i for i in free if i not in negative or x[i] > 1e-15]
            x = [x[i] if i in free else 0.0 for i in range(size)]
        refused = set() if newest in free else refused | {newest}
    return x


def _solve(gram: list[list[float]], gains: list[float], free: list[int]) -> dict[int, float]:
    """Solve the equations of the free columns alone (Gauss); a dependent column gets 0."""
    table = [[gram[i][j] for j in free] + [gains[i]] for i in free]
    size = len(free)
    for k in range(size):
        pivot = max(range(k, size), key=lambda r: abs(table[r][k]))
        table[k], table[pivot] = table[pivot], table[k]
        if abs(table[k][k]) < 1e-13:
            continue
        for r in range(k + 1, size):
            share = table[r][k] / table[k][k]
            for c in range(k, size + 1):
                table[r][c] -= share * table[k][c]
    values = [0.0] * size
    for k in reversed(range(size)):
        rest = table[k][size] - sum([table[k][c] * values[c] for c in range(k + 1, size)])
        values[k] = rest / table[k][k] if abs(table[k][k]) >= 1e-13 else 0.0
    return dict(zip(free, values, strict=True))
