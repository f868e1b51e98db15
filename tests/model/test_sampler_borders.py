"""Draws exactly on a border fall where the definition says, on each of the three paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.model import categorical
from engine.model.value_bins import draw_by_bins

LAST = 1.0 - 2.0**-53  # the largest uniform there is


def params(
    uniform: float, top_k: int = 10**6, top_p: float = 1.0, min_p: float = 0.0
) -> categorical.DrawParams:
    values = (1.0, float(top_k), top_p, min_p, uniform)
    return categorical.DrawParams(*(torch.tensor([v], dtype=torch.float64) for v in values))


def draw_each_way(row: torch.Tensor, p: categorical.DrawParams) -> list[int]:
    """Return the token of the candidates' path and of the bins, for one row [V] of logits."""
    scores = categorical.padded_float32(row.unsqueeze(0), len(row))
    by_bins = categorical.draw_filtered_exhaustively(scores.clone(), p)
    by_rank, settled = categorical.draw_filtered(scores, p)
    assert bool(settled)
    return [int(by_rank), int(by_bins)]


@pytest.mark.parametrize("turn", range(8))
def test_a_uniform_on_a_border_belongs_to_the_next_token(turn: int) -> None:
    """Of eight equal tokens, u = n/8 draws the n-th, and just below it the one before."""
    row = torch.zeros(8)
    assert draw_each_way(row, params(turn / 8)) == [turn, turn]
    below = np.nextafter((turn + 1) / 8, 0)
    assert draw_each_way(row, params(below)) == [turn, turn]
    for uniform in (turn / 8, below):
        scores = categorical.padded_float32(row.unsqueeze(0), 8)
        assert int(categorical.draw_unfiltered(scores, params(uniform))) == turn


def test_borders_between_different_tokens_are_as_sharp() -> None:
    """Weights 1 and e**-1: where share times mass is exactly 1, u draws the second token, and a
    top_p of that share keeps the first alone."""
    row = torch.tensor([0.0, -1.0])
    mass = 1.0 + float(np.exp(np.float32(-1.0)))
    share = next(s for s in (1 / mass, np.nextafter(1 / mass, 1)) if s * mass == 1.0)
    assert int(categorical.draw_filtered_exhaustively(row.unsqueeze(0), params(share))) == 1
    assert draw_by_bins(row.numpy(), 1.0, 2, share, 0.0, LAST) == 0
    assert draw_by_bins(row.numpy(), 1.0, 2, float(np.nextafter(share, 1)), 0.0, LAST) == 1


@pytest.mark.parametrize("kept", range(1, 9))
def test_a_share_that_is_reached_exactly_needs_no_further_token(kept: int) -> None:
    """Of eight equal tokens, top_p = n/8 keeps n; and so does a top_p just above (n-1)/8."""
    row = torch.zeros(8)
    for share in (kept / 8, np.nextafter((kept - 1) / 8, 1)):
        assert draw_each_way(row, params(LAST, top_p=share)) == [kept - 1] * 2


def test_nothing_asked_for_is_the_best_token() -> None:
    """top_p 0 keeps one token, as min_p 1 does where none is equal to it."""
    row = torch.tensor([0.0, 3.0, 1.0, 2.0])
    assert draw_each_way(row, params(LAST, top_p=0.0)) == [1, 1]
    assert draw_each_way(row, params(LAST, min_p=1.0)) == [1, 1]


def test_top_p_is_a_share_of_what_min_p_leaves() -> None:
    """400 of 1000 tokens lie within min_p: a quarter of their mass is 100 tokens, not 120."""
    row = torch.full((1000,), -2.0)
    row[:400] = torch.linspace(0.001, 0.0, 400)
    scores = categorical.padded_float32(row.unsqueeze(0), 1000)
    few = params(LAST, top_p=0.25, min_p=0.5)
    token, settled = categorical.draw_filtered(scores.clone(), few)
    assert (int(token), bool(settled)) == (99, True)
    assert int(categorical.draw_filtered_exhaustively(scores, few)) == 99


def test_top_p_is_a_share_of_what_top_k_leaves() -> None:
    """The first two of four tokens hold 3/4 of their own mass, but less of the whole one."""
    row = torch.tensor([2.0, 1.0, 1.0, 1.0]).log()
    assert draw_each_way(row, params(LAST, top_k=2, top_p=0.6)) == [0, 0]
    assert draw_each_way(row, params(LAST, top_k=2, top_p=0.7)) == [1, 1]


def test_tokens_of_no_weight_are_never_drawn() -> None:
    """Even with the largest uniform and sums that round up: 500 rows with banned tokens behind.

    Inside a block the two levels of sums may disagree by rounding; the draw then stays on the last
    token that has a weight.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 256, generator=generator)
    rows[:, 37:64] = -torch.inf
    rows[:, 100:] = -torch.inf
    many = categorical.DrawParams(
        *(torch.full((500,), v, dtype=torch.float64) for v in (1.0, 256.0, 1.0, 0.0, LAST))
    )
    assert categorical.draw_unfiltered(rows.clone(), many).tolist() == [99] * 500
    worst = rows.clone().masked_fill(rows == -torch.inf, torch.inf).argmin(-1)
    ranked = categorical.draw_filtered_exhaustively(rows.clone(), many)
    assert ranked.tolist() == worst.tolist()


def test_the_bins_cope_with_any_range_of_values() -> None:
    """Masks with the lowest float32, tiny temperatures, and values far beyond the bins' range."""
    lowest = float(torch.finfo(torch.float32).min)
    row = np.array([lowest, 5.0, 4.0, lowest, -500.0, 5.0], dtype=np.float32)
    for temperature in (1e-5, 1.0, 100.0):
        assert draw_by_bins(row, temperature, 6, 1.0, 0.0, 0.0) == 1
        assert draw_by_bins(row, temperature, 2, 1.0, 0.0, LAST) == 5
    assert draw_by_bins(row, 1.0, 6, 1.0, 0.0, LAST) == 2
