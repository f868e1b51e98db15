"""`tiergate predict-eval`, run as an operator would on small files made here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xgboost")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A hundred and twenty finished requests of two kinds, with lengths that differ tenfold."""
    draw = random.Random(1)
    path = tmp_path / "finished.jsonl"
    with path.open("w") as out:
        for i in range(120):
            is_long = draw.random() < 0.5
            task = "Write a long story about" if is_long else "Answer yes or no: is it"
            length = round((400 if is_long else 40) * draw.uniform(0.7, 1.4))
            out.write(json.dumps({"prompt": f"{task} thing {i}", "output_tokens": length}) + "\n")
    return path


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Forty conversations of three turns; some people get long answers, others short ones."""
    draw = random.Random(2)
    lines = ["conversation,turn,input_tokens,output_tokens"]
    for talk in range(40):
        usual, context = draw.choice([20, 80, 300]), 0
        for turn in range(3):
            asked, said = draw.randint(5, 60), round(usual * draw.uniform(0.6, 1.6))
            lines.append(f"{talk},{turn},{context + asked},{said}")
            context += asked + said
    path = tmp_path / "talks.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_table_stands_ours_beside_plain_predictors(tiergate: Any, finished: Path) -> None:
    done = tiergate("predict-eval", "--data", str(finished))
    assert (done.code, done.err) == (0, "")
    assert "learned from 96 answers, tested on 24 others" in done.out
    for name in ("ours", "constant", "prompt length", "ridge", "nearest neighbour"):
        assert name in done.out
    assert "below the predicted p90" in done.out


def test_json_has_the_documented_keys_and_seeds_repeat(
    tiergate: Any, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    done = tiergate("predict-eval", "--data", str(finished), "--seed", "3", "--json", str(out))
    assert done.code == 0
    found = json.loads(out.read_text())
    assert {
        "pairwise_order_accuracy", "kendall_tau", "p90_coverage", "mae_tokens", "predict_ms",
        "predict_ms_p99", "n_train", "n_test", "seed", "baselines", "model_bytes",
    } <= set(found)  # fmt: skip
    assert found["seed"] == 3
    assert found["pairwise_order_accuracy"] > 0.7
    assert found["baselines"]["constant"]["kendall_tau"] is None
    again = tiergate("predict-eval", "--data", str(finished), "--seed", "3", "--json", "-").json
    for key in ("pairwise_order_accuracy", "kendall_tau", "p90_coverage", "mae_tokens"):
        assert again[key] == found[key]


def test_conversations_are_kept_whole_and_later_turns_told_apart(
    tiergate: Any, talks: Path
) -> None:
    found = tiergate("predict-eval", "--data", str(talks), "--json", "-").json
    assert (found["n_train"], found["n_test"], found["n_later_turns"]) == (96, 24, 16)
    assert found["later_turns"]["ours"]["pairwise_order_accuracy"] > 0.7


def test_a_files_usual_model_is_named(tiergate: Any, tmp_path: Path) -> None:
    path = tmp_path / "models.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"Say {i}", "out_tok": {"m1": i + 1, "m2": 2 * i + 1}}) + "\n"
            for i in range(40)
        )
    )
    done = tiergate("predict-eval", "--data", str(path), "--json", "-")
    assert done.code == 0
    assert "lengths of m2" in done.err
    assert done.json["model_column"] == "m2"
    other = tiergate("predict-eval", "--data", str(path), "--model-column", "m1", "--json", "-")
    assert (other.code, other.json["model_column"], other.err) == (0, "m1", "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--train-share", "1"), "--train-share: must be above 0"),
        (("--train-share", "nan"), "--train-share: must be above 0"),
        (("--train-share", "0.05"), "rows to train on are too few"),
        (("--seed", "-1"), "--seed: must be from 0"),
        (("--model-column", "gpt"), "no column or model 'gpt'"),
        (("--json", "/nowhere/at/all.json"), "cannot be written"),
        (("--prompts", "/nowhere/prompts"), "No such file"),
    ],
)
def test_bad_requests_get_one_line(
    tiergate: Any, finished: Path, more: tuple[str, ...], said: str
) -> None:
    done = tiergate("predict-eval", "--data", str(finished), *more)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""


def test_the_result_never_takes_the_place_of_the_data(tiergate: Any, finished: Path) -> None:
    before = finished.read_bytes()
    done = tiergate("predict-eval", "--data", str(finished), "--json", str(finished))
    assert (done.code, "named twice" in done.err) == (2, True)
    assert finished.read_bytes() == before
