"""What is still to come of an answer: never nothing, never more than allowed, and honest."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.length_predictor import MOST_Z, remaining_high, remaining_tokens
from engine.core.request import LengthEstimate

LENGTHS = st.floats(1.0, 1e6)


@st.composite
def estimates(draw: st.DrawFn) -> LengthEstimate:
    middle = draw(LENGTHS)
    return LengthEstimate(middle, middle * draw(st.floats(1.0, 50.0)))


@given(LENGTHS, st.integers(0, 100_000), st.integers(1, 100_000))
def test_what_remains_is_never_nothing_and_never_more_than_allowed(
    guess: float, generated: int, most: int
) -> None:
    """However far a guess is overrun; a guess that holds is what is left of it."""
    left = remaining_tokens(guess, generated, most)
    assert 1.0 <= left <= max(1.0, most - generated)
    if generated + 1 <= guess <= most:
        assert left == pytest.approx(guess - generated)


@given(estimates(), st.integers(0, 100_000), st.integers(1, 100_000))
def test_the_high_remainder_has_the_same_bounds(
    estimate: LengthEstimate, generated: int, most: int
) -> None:
    """At least 1, within max_tokens, and a number."""
    left = remaining_high(estimate, generated, most)
    assert 1.0 <= left <= max(1.0, most - generated)


@given(estimates(), st.integers(1, 5000))
def test_the_whole_never_looks_shorter_the_longer_it_gets(
    estimate: LengthEstimate, generated: int
) -> None:
    """What was generated and what may remain, together, only grow; before the start it is high."""
    huge = 1 << 60
    now = generated + remaining_high(estimate, generated, huge)
    later = generated + 1 + remaining_high(estimate, generated + 1, huge)
    assert later >= now * (1 - 1e-3) - 1
    assert remaining_high(estimate, 0, huge) == pytest.approx(estimate.high)


@pytest.mark.parametrize("spread", [0.3, 0.8, 1.5])
def test_nine_of_ten_end_below_the_high_remainder_wherever_they_are_asked(spread: float) -> None:
    """Of lengths that are as guessed, at any point of their way, overrun or not."""
    rng = random.Random(1)
    estimate = LengthEstimate(2000.0, 2000.0 * math.exp(1.2816 * spread))
    lengths = [2000.0 * math.exp(rng.gauss(0, spread)) for _ in range(20_000)]
    for quantile in (0.05, 0.3, 0.5, 0.7, 0.9):
        generated = round(sorted(lengths)[int(quantile * len(lengths))])
        left = [length - generated for length in lengths if length > generated]
        high = remaining_high(estimate, generated, 1 << 60)
        assert sum(one <= high for one in left) / len(left) == pytest.approx(0.9, abs=0.02)


def test_whoever_is_sure_of_itself_is_taken_at_its_word() -> None:
    """Middle and high the same: what is left of it, and after that the simple rule."""
    sure = LengthEstimate(100.0, 100.0)
    assert remaining_high(sure, 40, 1000) == 60.0
    assert remaining_high(sure, 200, 1000) == remaining_tokens(100.0, 200, 1000) == 100.0


@given(st.floats(0.05, 2.0))
def test_there_is_no_step_where_the_table_ends(spread: float) -> None:
    """The two forms of the tail meet within a few percent."""
    estimate = LengthEstimate(50.0, 50.0 * math.exp(1.2816 * spread))
    edge = 50.0 * math.exp(MOST_Z * spread)
    before = remaining_high(estimate, math.floor(edge * 0.999), 1 << 60)
    after = remaining_high(estimate, math.ceil(edge * 1.001), 1 << 60)
    assert after == pytest.approx(before, rel=0.12, abs=2.0)
