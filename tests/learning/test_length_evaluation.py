"""Evaluation: groups stay whole, ours beats plain predictors where there is something to learn."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from engine.learning.evaluation import EvaluationError, as_json, divide, evaluate
from engine.learning.question import Question
from engine.learning.records import Record, load_records

DATA = Path(__file__).parents[3] / "shared" / "data"
THINGS = ("apples", "rivers", "engines", "poems", "bridges", "stars", "taxes", "games")


def asks(count: int, seed: int) -> list[Record]:
    """Questions whose length depends on a number times a kind: words alone cannot tell it."""
    draw = random.Random(seed)
    out = []
    for _ in range(count):
        number, thing = draw.randint(2, 199), draw.choice(THINGS)
        text = f"Give me {number} facts about {thing}, please."
        length = round(4 * number * math.exp(draw.gauss(0, 0.2)))
        out.append(Record(Question("t", text, 9, 4096), max(1, length), text))
    return out


def test_ours_beats_the_ridge_where_a_number_is_asked_for() -> None:
    found = evaluate(asks(400, 1), 0.8, 2)
    assert found.ours.pairwise_order_accuracy > 0.85
    assert (
        found.ours.pairwise_order_accuracy > found.baselines["ridge"].pairwise_order_accuracy + 0.03
    )
    assert found.ours.mae_tokens < found.baselines["constant"].mae_tokens / 2
    assert found.baselines["constant"].pairwise_order_accuracy == 0.5


def test_a_seed_divides_alike_and_groups_stay_whole() -> None:
    records = [Record(Question("t", "a", 1, 9), 3, f"talk {i // 3}", i % 3) for i in range(60)]
    train, test = divide(records, 0.7, 5)
    assert (train, test) == divide(records, 0.7, 5)
    assert len(train) + len(test) == 60
    assert not {r.group for r in train} & {r.group for r in test}
    assert divide(records, 0.7, 6) != (train, test)


def test_too_little_is_refused() -> None:
    with pytest.raises(EvaluationError, match="train on are too few"):
        evaluate(asks(12, 1), 0.5, 1)
    with pytest.raises(EvaluationError, match="test on are too few"):
        evaluate(asks(30, 1), 0.99, 1)


def test_equal_seeds_give_equal_scores_but_for_the_time() -> None:
    timed = {"predict_ms", "predict_ms_p99", "fit_s"}
    first, again = (as_json(evaluate(asks(120, 3), 0.8, 4)) for _ in range(2))
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in again.items() if k not in timed
    }


@pytest.mark.skipif(not DATA.is_dir(), reason="the public workload data are not here")
def test_open_chat_is_ordered_better_than_by_a_ridge_and_p90_holds() -> None:
    records = load_records(
        DATA / "prompts/alpacaeval805_out_tokens.csv.gz",
        "Mistral-7B-Instruct-v0.2",
        DATA / "prompts/alpacaeval805_prompts.jsonl.gz",
    ).records
    found = evaluate(records, 0.8, 1)
    assert found.ours.pairwise_order_accuracy >= 0.68
    assert found.ours.pairwise_order_accuracy > found.baselines["ridge"].pairwise_order_accuracy
    assert 0.82 <= found.p90_coverage <= 0.97  # 129 answers: two and a half standard errors
    assert found.model_bytes < 50e6
