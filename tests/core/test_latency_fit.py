"""Fitting a profile: least squares that meet their optimality conditions, and honest errors."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.latency_fit import (
    PRICES,
    Observation,
    fit_errors,
    fit_profile,
    non_negative_least_squares,
    predicted_ns,
    round_to_digits,
)
from engine.core.latency_profile import LatencyProfile

BLANK = LatencyProfile("blank", base_ns=1.0)


def observe(decodes: int, context: int, chunk: int, start: int, ns: float = 1.0) -> Observation:
    return Observation(
        num_decodes=decodes,
        num_prefills=int(chunk > 0),
        num_tokens=decodes + chunk,
        kv_tokens=decodes * context,
        pairs=chunk * (start + chunk / 2),
        prompt_kv=start if chunk else 0,
        ns=ns,
    )


GRID = [
    observe(decodes, context, chunk, start)
    for decodes in (0, 1, 8, 33, 100)
    for context in ((1, 100, 2000) if decodes else (0,))
    for chunk in (0, 1, 60, 200, 512)
    for start in ((0, 100, 1500) if chunk else (0,))
    if decodes or chunk
]


def timed(profile: LatencyProfile, noise: float = 0.0) -> list[Observation]:
    """The grid's steps with the times that a device of this profile would show."""
    rng = random.Random(1)
    return [
        observe(
            step.num_decodes,
            int(step.kv_tokens / step.num_decodes) if step.num_decodes else 0,
            step.num_tokens - step.num_decodes,
            int(step.prompt_kv),
            predicted_ns(profile, step) * (1 + rng.uniform(-noise, noise)),
        )
        for step in GRID
    ]


@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**32), st.booleans())
def test_least_squares_meet_the_conditions_of_the_optimum(
    height: int, width: int, seed: int, repeat: bool
) -> None:
    """Karush-Kuhn-Tucker: no negative x, slope 0 where x is positive, else no gain from growing."""
    rng = random.Random(seed)
    rows = [[rng.uniform(-1, 1) for _ in range(width)] for _ in range(height)]
    if repeat:  # a column twice: the answer is not unique, the optimum still is
        rows = [[*row, row[0]] for row in rows]
    targets = [rng.uniform(-1, 1) for _ in range(height)]
    x = non_negative_least_squares(rows, targets)
    misses = [
        sum(a * b for a, b in zip(row, x, strict=True)) - t
        for row, t in zip(rows, targets, strict=True)
    ]
    slopes = [
        sum(row[i] * miss for row, miss in zip(rows, misses, strict=True)) for i in range(len(x))
    ]
    scale = 1 + max(map(abs, x))
    assert min(x) >= 0
    assert min(slopes) >= -1e-6 * scale
    assert all(abs(slope) <= 1e-6 * scale for slope, value in zip(slopes, x, strict=True) if value)


def test_a_column_of_zeros_gets_no_price() -> None:
    assert non_negative_least_squares([[1.0, 0.0], [2.0, 0.0]], [3.0, 6.0]) == [
        pytest.approx(3.0),
        0.0,
    ]


def test_known_prices_are_found_again() -> None:
    """Noiseless steps of a device give its prices back, knee and factor included."""
    device = LatencyProfile(
        "known",
        base_ns=9e6,
        token_ns=30e3,
        tile_tokens=128,
        tile_ns=1e6,
        knee_tokens=96,
        knee_token_ns=50e3,
        decode_kv_ns=140.0,
        mixed_kv_factor=1.75,
        pair_ns=2.25,
        prompt_kv_ns=800.0,
        prompt_ns=4e6,
        row_ns=12e3,
    )
    found = fit_profile(BLANK, timed(device), knees=range(32, 161, 32), tiles=(0, 100, 128))
    assert (found.knee_tokens, found.tile_tokens) == (96, 128)
    for name in ("token_ns", "knee_token_ns", "decode_kv_ns", "mixed_kv_factor", "pair_ns"):
        assert getattr(found, name) == pytest.approx(getattr(device, name), rel=0.02), name
    assert all(error.max < 0.005 for error in fit_errors(found, timed(device)).values())


def test_errors_are_those_of_the_noise() -> None:
    """Ten percent of noise on every step leaves a fit with about five percent of mean error."""
    device = LatencyProfile("noisy", base_ns=9e6, token_ns=30e3, decode_kv_ns=140.0)
    seen = timed(device, noise=0.1)
    errors = fit_errors(fit_profile(BLANK, seen), seen)
    assert set(errors) == {"decode", "prefill", "mixed"}
    assert sum(error.points for error in errors.values()) == len(GRID)
    for error in errors.values():
        assert 0.03 < error.mean < 0.07
        assert error.mean <= error.p95 <= error.max < 0.2


def test_a_rare_regime_counts_as_much_as_a_frequent_one() -> None:
    """One decode beside a hundred prompts that contradict it pulls the base halfway."""
    seen = [observe(1, 1, 0, 0, 1e6)] + [observe(0, 0, 1, 0, 2e6)] * 100
    others = ("row_ns", "token_ns", "decode_kv_ns", "pair_ns", "prompt_ns")
    base = fit_profile(BLANK, seen, without=others).base_ns
    few, many = 1 / 1e6, 1 / 2e6  # the least squares of two relative errors
    assert base == pytest.approx((few + many) / (few**2 + many**2), rel=0.001)


def test_prices_that_are_left_out_are_zero() -> None:
    seen = timed(LatencyProfile("all", base_ns=9e6, token_ns=30e3, row_ns=9e3))
    found = fit_profile(BLANK, seen, without=("row_ns", "pair_ns"))
    assert (found.row_ns, found.pair_ns, found.knee_token_ns, found.tile_ns) == (0, 0, 0, 0)


def test_what_is_not_measured_is_kept() -> None:
    rest = LatencyProfile("kept", base_ns=1.0, num_kv_tokens=4096, link_ns=5.0, max_model_len=77)
    found = fit_profile(rest, timed(LatencyProfile("device", base_ns=5e6)))
    assert (found.name, found.num_kv_tokens, found.link_ns, found.max_model_len) == (
        "kept",
        4096,
        5.0,
        77,
    )


def test_decodes_whose_context_is_free_alone_and_dear_beside_prompts_have_one_price() -> None:
    """The factor multiplies a price, so it cannot stand for one that is zero."""
    seen = [observe(4, context, 0, 0, 1e6) for context in (1, 1000, 2000)]
    seen += [observe(4, context, 8, 0, 1e6 + 4 * context * 50) for context in (1, 1000, 2000)]
    found = fit_profile(BLANK, seen)
    assert found.mixed_kv_factor >= 1
    assert found.decode_kv_ns > 0


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        fit_profile(BLANK, [])


def test_prices_keep_four_digits() -> None:
    assert round_to_digits(123456.0) == 123500.0
    assert round_to_digits(0.0) == 0.0


def test_an_error_counts_as_often_as_it_was_seen() -> None:
    """Ninety-nine good samples in one observation outweigh a bad one, but do not hide it."""
    profile = LatencyProfile("flat", base_ns=100.0)
    good = dataclasses.replace(observe(1, 1, 0, 0, 100.0), samples=99)
    (error,) = fit_errors(profile, [good, observe(1, 1, 0, 0, 200.0)]).values()
    assert error.points == 2
    assert error.mean == pytest.approx(0.005)
    assert (error.p95, error.max) == (0.0, 0.5)
    assert error.as_dict() == {"points": 2, "mean": 0.005, "p95": 0.0, "max": 0.5}


def test_traffic_tells_the_level_and_a_sweep_the_prices() -> None:
    """Where both were measured, traffic has half of the weight, however few its points."""
    sweep = [observe(n, 0, 0, 0, 1000.0) for n in (1, 2, 4, 8, 16, 32)]
    served = dataclasses.replace(observe(8, 0, 0, 0, 2000.0), in_service=True)
    rest = LatencyProfile("level", base_ns=1.0)
    found = fit_profile(rest, [*sweep, served], without=[p for p in PRICES if p != "base_ns"])
    # The least of 0.5 (x / 1000 - 1)^2 + 0.5 (x / 2000 - 1)^2, by its derivative.
    wanted = (1 / 1000 + 1 / 2000) / (1 / 1000**2 + 1 / 2000**2)
    assert found.base_ns == pytest.approx(wanted, rel=1e-3)
