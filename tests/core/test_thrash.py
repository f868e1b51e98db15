"""The thrash guard: what trips it, how caution grows and wears off, and what it holds back."""

from __future__ import annotations

import dataclasses

import pytest
from core_scenes import EMPTY_VIEW, view, waiting
from hybrid_scenes import MS, PREMIUM, ROUND, S, free, hybrid
from hypothesis import given
from hypothesis import strategies as st

from engine.core.policies.thrash import (
    LESS,
    MORE,
    MOST,
    MOST_RECOMPUTED,
    NUM_SAMPLES,
    ThrashGuard,
)
from engine.core.policy import View

LINKED = dataclasses.replace(ROUND, link_out_ns_per_token=MS / 2, link_in_ns_per_token=3 * MS / 2)


def look(guard: ThrashGuard, second: float, computed: int, again: int = 0, copied: int = 0) -> None:
    guard.look(present(second, computed, again, copied))


def present(second: float, computed: int, again: int, copied: int = 0) -> View:
    return dataclasses.replace(
        EMPTY_VIEW,
        now_ns=int(second * S),
        computed_total=computed,
        recomputed_total=again,
        copied_total=copied,
    )


def test_a_recompute_tax_beyond_its_limit_is_thrash() -> None:
    """A quarter of the tokens of the last seconds, not more, may be computed again."""
    guard = ThrashGuard(LINKED)
    look(guard, 0, 0)
    look(guard, 1, 1000, int(1000 * MOST_RECOMPUTED))
    assert not guard.is_thrashing
    look(guard, 2, 2000, int(2000 * MOST_RECOMPUTED) + 1)
    assert guard.is_thrashing
    assert guard.caution == MORE


def test_a_link_that_is_nearly_always_busy_is_thrash() -> None:
    """At 1 ms a token, 1,200 tokens both ways are 0.6 of a second each."""
    guard = ThrashGuard(LINKED)
    look(guard, 0, 0)
    look(guard, 1, 1000, copied=1200)
    assert not guard.is_thrashing
    look(guard, 2, 2000, copied=2401)
    assert guard.is_thrashing


def test_only_one_look_a_second_counts() -> None:
    guard = ThrashGuard(LINKED)
    look(guard, 0, 0)
    look(guard, 0.9, 1000, 1000)
    assert not guard.is_thrashing
    look(guard, 1.0, 1000, 1000)
    assert guard.is_thrashing


def test_what_is_long_past_is_forgotten() -> None:
    """Some time after the last waste the engine is not thrashing, and caution wears off."""
    guard = ThrashGuard(LINKED)
    look(guard, 0, 0)
    look(guard, 1, 10, 10)
    for second in range(2, NUM_SAMPLES + 1):
        look(guard, second, 10, 10)
        assert guard.is_thrashing
    look(guard, NUM_SAMPLES + 1, 10, 10)
    assert not guard.is_thrashing
    known = guard.caution
    look(guard, NUM_SAMPLES + 2, 20, 10)
    assert guard.caution == pytest.approx(known - LESS)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 5000))))
def test_caution_stays_within_bounds(steps: list[tuple[int, int, int]]) -> None:
    guard = ThrashGuard(LINKED)
    computed = again = copied = 0
    for second, (a, b, c) in enumerate(steps):
        computed, again, copied = computed + a + b, again + b, copied + c
        look(guard, second, computed, again, copied)
        assert 0.0 <= guard.caution <= MOST


def test_newcomers_behind_the_first_class_leave_more_room() -> None:
    """Of 1,000 blocks three hundredths as ever, and a twentieth for each second of thrash."""
    policy = hybrid()
    for second in range(3):
        policy.limits(present(second, second * 10, second * 9))
    assert policy.room(free("f", 30), view()).spare_blocks == 30 + 100
    premium = waiting("p", 30, slo=PREMIUM)
    assert policy.room(premium, view()).spare_blocks == 10
    assert hybrid(guard=0).room(free("f", 30), view()).spare_blocks == 30
