"""Running numbers: histories, first guesses, cut answers, drift, and the record of guesses."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.learning.cold import PRIOR, first_guess
from engine.learning.drift import DriftDetector
from engine.learning.features import NO_HISTORY
from engine.learning.history import WINDOW, LengthHistory
from engine.learning.lognormal import LogGuess, completed, guess_of
from engine.learning.scoreboard import Scoreboard, Track

LOGS = st.floats(0.0, 12.0)


@given(st.lists(st.tuples(LOGS, st.floats(0, 23.99)), min_size=1, max_size=300))
def test_a_history_tells_the_quantiles_of_its_newest_answers(
    answers: list[tuple[float, float]],
) -> None:
    """Whatever came: low, middle and high are those of the window, the means lie within it."""
    history = LengthHistory()
    for log, hour in answers:
        history.add(log, hour)
    newest = sorted(log for log, _ in answers[-WINDOW:])
    reading = history.reading(answers[-1][1])
    assert reading.num_answers == len(answers)
    assert reading.middle == pytest.approx(statistics.median(newest))
    assert newest[0] <= reading.low <= reading.middle <= reading.high <= newest[-1]
    low, high = min(log for log, _ in answers), max(log for log, _ in answers)
    for mean in (reading.mean, reading.recent, reading.hour):
        assert low - 1e-6 <= mean <= high + 1e-6


@given(st.lists(st.tuples(LOGS, st.floats(0, 23.99)), max_size=200))
def test_a_history_comes_back_from_its_fields(answers: list[tuple[float, float]]) -> None:
    """And goes on alike."""
    history = LengthHistory()
    for log, hour in answers:
        history.add(log, hour)
    other = LengthHistory.of(dataclasses.asdict(history.fields()))
    for one in (history, other):
        one.add(3.0, 5.0)
    assert other.fields() == history.fields()
    assert other.reading(5.0) == history.reading(5.0)


@pytest.mark.parametrize(
    "change",
    [
        {"window": [1.0] * (WINDOW + 1), "num_answers": 999},
        {"window": []},
        {"mean": math.nan},
        {"hours": [(1, 2, math.inf)]},
        {"num_answers": 1},
    ],
)
def test_fields_that_do_not_fit_together_are_refused(change: dict[str, object]) -> None:
    """Numbers that no history can have never get in."""
    history = LengthHistory()
    for log in (1.0, 2.0, 3.0):
        history.add(log, 0.0)
    with pytest.raises(ValueError):
        LengthHistory.of(dataclasses.asdict(history.fields()) | change)


def test_what_came_before_a_change_can_be_forgotten() -> None:
    """After `keep_newest` only the newest answers speak."""
    history = LengthHistory()
    for log in [2.0] * 50 + [6.0] * 5:
        history.add(log, 1.0)
    history.keep_newest(5)
    reading = history.reading(1.0)
    assert (reading.num_answers, reading.mean, reading.middle) == (5, 6.0, 6.0)
    history.keep_newest(0)
    assert history.reading(1.0) == NO_HISTORY


def test_first_guesses_go_from_the_prior_to_the_tenant_to_the_conversation() -> None:
    """Each draws the guess towards itself, and two answers draw more than one."""
    assert first_guess((), NO_HISTORY) == PRIOR
    history = LengthHistory()
    for _ in range(50):
        history.add(math.log1p(20), 0.0)
    tenant = first_guess((), history.reading(0.0))
    assert math.expm1(tenant.log) == pytest.approx(20, rel=0.3)
    once = first_guess((500,), history.reading(0.0))
    twice = first_guess((500, 500), history.reading(0.0))
    assert tenant.log < once.log < twice.log < math.log1p(500)
    assert tenant.spread > once.spread > twice.spread > 0


@given(st.floats(0, 20), st.floats(0.05, 3), st.integers(1, 100_000))
def test_an_estimate_stays_within_what_may_be_generated(
    log: float, spread: float, most: int
) -> None:
    """At least one token, at most max_tokens, and the high one is not below the middle."""
    guess = LogGuess(log, spread).estimate(most)
    assert 1.0 <= guess.middle <= guess.high <= most


def test_a_guess_survives_as_an_estimate() -> None:
    """Middle and 90th percentile say the same as log and spread."""
    found = guess_of(LogGuess(5.0, 0.7).estimate(1 << 30))
    assert (found.log, found.spread) == (pytest.approx(5.0), pytest.approx(0.7))


@given(LOGS, st.floats(0, 12), st.floats(0.05, 3))
def test_a_cut_answer_never_counts_as_shorter_than_it_was(
    cut: float, log: float, spread: float
) -> None:
    """It counts as what was guessed, or, beyond that, as somewhat more than was seen."""
    counted = completed(cut, False, LogGuess(log, spread))
    assert counted >= cut
    assert counted == log if log >= cut else counted <= cut + 2 * spread
    assert completed(cut, True, LogGuess(log, spread)) == cut


def test_cut_answers_are_learned_as_the_lower_bounds_they_are() -> None:
    """Of lengths around 400, most of them cut at 150, the history still says some hundreds."""
    rng = random.Random(0)
    history, cut = LengthHistory(), math.log1p(150)
    for _ in range(600):
        true = rng.gauss(math.log1p(400), 0.5)
        guess = first_guess((), history.reading(0.0))
        history.add(completed(min(true, cut), true <= cut, guess), 0.0)
    assert math.expm1(history.reading(0.0).middle) > 200


def test_steady_errors_raise_no_alarm_and_others_do() -> None:
    """Long tails are usual; three times the error is found soon, and since when."""
    rng = random.Random(2)
    detector = DriftDetector()
    steady = [abs(rng.gauss(0, 1)) ** 2 for _ in range(3000)]
    assert not any(detector.add(error) for error in steady)
    found = []
    for number in range(200):
        since = detector.add(3 * abs(rng.gauss(0, 1)) ** 2)
        if since:
            found.append((number + 1, since))
    assert len(found) == 1
    number, since = found[0]
    assert number < 120
    assert abs(number - since) < 30


def test_the_high_guess_follows_its_misses() -> None:
    """A spread that is four times too narrow is widened until nine in ten are below the high."""
    rng = random.Random(3)
    track, below = Track(), 0
    for number in range(1200):
        guess = LogGuess(5.0, 0.2)
        true = rng.gauss(5.0, 0.8)
        wide = track.widened(guess)
        if number >= 400:
            below += true <= wide.high_log
        track.add(guess, true)
    assert below / 800 == pytest.approx(0.9, abs=0.03)


def test_the_record_of_guesses_counts_pairs_and_misses() -> None:
    """Equal guesses are half right; nothing is known before anything ended."""
    board = Scoreboard()
    assert all(math.isnan(number) for number in board.read())
    for middle, high, true in ((1.0, 2.0, 1.0), (2.0, 3.0, 4.0), (2.0, 9.0, 6.0)):
        board.add(middle, high, true)
    error, coverage, order = board.read()
    assert error == pytest.approx((0 + 2 + 4) / 3)
    assert coverage == pytest.approx(2 / 3)
    assert order == pytest.approx(2.5 / 3)
