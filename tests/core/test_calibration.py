"""Intervals cover what they say, few data widen them, old data go, and memory is bounded."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.calibration import (
    EXPIRE_NS,
    MOST_OPEN,
    MOST_PAIRS,
    NEWEST_PAIRS,
    PRIOR,
    Band,
    Experience,
    quantile,
)

S = 1_000_000_000


def taught(errors: list[float], *, at_ns: int = S) -> Band:
    band = Band()
    for number, error in enumerate(errors):
        band.said(str(number), 1e9, at_ns)
        band.saw(str(number), 1e9 * math.exp(error), at_ns)
    return band


def test_before_any_outcome_the_interval_is_the_prior() -> None:
    """Nobody has checked this kind of forecast: half as long to thrice is as likely as not."""
    assert Band().errors(0) == sorted(PRIOR)


def test_the_interval_of_many_outcomes_covers_nine_in_ten_of_the_next() -> None:
    """Of 4,000 forecasts with log-normal errors, 90 % fall into the interval, within 3 %."""
    rng = random.Random(7)
    band, covered, count, now_ns = Band(), 0, 0, 0
    for number in range(4000):
        now_ns += S // 10
        error = rng.gauss(0.1, 0.4)
        if number > 300:
            errors = band.errors(now_ns)
            covered += quantile(errors, 0.05) <= error <= quantile(errors, 0.95)
            count += 1
        band.said("x", 1e9, now_ns)
        band.saw("x", 1e9 * math.exp(error), now_ns)
    assert abs(covered / count - 0.90) <= 0.03


def test_who_still_waits_counts_as_late() -> None:
    """Without those still open every band would hold only the lucky."""
    band = taught([0.0] * 40)
    for number in range(40):
        band.said(f"open{number}", 1e9, S)
    later_ns = 100 * S
    assert quantile(band.errors(later_ns), 0.95) > math.log(50)
    assert band.chance(0.5, 0.5, later_ns) < 0.6


def test_old_outcomes_expire() -> None:
    """What was true ten minutes ago no longer decides: the prior is back, and the door open."""
    band = taught([3.0] * 100)
    assert quantile(band.errors(2 * S), 0.5) > 2.9
    assert band.errors(S + EXPIRE_NS + 10 * S) == sorted(PRIOR)
    assert band.chance(0.0, 0.9, S + EXPIRE_NS + 20 * S) == pytest.approx(0.9)


def test_outcomes_are_counted_as_of_now() -> None:
    """Also between two times at which quantiles are made: an expired one is none."""
    band = taught([3.0] * 10)
    band.errors(S + EXPIRE_NS)
    assert band.num_pairs(S + EXPIRE_NS) == 10
    assert band.num_pairs(S + EXPIRE_NS + 1) == 0


def test_whose_time_is_over_is_known_to_have_missed() -> None:
    """Outcomes and overdue ones make a kind checked; those within their time, or long gone, not."""
    band = taught([0.0] * 3)
    for number in range(5):
        band.said(f"open{number}", 2e9, S)
    assert not band.is_checked(8, 3 * S)
    assert band.is_checked(8, 3 * S + 1)
    assert not band.is_checked(9, 3 * S + 1)
    band.forget("open0")
    assert not band.is_checked(8, 3 * S + 1)
    assert band.is_checked(7, S + EXPIRE_NS)
    assert not band.is_checked(1, S + EXPIRE_NS + 1)


def test_a_chance_moves_from_the_prior_to_what_was_seen() -> None:
    """With no outcome it is the prior, with many that miss it goes to nothing."""
    assert Band().chance(0.0, 0.4, S) == pytest.approx(0.4)
    few, many = taught([1.0] * 16), taught([1.0] * 200)
    assert many.chance(0.0, 0.4, S) < few.chance(0.0, 0.4, S) < 0.4


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_ordered_and_within_the_data(
    values: list[float], low: float, high: float
) -> None:
    """A larger share never has a smaller quantile."""
    values.sort()
    low, high = sorted((low, high))
    assert values[0] <= quantile(values, low) <= quantile(values, high) + 1e-9
    assert quantile(values, high) <= values[-1] + 1e-9


def test_memory_is_bounded() -> None:
    """Neither outcomes nor forecasts without one pile up."""
    band = taught([0.0] * (3 * MOST_PAIRS))
    band.errors(2 * S)
    assert band.num_pairs(2 * S) <= MOST_PAIRS
    experience = Experience()
    for number in range(MOST_OPEN + 100):
        experience.expect(str(number), ("free", "queue"), 1e9, 2e9, S, S)
    assert len(experience._open) <= MOST_OPEN
    experience.first_token("0", 2 * S)  # it was pushed out: nobody waits for it
    assert experience.num_outcomes("free", 2 * S) == 0
    experience.first_token(str(MOST_OPEN), 2 * S)
    assert experience.num_outcomes("free", 2 * S) == 1


def test_a_forgotten_forecast_has_no_outcome() -> None:
    """A client that left before its first token teaches nothing."""
    experience = Experience()
    experience.expect("a", ("free", "queue"), 1e9, 2e9, S, S)
    experience.forget("a")
    experience.first_token("a", 2 * S)
    assert experience.num_outcomes("free", 10 * S) == 0
    assert all(band.num_pairs(2 * S) == 0 for band in experience.bands("free", "queue"))


def test_who_waited_in_vain_is_an_outcome() -> None:
    """Open for longer than was owed, or gone after that: a class that gets nothing has a record."""
    experience = Experience()
    for name, raw_s in (("soon", 1), ("far", 80), ("open", 1), ("other", 1)):
        tier = "free" if name != "other" else "premium"
        experience.expect(name, (tier, "queue"), raw_s * S, 2 * S, S, S)
    assert experience.num_outcomes("free", 3 * S) == 0
    assert experience.num_outcomes("free", 3 * S + 1) == 3
    experience.missed("soon", 21 * S)
    experience.missed("far", 21 * S)
    experience.missed("nobody", 21 * S)
    assert experience.num_outcomes("free", 2 * S) == 2
    by_raw, by_target = experience.bands("free", "queue")
    assert by_target.num_pairs(21 * S) == 2
    assert by_raw.num_pairs(21 * S) == 1  # the other had not waited as long as was said
    assert not experience.num_outcomes("premium", 3 * S)


def test_the_middle_follows_what_is_so_at_present() -> None:
    """After a change of load the newest outcomes say it, long before they are most of all kept."""
    band = taught([0.0] * MOST_PAIRS)
    for number in range(NEWEST_PAIRS):
        band.said(f"new{number}", 1e9, 2 * S)
        band.saw(f"new{number}", 3e9, 2 * S)
    assert band.middle(3 * S) == pytest.approx(math.log(3))
    assert quantile(band.errors(3 * S), 0.5) == pytest.approx(0.0)
    for number in range(2 * NEWEST_PAIRS):
        band.said(f"open{number}", 1e9, 2 * S)
    assert band.middle(20 * S) > math.log(9)
