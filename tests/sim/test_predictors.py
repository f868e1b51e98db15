"""Predictors of the simulator: how wrong each one is, and that order of asking changes nothing."""

from __future__ import annotations

import gzip
import math
import statistics
from pathlib import Path

import pytest
from sim_world import DATA

from engine.core.length_predictor import HistoryPredictor
from engine.core.request import RequestOrder, SamplingParams
from engine.sim.predictors import PredictorError, make_predictor

LENGTHS = {f"r{n}": 20 + n % 400 for n in range(4000)}


def order(name: str, most: int = 1 << 20) -> RequestOrder:
    return RequestOrder(name, (0,), SamplingParams(max_tokens=most), 0)


@pytest.mark.parametrize("text", ["noisy:0.7", "noisy", "oracle", "liar", "constant:9"])
def test_an_answer_depends_on_seed_and_id_alone(text: str) -> None:
    """Asked backwards, or twice, each request gets the same guess."""
    one, other = (make_predictor(text, LENGTHS, 3) for _ in range(2))
    forwards = {name: one.predict(order(name)) for name in LENGTHS}
    backwards = {name: other.predict(order(name)) for name in reversed(LENGTHS)}
    assert forwards == backwards
    assert forwards == {name: one.predict(order(name)) for name in LENGTHS}


def test_noise_is_log_normal_and_nine_in_ten_are_below_high() -> None:
    """The factor's logarithm has mean 0 and the asked spread; high is the 90th percentile."""
    predictor = make_predictor("noisy:0.4", LENGTHS, 0)
    guesses = {name: predictor.predict(order(name)) for name in LENGTHS}
    logs = [math.log(guesses[name].middle / length) for name, length in LENGTHS.items()]
    assert statistics.fmean(logs) == pytest.approx(0, abs=0.03)
    assert statistics.pstdev(logs) == pytest.approx(0.4, rel=0.05)
    below = sum(length <= guesses[name].high for name, length in LENGTHS.items())
    assert below / len(LENGTHS) == pytest.approx(0.9, abs=0.02)
    other = make_predictor("noisy:0.4", LENGTHS, 1)
    assert other.predict(order("r1")) != guesses["r1"]


def test_the_oracle_knows_and_the_liar_turns_it_round() -> None:
    """One orders as the truth does, the other exactly against it."""
    oracle, liar = (make_predictor(text, LENGTHS, 0) for text in ("oracle", "liar"))
    by_truth = sorted(LENGTHS.values())
    said = sorted(LENGTHS, key=lambda name: oracle.predict(order(name)).middle)
    assert [LENGTHS[name] for name in said] == by_truth
    lied = sorted(LENGTHS, key=lambda name: liar.predict(order(name)).middle)
    assert [LENGTHS[name] for name in lied] == by_truth[::-1]


def test_no_guess_exceeds_what_may_be_generated() -> None:
    """max_tokens caps middle and high."""
    for text in ("oracle", "noisy", "liar", "constant:500", "history"):
        guess = make_predictor(text, LENGTHS, 0).predict(order("r300", 7))
        assert 1 <= guess.middle <= guess.high <= 7


def test_history_is_the_cores_own() -> None:
    """The predictor of the real engine can be simulated too."""
    assert isinstance(make_predictor("history", LENGTHS, 0), HistoryPredictor)


def test_a_histogram_answers_with_the_class_it_drew(tmp_path: Path) -> None:
    """Class 0 said of all short answers, class 1 of half of the long ones."""
    path = tmp_path / "h.csv"
    path.write_text("predicted_class5,output_tokens_bin_lo16,count\n0,0,10\n0,160,5\n1,160,5\n")
    lengths = {"short": 3, **{f"long{n}": 165 for n in range(400)}, "tail": 9999}
    predictor = make_predictor(f"histogram:{path}", lengths, 0)
    # Class 0 holds ten of [0, 16) and five of [160, 176): the 7.5th is in the first bin.
    assert predictor.predict(order("short")).middle == pytest.approx(12.0)
    assert predictor.predict(order("short")).high == pytest.approx(160 + 16 * 0.7)
    middles = [predictor.predict(order(f"long{n}")).middle for n in range(400)]
    assert set(middles) == {12.0, 168.0}
    assert middles.count(168.0) == pytest.approx(200, abs=40)
    assert predictor.predict(order("tail")).middle in {12.0, 168.0}


def test_only_the_end_of_a_line_ends_a_histograms_row(tmp_path: Path) -> None:
    """Other columns are ignored, whatever signs and quoted lines are in them."""
    path, head = tmp_path / "h.csv", "note,predicted_class5,output_tokens_bin_lo16,count"
    path.write_text(f'{head}\na\u2028b\x85c,0,0,10\n"two\nlines",1,160,5\n', "utf-8")
    predictor = make_predictor(f"histogram:{path}", {"short": 3, "long": 165}, 0)
    assert predictor.predict(order("short")).middle == pytest.approx(8.0)
    assert predictor.predict(order("long")).middle == pytest.approx(168.0)


@pytest.mark.skipif(not DATA.exists(), reason="the shared calibration is not on this machine")
def test_the_published_histogram_orders_better_than_chance() -> None:
    """SSJF's predictor errs much, but long answers get longer guesses on the whole."""
    path = DATA / "calibration" / "ssjf_bert_predictor_joint_histogram.csv.gz"
    predictor = make_predictor(f"histogram:{path}", LENGTHS, 0)
    short = [predictor.predict(order(n)).middle for n, length in LENGTHS.items() if length < 60]
    long = [predictor.predict(order(n)).middle for n, length in LENGTHS.items() if length > 350]
    assert statistics.fmean(short) * 2 < statistics.fmean(long)
    assert len(set(short)) > 1


@pytest.mark.parametrize(
    "text", ["", "psychic", "noisy:-1", "noisy:x", "constant", "constant:0", "oracle:1", "liar:2"]
)
def test_an_unknown_predictor_is_refused_in_one_sentence(text: str) -> None:
    """It repeats what was given."""
    with pytest.raises(PredictorError) as error:
        make_predictor(text, LENGTHS, 0)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"predicted_class5,count\n0,1\n", "output_tokens_bin_lo16 is missing"),
        (b"predicted_class5,output_tokens_bin_lo16,count\n0,0,1\n0,x,1\n", "row 2"),
        (b"predicted_class5,output_tokens_bin_lo16,count\n0,0,0\n", "not be negative, nor all 0"),
        (b"predicted_class5,output_tokens_bin_lo16,count\n0,0,-2\n0,16,9\n", "not be negative"),
        (gzip.compress(b"x" * 500)[:-9], "h.csv"),
    ],
)
def test_a_bad_histogram_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, says: str
) -> None:
    """It names the file and what is wrong."""
    path = tmp_path / "h.csv"
    path.write_bytes(content)
    with pytest.raises(PredictorError, match=says):
        make_predictor(f"histogram:{path}", LENGTHS, 0)
