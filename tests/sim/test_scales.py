"""Axes put values where they belong and ticks at round places."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sim import scales

lows = st.floats(min_value=1e-3, max_value=1e6)
ratios = st.floats(min_value=1.001, max_value=1e6)


@given(lows, ratios)
def test_a_logarithmic_axis_holds_its_values_at_round_ends(low: float, ratio: float) -> None:
    scale = scales.logarithmic(low, low * ratio, 0.0, 100.0, scales.plain)
    assert scale.low <= low * (1 + 1e-9)
    assert scale.high >= low * ratio * (1 - 1e-9)
    assert scale.at(scale.low) == pytest.approx(0.0)
    assert scale.at(scale.high) == pytest.approx(100.0)
    middle = math.sqrt(scale.low * scale.high)
    assert scale.at(middle) == pytest.approx(50.0)
    assert any(not tick.minor for tick in scale.ticks)
    assert all(scale.low * 0.999 <= tick.value <= scale.high * 1.001 for tick in scale.ticks)


@given(st.floats(min_value=-1e5, max_value=1e5), st.floats(min_value=1e-3, max_value=1e5))
def test_an_even_axis_has_a_handful_of_ticks_inside(low: float, span: float) -> None:
    scale = scales.linear(low, low + span, 10.0, 210.0, scales.plain)
    assert 2 <= len(scale.ticks) <= 7
    assert all(10 - 1e-3 <= scale.at(tick.value) <= 210 + 1e-3 for tick in scale.ticks)
    assert scale.at(low + span / 2) == pytest.approx(110.0)


def test_values_outside_stay_on_the_edge_unless_they_shall_be_cut() -> None:
    scale = scales.linear(0.9, 1.0, 100.0, 0.0, scales.percent)
    assert scale.at(0.5) == 100.0
    assert scale.at(0.8, beyond=True) == pytest.approx(200.0)


def test_round_ends_and_words() -> None:
    assert [scales.up_to(x) for x in (0.0, 0.93, 1.01, 7.0, 840.0)] == [1.0, 1.0, 1.25, 8.0, 1000.0]
    assert scales.duration(250).split() == ["250", "ms"]
    assert scales.duration(12_345).split() == ["12.3", "s"]
    assert scales.duration(6e6).split() == ["100", "min"]
    assert scales.duration(math.inf) == "never"
    assert scales.percent(0.995).split() == ["99.5", "%"]
    assert scales.extent([3.0, math.inf, 1.0]) == (1.0, 3.0)
    assert scales.extent([math.inf]) is None
