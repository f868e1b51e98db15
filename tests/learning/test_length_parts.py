"""The parts of the model of lengths, each against a second way to the same result."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.learning.cues import NAMES, asked_for, cues, words_of
from engine.learning.features import (
    CONVERSATION_NAMES,
    NUM_NUMBERS,
    NUMBER_NAMES,
    conversation,
    featurise,
)
from engine.learning.grams import MOST_GRAMS, NUM_GRAMS, gram_key, grams
from engine.learning.kernel_ridge import fit_ridge, gaussian, gram_kernel, weigh
from engine.learning.neighbours import Neighbours, fold, folding
from engine.learning.question import MOST_TEXT, Question, bounded
from engine.learning.scale import LengthScale
from engine.learning.trees import QUANTILES, fit_trees

ROOT = Path(__file__).parents[2]


def cue(text: str, name: str) -> float:
    return float(cues(text, words_of(text))[NAMES.index(name)])


@pytest.mark.parametrize(
    ("text", "tokens", "items"),
    [
        ("Write a 500 word essay.", 500 * 1.35, 0),
        ("Write 800-1000 words on tea.", 1000 * 1.35, 0),
        ("Explain it in two sentences.", 44, 0),
        ("Give me ten good ideas.", 0, 10),
        ("Name a dozen rivers of France.", 0, 12),
        ("He is 40 years old.", 0, 0),
        ("写一篇2000字小说", 2000, 0),
        ("What is a word?", 1.35, 0),
    ],
)
def test_what_is_asked_for_by_number_is_read(text: str, tokens: float, items: float) -> None:
    found = asked_for(words_of(text))
    assert np.expm1(found[0]) == pytest.approx(tokens, rel=1e-6)
    assert np.expm1(found[2]) == pytest.approx(items, rel=1e-6)


def test_kinds_of_task_are_told_apart() -> None:
    assert cue("Translate this into French: tea", "translate asked") > 0
    assert cue("Write a Python function that sorts", "code asked") > 0
    assert cue("Answer with yes or no.", "choice asked") > 0
    assert cue("Is it late?", "opening 0") == 1
    assert cue("Is it late?", "ends asking") == 1
    assert cue("Напиши рассказ о море", "long form asked") > 0
    middle = "tea " * 60 + "translate " + "tea " * 60
    assert (cue(middle, "translate asked"), cue(middle, "translate anywhere") > 0) == (0, True)


@given(text=st.text(max_size=9000), secret=st.binary(max_size=32))
def test_any_text_becomes_bounded_numbers(text: str, secret: bytes) -> None:
    """Numbers are finite where they do not depend on history, and grams distinct and ascending."""
    short = bounded(text)
    assert len(short) <= MOST_TEXT
    found = featurise(Question("t", short, 5, 9), key=gram_key(secret))
    assert found.numbers.shape == (NUM_NUMBERS,) == (len(NUMBER_NAMES),)
    assert np.isfinite(found.numbers[: len(NAMES)]).all()
    assert len(found.grams) <= MOST_GRAMS
    assert (np.diff(found.grams.astype(np.int64)) > 0).all()


def test_grams_are_the_same_in_another_process_and_not_under_another_key() -> None:
    words = words_of("Stable hashes, whatever PYTHONHASHSEED says")
    code = (
        "from engine.learning.grams import gram_key, grams;"
        "from engine.learning.cues import words_of;"
        "words = words_of('Stable hashes, whatever PYTHONHASHSEED says');"
        "print(grams(words, gram_key(b'7')).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={"PYTHONHASHSEED": "123"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(grams(words, gram_key(b"7")).tolist())
    one, other = (set(grams(words, gram_key(secret)).tolist()) for secret in (b"7", b"8"))
    assert len(one & other) < len(words) / 2


def test_without_the_key_a_words_gram_follows_from_no_other_words() -> None:
    """Grams of equally long words differ otherwise under every key: a salt would only shift them.

    So knowing what some words became does not tell what another one is.
    """
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrt"]
    crcs = np.array([zlib.crc32(b"w" + word.encode()) for word in words], np.uint32)
    told = [gram_key(bytes([number])).hashed(crcs) for number in range(40)]
    between = np.stack([grams_of ^ grams_of[0] for grams_of in told])[:, 1:]
    assert len(np.unique(between, axis=0)) == 40
    bits = np.unpackbits(np.stack(told).view(np.uint8), axis=1)
    assert abs(float(bits.mean()) - 0.5) < 0.02
    assert len({key.check for key in map(gram_key, (b"1", b"2", b"1"))}) == 2
    assert gram_key(b"1").hashed(crcs).tolist() == gram_key(b"1").hashed(crcs).tolist()


def test_grams_of_no_secret_are_what_they_were() -> None:
    """Simulations and evaluations made before the key still hold: the CRC's lower half."""
    found = grams(["tea"])
    keys = (b"00tea", b"e0tea", b"otea", b"Otea", b"wtea")
    assert found.tolist() == sorted(zlib.crc32(key) & 0xFFFF for key in keys)


def test_what_a_conversation_says_is_what_its_names_say() -> None:
    asked = Question("t", "", 200, 9, (10, 30), asked_tokens=(5, 40, 5))
    found = dict(zip(CONVERSATION_NAMES, conversation(asked), strict=True))
    low, high = np.log1p([10, 30])
    assert found["last answer"] == pytest.approx(high)
    assert found["recent answers"] == pytest.approx((low + high) / 2)
    assert found["is first"] == 0.0
    assert found["log all asked"] == pytest.approx(np.log1p(160))
    # The turn that was as short as this one was told 10 tokens.
    assert abs(found["answers to the like"] - low) < 0.1 * abs(high - low)
    first = dict(zip(CONVERSATION_NAMES, conversation(Question("t", "", 4, 9)), strict=True))
    assert (first["is first"], first["log answers before"]) == (1.0, 0.0)


def made_rows(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    rows = [
        np.unique(draw.zipf(1.5, draw.integers(0, 30)).clip(1, NUM_GRAMS - 1)).astype(np.uint16)
        for _ in range(count)
    ]
    numbers = draw.normal(size=(count, NUM_NUMBERS)).astype(np.float32)
    numbers[draw.random(numbers.shape) < 0.1] = np.nan
    return rows, numbers, draw.normal(size=count).astype(np.float32)


def test_the_gram_kernel_is_the_product_of_the_dense_matrix() -> None:
    rows, _, _ = made_rows(90, 1)
    _, values = weigh(rows)
    dense = np.zeros((90, NUM_GRAMS))
    for row, grams_of, value in zip(dense, rows, values, strict=True):
        row[grams_of] = value
    np.testing.assert_allclose(gram_kernel(rows, values), dense @ dense.T, atol=1e-5)


def test_left_out_predictions_are_those_of_a_ridge_that_was_not_told() -> None:
    """The closed form against solving again without the row, on the very same kernel."""
    rows, numbers, targets = made_rows(40, 2)
    noise = np.full(40, 0.7, np.float32)
    ridge, left_out = fit_ridge(rows, numbers, targets, noise)
    kernel = gram_kernel(rows, weigh(rows)[1])
    kernel += gaussian(ridge.cues, 0.5) + gaussian(ridge.context, 0.25)
    mean = targets.mean()
    for i in (0, 17, 39):
        rest = np.delete(np.arange(40), i)
        inside = kernel[np.ix_(rest, rest)] + 0.7 * np.eye(39)
        alone = mean + kernel[i, rest] @ np.linalg.solve(inside, targets[rest] - mean)
        assert left_out[i] == pytest.approx(alone, abs=1e-3)


def test_a_prediction_is_the_kernels() -> None:
    rows, numbers, targets = made_rows(40, 3)
    ridge, left_out = fit_ridge(rows, numbers, targets, np.full(40, 1e-3, np.float32))
    told = [ridge.predict(*one) for one in zip(rows, numbers, strict=True)]
    np.testing.assert_allclose(told, targets, atol=0.05)  # hardly any noise: it goes through
    assert np.abs(left_out - targets).mean() > 0.1


def test_trees_say_what_the_library_says() -> None:
    xgboost = pytest.importorskip("xgboost")
    draw = np.random.default_rng(4)
    numbers = draw.normal(size=(300, 12)).astype(np.float32)
    numbers[draw.random(numbers.shape) < 0.1] = np.nan
    targets = np.nan_to_num(numbers[:, 0]) + 0.3 * draw.normal(size=300).astype(np.float32)
    made: list[xgboost.Booster] = []
    whole = xgboost.train

    def train(*args: object, **more: object) -> xgboost.Booster:
        made.append(whole(*args, **more))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xgboost, "train", train)
        trees = fit_trees(numbers, targets, rounds=30, seed=1)
    np.testing.assert_allclose(
        trees.predict_many(numbers), made[0].inplace_predict(numbers), atol=1e-5
    )
    below = (targets[:, None] <= trees.predict_many(numbers)).mean(axis=0)
    np.testing.assert_allclose(below, QUANTILES, atol=0.12)


def test_the_nearest_rows_answer_and_never_the_row_itself() -> None:
    rows = [grams(words_of(text)) for text in ("the red fox runs", "the blue sea is wide")]
    rows = [rows[0], rows[0], rows[1]]
    idf, places, signs = np.ones(NUM_GRAMS, np.float32), *folding()
    index = Neighbours(
        np.stack([fold(row, idf, places, signs) for row in rows]),
        np.array([1.0, 3.0, 9.0], np.float32),
    )
    said = index.near(fold(rows[2], idf, places, signs))
    assert said[1] == pytest.approx(1.0, abs=1e-5)
    assert said[0] == pytest.approx(9.0, abs=0.1)
    others = index.near_others()
    np.testing.assert_allclose(others[:2, 0], [3.0, 1.0], atol=0.1)
    assert others[2, 1] < 0.5


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=400))
def test_a_scale_rises_and_comes_back(lengths: list[int]) -> None:
    """Scores order as lengths do; a length seen has a score that leads back to it."""
    logs = np.log1p(np.array(lengths, np.float64)).astype(np.float32)
    scale = LengthScale.of(logs)
    scores = scale.score(np.sort(logs))
    assert (np.diff(scores) >= 0).all()
    back = [scale.log(float(score)) for score in scores]
    if len(set(lengths)) <= 201:
        np.testing.assert_allclose(back, np.sort(logs), atol=2e-3)
    assert scale.log(99.0) > scale.log(9.0) >= scale.log(-9.0) > scale.log(-99.0)
