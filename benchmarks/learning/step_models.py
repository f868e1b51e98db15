"""Models of a step's time that are compared: what the engine uses, what it used, and others.

Each predicts a step from what it holds and then learns what it took, in the order of a recording.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from benchmarks.learning.moving_mix import Step
from engine.core.clock import MonotonicClock
from engine.core.latency_fit import non_negative_least_squares
from engine.core.latency_learning import Level
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.step_features import Held, features, knee_of, tile_of

CLOCK = MonotonicClock()
REFIT_EVERY, REFIT_ON, TREES = 250, 3000, 60  # steps, steps, and trees of XGBoost
NEAREST = 5  # equal steps on either side


class StepModel(Protocol):
    """What is compared."""

    def predict(self, held: Held) -> float:
        """Return how many nanoseconds a step will take."""
        ...

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        """Take in what it took."""
        ...


class Bare:
    """The profile, and nothing learnt."""

    def __init__(self, profile: LatencyProfile) -> None:
        self._model = LatencyModel(profile)

    def predict(self, held: Held) -> float:
        return self._model.held_ns(*held)

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        pass


class OneFactor(Bare):
    """One factor over the profile, moved by 2 % of each error: the engine's model until now."""

    RATE, MOST = 0.02, 2.0

    def __init__(self, profile: LatencyProfile) -> None:
        super().__init__(profile)
        self._factor = 1.0

    def predict(self, held: Held) -> float:
        return self._factor * super().predict(held)

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        ratio = min(max(elapsed_ns / predicted_ns, 1 / self.MOST), self.MOST)
        factor = self._factor * (1 + self.RATE * (ratio - 1))
        self._factor = min(max(factor, 0.05), 20.0)


class RegimeFactors(Bare):
    """A factor for each regime (decodes, prompts, both), moved by a fifth of each error."""

    RATE = 0.2

    def __init__(self, profile: LatencyProfile) -> None:
        super().__init__(profile)
        self._factors = [1.0, 1.0, 1.0]

    def predict(self, held: Held) -> float:
        return self._factors[_regime(held)] * super().predict(held)

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        ratio = min(max(elapsed_ns / predicted_ns, 0.5), 2.0)
        self._factors[_regime(held)] *= 1 + self.RATE * (ratio - 1)


def _regime(held: Held) -> int:
    if not held.num_prefills:
        return 0
    return 2 if held.num_rows > held.num_prefills else 1


class Online(Bare):
    """The engine's own model."""

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        self._model.learn(held, predicted_ns, elapsed_ns)
        self._model.settle()


class PricesOnly(Online):
    """The engine's own model with its levels held at 1: least squares with forgetting alone."""

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        super().learn(held, predicted_ns, elapsed_ns)
        for level in (self._model._alone, self._model._beside_prompt):
            level.set(1.0)
        self._model._publish()


class Boosted(Bare):
    """XGBoost on what a step holds, fitted again as it goes, under a level of the same kind."""

    def __init__(self, profile: LatencyProfile) -> None:
        import xgboost

        super().__init__(profile)
        self._xgboost = xgboost
        self._booster: Any = None
        self._rows: list[tuple[float, ...]] = []
        self._targets: list[float] = []
        self._level = Level()
        self._count = 0

    def _shape(self, held: Held) -> float:
        """Return the logarithm of what the trees make of the profile's time."""
        if self._booster is None:
            return 0.0
        return float(self._booster.inplace_predict([list(held)])[0])

    def predict(self, held: Held) -> float:
        return self._level.value * math.exp(self._shape(held)) * super().predict(held)

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        target = math.log(elapsed_ns / super().predict(held))
        self._level.learn(target - self._shape(held))
        self._rows.append(held)
        self._targets.append(target)
        self._count += 1
        if self._count % REFIT_EVERY == 0:
            rows, targets = self._rows[-REFIT_ON:], self._targets[-REFIT_ON:]
            options = {"max_depth": 4, "eta": 0.15, "objective": "reg:absoluteerror", "nthread": 1}
            data = self._xgboost.DMatrix([list(row) for row in rows], targets)
            self._booster = self._xgboost.train(options, data, TREES)


MODELS: dict[str, Callable[[LatencyProfile], StepModel]] = {
    "profile": Bare,
    "one factor": OneFactor,
    "regime factors": RegimeFactors,
    "prices only": PricesOnly,
    "online": Online,
    "xgboost": Boosted,
}


def replay(model: StepModel, steps: Sequence[Step]) -> tuple[list[float], float]:
    """Return predicted / measured - 1 of every step, and microseconds a step for both calls."""
    errors = []
    began_ns = CLOCK.now_ns()
    for step in steps:
        predicted_ns = model.predict(step.held)
        errors.append(predicted_ns / step.ns - 1)
        model.learn(step.held, predicted_ns, step.ns)
    return errors, (CLOCK.now_ns() - began_ns) / len(steps) / 1000


def fitted_afterwards(profile: LatencyProfile, steps: Sequence[Step]) -> list[float]:
    """Return the errors of the profile's form with the best prices for just these steps.

    Best by the sum of absolute relative errors (least squares, weighted again and again).
    """
    rows = [features(step.held, knee_of(profile), tile_of(profile)) for step in steps]
    relative = [[v / s.ns for v in row] for row, s in zip(rows, steps, strict=True)]
    weights = [1.0] * len(steps)
    errors: list[float] = []
    for _ in range(8):
        prices = non_negative_least_squares(
            [[w * v for v in row] for w, row in zip(weights, relative, strict=True)], weights
        )
        errors = [sum(map(float.__mul__, row, prices)) - 1 for row in relative]
        weights = [1 / math.sqrt(max(abs(error), 0.02)) for error in errors]
    return errors


def scatter(steps: Sequence[Step]) -> list[float]:
    """Return how far each step is from the median of its nearest equals before and after it.

    Equal: of one window, as many rows, prompts and tokens. That is what no model can know: it
    looks into the future.
    """
    kinds: dict[tuple[float, ...], list[Step]] = {}
    for step in steps:
        held = step.held
        kind = (step.window, held.num_rows, held.num_prefills, held.num_tokens, held.prompt_kv)
        kinds.setdefault(kind, []).append(step)
    errors = []
    for alike in kinds.values():
        for place, step in enumerate(alike):
            around = alike[max(0, place - NEAREST) : place] + alike[place + 1 :][:NEAREST]
            if len(around) >= 4:
                errors.append(statistics.median([other.ns for other in around]) / step.ns - 1)
    return errors
