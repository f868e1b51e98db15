"""How forecasts were borne out is kept of the tiers heard of last."""

from __future__ import annotations

from collections import deque

from engine.core.admission import MOST_TIERS
from engine.core.forecast import Forecast
from gateway.forecasts import ScoreBoard

FORECAST = Forecast(
    ttft_ns=100.0, low_ns=50.0, high_ns=200.0, on_time=1.0, target_ns=150, raw_ns=100.0
)


def test_a_tier_without_a_score_has_none() -> None:
    """Another thread reads in between: a tier's place is there before its first score."""
    board = ScoreBoard()
    board.add("free", FORECAST, 120)
    board._outcomes["premium"] = deque()
    assert list(board.read()) == ["free"]


def test_new_tiers_have_scores_however_many_there_were() -> None:
    """Tiers come and go; whoever came last is not left out for those that are gone."""
    board = ScoreBoard()
    for number in range(MOST_TIERS + 10):
        board.add(f"tier-{number}", FORECAST, 120)
    scores = board.read()
    assert len(scores) == MOST_TIERS
    assert scores[f"tier-{MOST_TIERS + 9}"].num == 1
    assert "tier-0" not in scores
