"""The future peak is that of growing everybody token by token, and a group is its members."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.past_future import blocks_at, future_peak

requests = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=12)


def peak_by_steps(running: list[tuple[int, int]]) -> int:
    """Grow all by a token a step; who has no token left leaves before the next."""
    peak, contexts = 0, [(left, context) for left, context in running]
    while contexts:
        contexts = [(left - 1, context + 1) for left, context in contexts]
        peak = max(peak, sum(context for _, context in contexts))
        contexts = [(left, context) for left, context in contexts if left]
    return peak


@given(requests)
def test_the_formula_is_the_peak_of_a_step_by_step_run(running: list[tuple[int, int]]) -> None:
    """Sorted by what remains, the maximum over who leaves is the maximum over time."""
    groups = [(float(left), 1, float(context)) for left, context in running]
    assert future_peak(groups) == peak_by_steps(running)


@given(st.integers(1, 50), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_group_stands_for_its_members(left: int, contexts: list[int]) -> None:
    """Requests with as much left may be added up."""
    one_by_one = [(float(left), 1, float(context)) for context in contexts]
    assert future_peak([(left, len(contexts), sum(contexts))]) == future_peak(one_by_one)


@given(requests, st.tuples(st.integers(1, 40), st.integers(1, 60)))
def test_another_request_never_lowers_the_peak(
    running: list[tuple[int, int]], more: tuple[int, int]
) -> None:
    """Admitting costs memory."""
    groups = [(float(left), 1, float(context)) for left, context in running]
    assert future_peak([*groups, (float(more[0]), 1, float(more[1]))]) >= future_peak(groups)


def test_nobody_needs_nothing() -> None:
    """An empty engine has no peak."""
    assert future_peak([]) == 0.0


@given(requests, st.integers(1, 32))
def test_blocks_never_fall_short_of_whole_tokens(
    running: list[tuple[int, int]], block_size: int
) -> None:
    """The estimate counts every token, and half a block for each request's last one."""
    peak = peak_by_steps(running)
    assert blocks_at(peak, len(running), block_size) * block_size >= peak
