"""The model of lengths: bounds, determinism, its bytes, and that it beats a plain ridge."""

from __future__ import annotations

import io
import math
import random
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.learning.features import NO_HISTORY, History, featurise
from engine.learning.grams import NUM_GRAMS, gram_key
from engine.learning.length_model import FEWEST_ROWS, LengthModel
from engine.learning.question import MOST_TEXT, Question, bounded
from engine.learning.rows import Row, StateError, pack, pack_rows, unpack, unpack_rows

TOPICS = [
    "rivers",
    "birds",
    "engines",
    "taxes",
    "bread",
    "music",
    "planets",
    "chess",
    "winter",
    "glass",
]
TASKS = {
    "Write a long story about {}.": 600,
    "Write a detailed essay on {} and {}.": 450,
    "Give me {n} facts about {}.": 0,
    "What is the capital of the land of {}?": 10,
    "Is {} heavier than {}? Answer yes or no.": 3,
    "Summarize what is known of {}.": 120,
}


def question(draw: random.Random) -> tuple[Question, int]:
    """A made-up question, and the length its answer would have."""
    task = draw.choice(list(TASKS))
    number = draw.randint(2, 12)
    text = task.replace("{n}", str(number))
    while "{}" in text:
        text = text.replace("{}", draw.choice(TOPICS), 1)
    middle = TASKS[task] or 15 * number
    length = max(1, round(middle * math.exp(draw.gauss(0, 0.25))))
    return Question("acme", text, 10 + len(text) // 4, 1024), length


def rows(count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    made = [question(draw) for _ in range(count)]
    return [Row(featurise(asked), length) for asked, length in made]


@pytest.fixture(scope="module")
def model() -> LengthModel:
    return LengthModel.fit(rows(300, 1), seed=3)


def test_equal_rows_and_seeds_make_equal_models(model: LengthModel) -> None:
    again = LengthModel.fit(rows(300, 1), seed=3)
    assert [again.guess(row.features) for row in rows(40, 2)] == [
        model.guess(row.features) for row in rows(40, 2)
    ]


def test_bytes_make_the_same_model(model: LengthModel) -> None:
    again = LengthModel.from_bytes(model.to_bytes())
    assert again.trees is not None
    for row in rows(60, 4):
        assert again.predict(row.features) == model.predict(row.features)


def test_a_model_without_trees_is_kept_as_well() -> None:
    model = LengthModel.fit(rows(FEWEST_ROWS, 5))
    assert model.trees is None
    again = LengthModel.from_bytes(model.to_bytes())
    for row in rows(20, 6):
        assert again.predict(row.features) == model.predict(row.features)


def test_nothing_of_the_text_is_in_the_bytes(model: LengthModel) -> None:
    made = rows(300, 1)
    state = model.to_bytes()
    packed = pack_rows(made)
    for word in (b"story", b"rivers", b"capital", b"acme"):
        assert word not in state
        assert word not in packed


def test_rows_come_back_as_they_were() -> None:
    made = [*rows(30, 7), Row(featurise(Question("t", "", 5, 9)), 9, is_whole=False, source=2)]
    found = unpack_rows(pack_rows(made))
    assert len(found) == len(made)
    for old, new in zip(made, found, strict=True):
        assert (old.length, old.is_whole, old.source) == (new.length, new.is_whole, new.source)
        assert old.features.max_tokens == new.features.max_tokens
        np.testing.assert_array_equal(old.features.grams, new.features.grams)
        np.testing.assert_array_equal(old.features.numbers, new.features.numbers)


def test_no_rows_come_back_as_none() -> None:
    assert unpack_rows(pack_rows([])) == []


def test_an_array_of_a_size_that_nobody_has_is_no_state() -> None:
    """Its header is believed before its bytes are counted: that must not end the gateway."""
    said = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    said += b" " * (-(len(said) + 11) % 64) + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("grams.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said)
    with pytest.raises(StateError):
        unpack_rows(out.getvalue())


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04 and then nothing", pack_rows([])])
def test_other_bytes_are_no_model(data: bytes) -> None:
    with pytest.raises(StateError):
        LengthModel.from_bytes(data)


def test_cut_bytes_are_refused(model: LengthModel) -> None:
    data = model.to_bytes()
    for size in range(0, len(data), max(1, len(data) // 37)):
        with pytest.raises(StateError):
            LengthModel.from_bytes(data[:size])
    with pytest.raises(StateError):
        unpack_rows(data)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        LengthModel.fit(rows(FEWEST_ROWS - 1, 1))


def test_rows_without_text_and_without_differences_can_be_learned_from() -> None:
    same = [Row(featurise(Question("t", "", 0, 64)), 7) for _ in range(250)]
    found = LengthModel.fit(same).predict(same[0].features)
    assert found.middle == pytest.approx(7, rel=0.05)
    assert found.middle <= found.high <= 64


histories = st.one_of(
    st.just(NO_HISTORY),
    st.builds(
        History,
        num_answers=st.integers(0, 10**6),
        mean=st.floats(0, 14),
        recent=st.floats(0, 14),
        high=st.one_of(st.just(math.nan), st.floats(0, 14)),
    ),
)


@pytest.mark.parametrize(
    "change",
    [
        {"num_rows": np.array([np.inf])},
        {"num_rows": np.array([1 << 60])},
        {"KernelRidge.gram_weights": np.zeros(0, np.float32)},
        {"KernelRidge.gram_weights": np.full(NUM_GRAMS, "1")},
        {"KernelRidge.gram_weights": np.float64(1)},
        {"KernelRidge.idf": np.zeros((1, NUM_GRAMS), np.float32)},
    ],
)
def test_a_forged_model_is_refused_when_it_is_read(
    model: LengthModel, change: dict[str, Any]
) -> None:
    """Not found out by the first question that has words in it."""
    with pytest.raises(StateError):
        LengthModel.from_bytes(pack(unpack(model.to_bytes()) | change))


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=6000),
    prompt=st.integers(0, 10**7),
    most=st.integers(1, 10**7),
    previous=st.lists(st.integers(0, 10**7), max_size=70),
    hour=st.floats(0, 24),
    history=histories,
    secret=st.binary(max_size=32),
)
def test_any_question_gets_a_bounded_guess(
    model: LengthModel,
    text: str,
    prompt: int,
    most: int,
    previous: list[int],
    hour: float,
    history: History,
    secret: bytes,
) -> None:
    """Whatever is asked: finite, 1 <= middle <= high <= max_tokens, and the same when repeated."""
    asked = Question("t", bounded(text), prompt, most, tuple(previous), hour)
    assert len(asked.text) <= MOST_TEXT
    features = featurise(asked, history, gram_key(secret))
    found = model.predict(features)
    assert 1 <= found.middle <= found.high <= most
    assert model.predict(featurise(asked, history, gram_key(secret))) == found


def test_a_cut_answer_teaches_no_shorter_answers() -> None:
    """Long answers that were cut at 64 tokens must not make stories look short."""
    made = rows(300, 8)
    cut = [
        Row(row.features, min(row.length, 64), is_whole=row.length <= 64, source=row.source)
        for row in made[150:]
    ]
    honest = LengthModel.fit([*made[:150], *cut])
    fooled = LengthModel.fit([*made[:150], *[Row(r.features, r.length) for r in cut]])
    story = featurise(Question("acme", "Write a long story about chess.", 17, 1024))
    assert honest.predict(story).middle > 1.3 * fooled.predict(story).middle


def test_an_earlier_models_rows_tell_what_is_long_not_how_long() -> None:
    """Thirty answers of a terse model and 250 of a talkative one: right order, terse scale."""
    theirs = [Row(row.features, 5 * row.length, source=1) for row in rows(250, 9)]
    model = LengthModel.fit([*theirs, *rows(30, 10)])
    story = featurise(Question("acme", "Write a long story about glass.", 17, 4096))
    short = featurise(Question("acme", "What is the capital of the land of bread?", 17, 4096))
    assert 300 < model.predict(story).middle < 1200
    assert model.predict(short).middle < 40
