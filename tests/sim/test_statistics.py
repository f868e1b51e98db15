"""The report's arithmetic, against an independent implementation and against its own laws."""

from __future__ import annotations

import math
import statistics as standard

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sim import statistics

numbers = st.floats(min_value=-1e6, max_value=1e6)


@given(st.lists(numbers, min_size=2, max_size=60), st.integers(1, 99))
def test_quantiles_agree_with_the_standard_librarys(values: list[float], percent: int) -> None:
    """Type 7: `statistics.quantiles(method="inclusive")` cuts at the same places."""
    ordered = sorted(values)
    cut = standard.quantiles(ordered, n=100, method="inclusive")[percent - 1]
    assert statistics.quantile(ordered, percent / 100) == pytest.approx(cut, abs=1e-6)


def test_quantiles_bear_what_never_happened() -> None:
    """Unfinished requests are infinite: they push a quantile up and never make it no number."""
    ordered = [1.0, 2.0, 3.0, math.inf, math.inf]
    assert statistics.quantile(ordered, 0.5) == 3.0
    assert statistics.quantile(ordered, 0.6) == math.inf
    assert statistics.quantile(ordered, 0.9) == math.inf
    with pytest.raises(ValueError, match="nothing"):
        statistics.quantile([], 0.5)
    with pytest.raises(ValueError, match="share"):
        statistics.quantile([1.0], 1.1)


@pytest.mark.parametrize(
    ("share", "degrees", "value"),
    [  # NIST/SEMATECH e-Handbook, table of Student's t
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.95, 5, 2.015),
        (0.995, 100, 2.626),
    ],
)
def test_students_t_is_that_of_the_tables(share: float, degrees: int, value: float) -> None:
    assert statistics.t_quantile(share, degrees) == pytest.approx(value, abs=5e-4)


def test_students_t_of_many_is_the_normal_distribution() -> None:
    expected = standard.NormalDist().inv_cdf(0.975)
    assert statistics.t_quantile(0.975, 1_000_000) == pytest.approx(expected, abs=1e-5)
    assert statistics.t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-9)


def test_an_interval_is_worked_out_by_hand() -> None:
    """Mean 2, deviation 1, three runs: 2 +- 4.303 / sqrt(3)."""
    found = statistics.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert statistics.interval([5.0]) == statistics.Interval(5.0, None, None, 1)
    assert statistics.interval([5.0, 5.0]) == statistics.Interval(5.0, 5.0, 5.0, 2)


def test_intervals_hold_what_they_promise() -> None:
    """Of many intervals over five normal draws, 95 % hold the true mean."""
    import random

    draw = random.Random(7)
    held = 0
    for _ in range(4000):
        found = statistics.interval([draw.gauss(3.0, 2.0) for _ in range(5)])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 3.0 <= found.high
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


def test_jains_index_spans_one_over_n_to_one() -> None:
    assert statistics.jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert statistics.jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert statistics.jain([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="nobody"):
        statistics.jain([])


durations = st.lists(st.floats(min_value=0.0, max_value=1e9), max_size=50)


@given(durations, durations)
def test_histograms_add_up_as_the_requests_do(one: list[float], two: list[float]) -> None:
    """Pooling seeds is exact: the sum of histograms is the histogram of everything."""
    parts = [statistics.Histogram.of(x, len(x)) for x in (one, two)]
    together = statistics.Histogram.of(one + two, len(one) + len(two))
    assert statistics.Histogram.total(parts) == together


@given(durations)
def test_a_histograms_share_is_exact_at_its_edges(values: list[float]) -> None:
    histogram = statistics.Histogram.of(values, len(values) + 3)
    for edge in statistics.edges()[::20]:
        expected = sum(v <= edge for v in values) / (len(values) + 3)
        assert histogram.share_at(edge) == pytest.approx(expected)
    shares = [share for _, share in histogram.cumulative()]
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)


def test_a_histogram_never_holds_more_than_was_offered() -> None:
    with pytest.raises(ValueError, match="more durations"):
        statistics.Histogram.of([1.0, 2.0], 1)
    assert statistics.Histogram.of([], 0).share_at(10.0) == 0.0
