"""The pacer by itself, in virtual time: even streams that keep their promises, and its bounds."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.request import Slo, TbtMode
from gateway.pacing import Pacer

PACE, TBT = 50, 120
GAP = Slo(tbt_ns=TBT, tbt_mode=TbtMode.GAP, pace_ns=PACE)
STREAM = dataclasses.replace(GAP, tbt_mode=TbtMode.STREAM)

slos = st.sampled_from([GAP, STREAM])
# Bursts, an even trickle, stalls.
gaps = st.lists(
    st.one_of(st.just(0), st.integers(0, PACE), st.integers(0, 900)), min_size=1, max_size=80
)


def times_of(gaps_ns: list[int]) -> list[int]:
    """Turn gaps into times."""
    times = [1000]
    for gap in gaps_ns:
        times.append(times[-1] + gap)
    return times


def leaving(
    slo: Slo, made: list[int], sizes: list[int] | None = None, most_held: int = 10**6
) -> list[int]:
    """Return when each piece leaves, where someone always looks at the very moment."""
    sizes = sizes or [1] * len(made)
    pacer: Pacer[int] = Pacer(slo, most_held)
    left: list[int] = []

    def pop(now_ns: int) -> None:
        piece = pacer.pop(now_ns)
        assert piece == len(left), "out of order"
        left.append(now_ns)

    now_ns = 0
    for number, (at_ns, size) in enumerate(zip(made, sizes, strict=True)):
        while (next_ns := pacer.next_ns()) is not None and next_ns < at_ns:
            now_ns = max(now_ns, next_ns)
            pop(now_ns)
        now_ns = at_ns
        pacer.push(number, size, now_ns)
        assert len(pacer) <= most_held + 1
        while pacer.is_full:
            pop(now_ns)
    while (next_ns := pacer.next_ns()) is not None:
        now_ns = max(now_ns, next_ns)
        pop(now_ns)
    return left


def lateness(slo: Slo, times: list[int]) -> list[bool]:
    """Judge tokens by the times at which they were seen, straight from the promise."""
    late = [False]
    for i, (before, now) in enumerate(pairwise(times), 1):
        due = before + TBT if slo.tbt_mode is TbtMode.GAP else times[0] + i * TBT
        late.append(now > due)
    return late


@given(slo=slos, gaps_ns=gaps)
def test_tokens_leave_in_order_after_they_came_and_the_first_at_once(
    slo: Slo, gaps_ns: list[int]
) -> None:
    """Nothing is seen before it is there, and the first token is never held back."""
    made = times_of(gaps_ns)
    left = leaving(slo, made)
    assert left[0] == made[0]
    assert len(left) == len(made)
    assert all(a <= b for a, b in zip(made, left, strict=True))


@given(gaps_ns=gaps)
def test_no_two_tokens_of_a_gap_promise_leave_closer_than_the_pace(gaps_ns: list[int]) -> None:
    """However they came; and they leave as early as that allows, which has a closed form."""
    made = times_of(gaps_ns)
    left = leaving(GAP, made)
    assert all(b - a >= PACE for a, b in pairwise(left))
    for i, at_ns in enumerate(left):
        assert at_ns == max(made[j] + (i - j) * PACE for j in range(i + 1))


@given(gaps_ns=gaps)
def test_a_stream_behind_its_contract_is_not_paced(gaps_ns: list[int]) -> None:
    """Tokens keep their distance, but for those that would then leave later than promised."""
    made = times_of(gaps_ns)
    left = leaving(STREAM, made)
    for i in range(1, len(left)):
        contract = left[0] + i * TBT
        assert left[i] - left[i - 1] >= PACE or left[i] >= contract


@given(slo=slos, gaps_ns=gaps)
def test_holding_back_makes_no_token_late(slo: Slo, gaps_ns: list[int]) -> None:
    """Law: what came in time leaves in time, and what came late leaves at once."""
    made = times_of(gaps_ns)
    left = leaving(slo, made)
    for came, seen, is_late in zip(made, left, lateness(slo, left), strict=True):
        assert not is_late or came == seen


@given(slo=slos, ahead=gaps)
def test_an_answer_that_is_early_ends_exactly_on_its_pace(slo: Slo, ahead: list[int]) -> None:
    """Token i leaves at `first + i * pace`: the end is not delayed beyond it, nor before it."""
    made = [1000]
    for i, gap in enumerate(ahead, 1):
        made.append(min(made[-1] + gap, 1000 + i * PACE))
    assert leaving(slo, made) == [1000 + i * PACE for i in range(len(made))]


@given(slo=slos, gaps_ns=gaps, most_held=st.integers(0, 12))
def test_never_more_is_held_than_the_bound(slo: Slo, gaps_ns: list[int], most_held: int) -> None:
    """The one too many lets the first leave; what leaves in time without a bound still does."""
    made = times_of(gaps_ns)
    left = leaving(slo, made, most_held=most_held)
    free = leaving(slo, made)
    assert all(a <= b for a, b in zip(left, free, strict=True))
    for i, at_ns in enumerate(made):  # `leaving` has seen to the moments between
        assert sum(seen > at_ns for seen in left[: i + 1]) <= most_held


@given(gaps_ns=gaps, most_held=st.integers(1, 12))
def test_the_engine_knows_when_a_token_will_be_seen(gaps_ns: list[int], most_held: int) -> None:
    """Its rule (Slo.shown_ns, with this bound) gives the very times at which tokens leave.

    A token that is pushed out leaves earlier than was thought when it came; the last one, whose
    time the next due time is counted from, leaves when it was said to.
    """
    made = times_of(gaps_ns)
    seen = made[0]
    for i, at_ns in enumerate(made[1:], 2):
        seen = min(max(at_ns, seen + PACE), at_ns + most_held * PACE)
        assert leaving(GAP, made[:i], most_held=most_held)[-1] == seen


@given(
    slo=slos,
    pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5)), min_size=1, max_size=50),
)
def test_text_of_several_tokens_takes_the_time_of_them_all(
    slo: Slo, pieces: list[tuple[int, int]]
) -> None:
    """No more tokens are seen than the pace allows, unless the promise is nearer; order is kept."""
    made = times_of([gap for gap, _ in pieces])[1:]
    sizes = [size for _, size in pieces]
    left = leaving(slo, made, sizes)
    first = next((at for at, size in zip(left, sizes, strict=True) if size), None)
    before = first
    num_out = 0
    for came, seen, size in zip(made, left, sizes, strict=True):
        if not size:
            assert seen >= came
            continue
        assert first is not None
        assert before is not None
        if num_out:
            due = before + TBT if slo.tbt_mode is TbtMode.GAP else first + num_out * TBT
            assert seen == max(came, min(before + size * PACE, due))
        before = seen
        num_out += size


def test_a_piece_without_tokens_leaves_with_the_one_before_it() -> None:
    """The echo of a prompt comes first and at once, the finish reason with the last token."""
    assert leaving(GAP, [0, 5, 5, 5, 5], [0, 1, 1, 1, 0]) == [0, 5, 55, 105, 105]


def test_a_late_look_does_not_stretch_the_schedule() -> None:
    """A piece that left late, since nobody looked, takes nothing from those behind it."""
    pacer: Pacer[str] = Pacer(GAP)
    for text in "abc":
        pacer.push(text, 1, 0)
    assert pacer.pop(0) == "a"
    assert pacer.pop(49) is None
    assert pacer.pop(90) == "b"
    assert pacer.next_ns() == 100


def test_everything_can_be_shown_or_dropped_at_once() -> None:
    """A flush keeps the order and makes the schedule anew; a drop leaves nothing."""
    pacer: Pacer[str] = Pacer(GAP)
    for text in "abcd":
        pacer.push(text, 1, 0)
    assert pacer.pop(0) == "a"
    assert list(pacer.flush(10)) == ["b", "c", "d"]
    pacer.push("e", 1, 20)
    assert pacer.next_ns() == 60
    pacer.clear()
    assert (len(pacer), pacer.next_ns(), pacer.pop(10**9)) == (0, None, None)


def test_a_full_pacer_takes_nothing() -> None:
    """Whoever fills it must look at `is_full`."""
    pacer: Pacer[str] = Pacer(GAP, most_held=1)
    pacer.push("a", 1, 0)
    pacer.push("b", 1, 0)
    with pytest.raises(AssertionError, match="full"):
        pacer.push("c", 1, 0)
