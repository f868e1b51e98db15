"""The window of recent errors gives the quantiles of its newest entries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.step_errors import WINDOW, RecentErrors


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=2 * WINDOW), st.sampled_from([0.5, 0.99]))
def test_quantiles_are_those_of_the_newest_errors(errors: list[float], share: float) -> None:
    """Against sorting the newest WINDOW of them."""
    recent = RecentErrors()
    for error in errors:
        recent.add(error)
    newest = sorted(errors[-WINDOW:])
    assert len(recent) == len(newest)
    assert recent.quantile(share) == newest[min(len(newest) - 1, int(share * len(newest)))]


def test_before_any_step_nothing_is_known() -> None:
    assert RecentErrors().quantile(0.5) is None
