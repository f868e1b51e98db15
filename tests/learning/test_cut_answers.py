"""What is learned of answers that were cut off, by their limit or by clients that left."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from engine.core.request import FinishReason
from engine.core.stats import RequestStats
from engine.learning.lognormal import LogGuess
from engine.learning.predictor import LearnedPredictor
from engine.learning.question import Question
from engine.learning.scoreboard import Scoreboard, Track
from gateway.lengths import Lengths


def question(number: int, max_tokens: int) -> Question:
    return Question("acme", f"tell me about item {number} please", 20, max_tokens)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_one_in_ten_is_above_its_high_guess_also_where_many_are_cut(share: float) -> None:
    """Others are 20 to 80 tokens long: a cut one at 300 that was promised 60 is a miss."""
    rng = random.Random(1)
    predictor, above = LearnedPredictor("m", every=20), 0
    for number in range(800):
        asked = question(rng.randint(0, 9999), 300)
        guess = predictor.predict(str(number), asked)
        is_cut = rng.random() < share
        length = 300 if is_cut else rng.randint(20, 80)
        above += number >= 400 and length > guess.high
        predictor.observe(str(number), length, is_whole=not is_cut)
    assert above / 400 == pytest.approx(0.1, abs=0.05)
    assert predictor.stats().high_coverage == pytest.approx(0.9, abs=0.07)


@dataclass(frozen=True, slots=True)
class Asker:
    """A predictor with the door's part around it."""

    lengths: Lengths
    predictor: LearnedPredictor

    def ends(self, name: str, reason: FinishReason, num_tokens: int) -> None:
        self.lengths.on_finish(
            RequestStats(
                request_id=name,
                tenant="acme",
                tier="free",
                finish_reason=reason,
                arrival_ns=0,
                finished_ns=1,
                first_scheduled_ns=None,
                first_token_ns=None,
                last_token_ns=None,
                num_prompt_tokens=20,
                num_cached_tokens=0,
                num_output_tokens=num_tokens,
                preemptions=0,
            )
        )


@pytest.fixture
def asker() -> Asker:
    predictor = LearnedPredictor("m", every=20)
    lengths = Lengths(lambda _fingerprint: predictor)
    lengths.open("m")  # it learns at once: there is nothing to close
    return Asker(lengths, predictor)


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.EXPIRED])
def test_clients_that_do_not_wait_do_not_make_answers_short(
    asker: Asker, reason: FinishReason
) -> None:
    """Half of the answers have some 1,000 tokens, of which their clients see 300."""
    rng = random.Random(1)
    for number in range(600):
        asker.predictor.predict(str(number), question(rng.randint(0, 9999), 2048))
        length = rng.choice([40, 60, 800, 1200])
        asker.ends(str(number), reason if length > 300 else FinishReason.STOP, min(length, 300))
    assert asker.predictor.stats().learned == 600
    guess = asker.predictor.predict("next", question(77_777, 2048))
    assert guess.high > 300


@pytest.mark.parametrize(
    ("reason", "num_tokens"),
    [(FinishReason.FAILED, 40), (FinishReason.REJECTED, 0), (FinishReason.CANCELLED, 0)],
)
def test_what_says_nothing_of_the_answer_is_forgotten(
    asker: Asker, reason: FinishReason, num_tokens: int
) -> None:
    asker.predictor.predict("a", question(1, 100))
    asker.ends("a", reason, num_tokens)
    stats = asker.predictor.stats()
    assert (stats.learned, stats.open_questions) == (0, 0)


def test_a_cut_answer_moves_the_spread_only_where_it_is_surely_a_miss() -> None:
    track, guess = Track(), LogGuess(5.0, 0.2)
    track.cut(guess, guess.high_log)
    assert track.stretch == 0.0
    track.cut(guess, guess.high_log + 0.1)
    assert track.stretch > 0.0
    assert (track.count, track.error) == (0, 0.0)  # how far it was off nobody knows


def test_cut_answers_count_for_the_high_guess_only() -> None:
    board = Scoreboard()
    for middle, high, true, is_whole in (
        (1.0, 2.0, 1.0, True),
        (2.0, 3.0, 2.5, True),
        (1.0, 2.0, 6.0, False),
        (1.0, 7.0, 6.0, False),
    ):
        board.add(middle, high, true, is_whole=is_whole)
    assert board.read() == (0.25, 0.75, 1.0)
