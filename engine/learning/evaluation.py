"""Scores the model of lengths on a file's records, beside plain predictors; it reads no file.

The records are divided by seed into training and test, whole conversations and equal prompts on
one side. What is predicted for a test record is made from training records and from its own
conversation's earlier answers, as it would be when served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from engine.core.clock import MonotonicClock
from engine.learning.baselines import BASELINES, last_answers
from engine.learning.features import featurise
from engine.learning.length_model import FEWEST_ROWS, LengthModel
from engine.learning.metrics import coverage, mean_error, pair_counts
from engine.learning.records import Record
from engine.learning.rows import Row

Numbers = npt.NDArray[np.float64]
Baseline = Callable[[Sequence[Record], Sequence[Record]], npt.NDArray[np.float32]]

MOST_TIMED = 2000


class EvaluationError(ValueError):
    """There is too little to evaluate; one sentence says what."""


@dataclass(frozen=True, slots=True)
class Score:
    """How good one predictor was; shares from 0 to 1, errors in tokens, NaN where not known."""

    pairwise_order_accuracy: float
    kendall_tau: float
    mae_tokens: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one division into training and test showed; times in milliseconds, sizes in bytes.

    `later_turns` are scores over test records that have earlier answers in their conversation,
    None where there are too few of them. `baselines` are all records' scores, by name.
    """

    ours: Score
    p90_coverage: float
    predict_ms: float
    predict_ms_p99: float
    fit_s: float
    model_bytes: int
    n_train: int
    n_test: int
    n_later_turns: int
    baselines: Mapping[str, Score]
    later_turns: Mapping[str, Score] | None


def divide(
    records: Sequence[Record], train_share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Return training and test records, in their order; groups stay whole."""
    groups = sorted({record.group for record in records})
    order = np.random.default_rng(seed).permutation(len(groups))
    chosen = {groups[i] for i in order[: round(train_share * len(groups))].tolist()}
    train = [record for record in records if record.group in chosen]
    return train, [record for record in records if record.group not in chosen]


def fit(train: Sequence[Record], seed: int) -> LengthModel:
    """Fit the model to records; raises EvaluationError where they are too few."""
    if len(train) < FEWEST_ROWS:
        raise EvaluationError(
            f"{len(train)} rows to train on are too few; {FEWEST_ROWS} are needed"
        )
    rows = [
        Row(featurise(one.question), one.length, is_whole=one.length < one.question.max_tokens)
        for one in train
    ]
    return LengthModel.fit(rows, seed)


def evaluate(
    records: Sequence[Record],
    train_share: float,
    seed: int,
    baselines: Mapping[str, Baseline] = BASELINES,
) -> Evaluation:
    """Divide, fit, predict and score; raises EvaluationError where there is too little."""
    train, test = divide(records, train_share, seed)
    if len(test) < 2:
        raise EvaluationError(f"{len(test)} rows to test on are too few; 2 are needed")
    clock = MonotonicClock()
    began_ns = clock.now_ns()
    model = fit(train, seed)
    fit_s = (clock.now_ns() - began_ns) / 1e9
    features = [featurise(record.question) for record in test]
    found = [model.predict(one) for one in features]
    order = np.array([model.guess(one).middle for one in features])
    truth = np.array([record.length for record in test], np.float64)
    high = np.array([one.high for one in found])
    logs = {name: plain(train, test).astype(np.float64) for name, plain in baselines.items()}
    later = np.array([bool(record.question.previous_outputs) for record in test])
    if later.any():
        logs["last answers"] = last_answers(train, test).astype(np.float64)
    spent = timed(model, test)
    return Evaluation(
        ours=score(truth, order),
        p90_coverage=coverage(truth, high),
        predict_ms=float(np.median(spent)),
        predict_ms_p99=float(np.percentile(spent, 99)),
        fit_s=fit_s,
        model_bytes=sum(model.sizes().values()),
        n_train=len(train),
        n_test=len(test),
        n_later_turns=int(later.sum()),
        baselines={name: score(truth, guess) for name, guess in logs.items()},
        later_turns=None
        if later.sum() < 2
        else {
            name: score(truth[later], guess[later])
            for name, guess in {"ours": order, **logs}.items()
        },
    )


def score(truth: Numbers, logs: Numbers) -> Score:
    """Return the score of predicted logs of one plus tokens against true tokens."""
    pairs = pair_counts(truth, logs)
    tokens = np.maximum(1.0, np.expm1(np.minimum(logs, 30.0)))
    return Score(pairs.order_accuracy, pairs.kendall_tau, mean_error(truth, tokens))


def timed(model: LengthModel, test: Sequence[Record]) -> Numbers:
    """Return the milliseconds of single predictions, reading the prompt included."""
    clock = MonotonicClock()
    spent = []
    for record in test[:MOST_TIMED]:
        began_ns = clock.now_ns()
        model.predict(featurise(record.question))
        spent.append((clock.now_ns() - began_ns) / 1e6)
    return np.array(spent)


def as_json(found: Evaluation) -> dict[str, object]:
    """Return an evaluation as plain values; our own scores stand at the top."""
    fields: dict[str, object] = asdict(found)
    ours = fields.pop("ours")
    assert isinstance(ours, dict)
    return {**ours, **fields}
