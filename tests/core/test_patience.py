"""How long a decode can wait and be away, against the verdict that its SLO gets in the end."""

from __future__ import annotations

import dataclasses

import pytest
from core_scenes import decoding, waiting
from hypothesis import given
from hypothesis import strategies as st

from engine.core.policies.patience import BANK_LEFT_NS, absence_ns, due_ns, owns_late_token
from engine.core.request import Request, Slo, TbtMode
from engine.sim.records import meets_tbt

GAP = Slo(rank=1, tbt_ns=100)
STREAM = dataclasses.replace(GAP, tbt_mode=TbtMode.STREAM)
LONGEST = 20_000_000_000


def with_tokens(slo: Slo, *times: int) -> Request:
    """A decoding request that got its tokens at these times."""
    request = decoding("a", slo=slo, generated=0)
    for at_ns in times:
        request.add_token(0, at_ns)
    return request


def test_a_gap_runs_from_the_last_token() -> None:
    """An early token is no credit, a late one no debt."""
    assert due_ns(with_tokens(GAP, 1000)) == 1100
    assert due_ns(with_tokens(GAP, 1000, 1010)) == 1110
    assert due_ns(with_tokens(GAP, 1000, 5000)) == 5100


def test_a_stream_runs_from_the_first_token() -> None:
    """Token i is due i gaps after the first, whenever the others came."""
    assert due_ns(with_tokens(STREAM, 1000)) == 1100
    assert due_ns(with_tokens(STREAM, 1000, 1010, 1020)) == 1300
    assert due_ns(with_tokens(STREAM, 1000, 9000)) == 1200


def test_nothing_is_due_before_the_first_token() -> None:
    """A prompt has a due time of its own kind."""
    assert due_ns(waiting("a")) > 10**18


@given(
    gaps=st.lists(st.integers(1, 250), min_size=1, max_size=250),
    more=st.integers(0, 150),
    mode=st.sampled_from(TbtMode),
)
def test_one_token_late_keeps_the_slo_wherever_the_answer_ends(
    gaps: list[int], more: int, mode: TbtMode
) -> None:
    """Who owns a late token meets its SLO with it, if nothing else is late, at every later end."""
    slo = dataclasses.replace(GAP, tbt_mode=mode)
    request = with_tokens(slo, 1000)
    for gap in gaps:
        assert request.last_token_ns is not None
        request.add_token(0, request.last_token_ns + (gap if gap > 248 else gap % 100 + 1))
    owns, late = owns_late_token(request), request.late_tokens + 1
    for num_later in range(more + 1):
        ends_with = len(request.output) + 1 + num_later
        assert not owns or meets_tbt(ends_with, late)
    if not owns:  # it would miss if it ended with that token
        assert not meets_tbt(len(request.output) + 1, late)


@given(
    times=st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=20),
    tbt_ns=st.integers(1, 3_000_000_000),
    waited=st.integers(0, 4_000_000_000),
)
def test_a_stream_is_never_away_longer_than_its_bank(
    times: list[int], tbt_ns: int, waited: int
) -> None:
    """Back after the absence, it has the time left that the way takes, or was not away at all."""
    slo = dataclasses.replace(STREAM, tbt_ns=tbt_ns)
    request = with_tokens(slo, *sorted(times))
    now_ns = max(times) + waited
    away = absence_ns(request, now_ns, LONGEST)
    assert 0 <= away <= LONGEST
    assert away == 0 or now_ns + away + BANK_LEFT_NS <= due_ns(request)


@pytest.mark.parametrize("tokens", [1, 99])
def test_a_gap_promise_without_a_hundred_tokens_on_time_is_not_left(tokens: int) -> None:
    """Nothing was earned yet."""
    request = with_tokens(GAP, *[1000 + 10 * i for i in range(tokens)])
    assert absence_ns(request, 2000, LONGEST) == 0


def test_a_hundred_tokens_on_time_are_one_pause_and_two_hundred_two() -> None:
    """A pause costs its token; the next hundred pay for the next one."""
    times = [1000 + 10 * i for i in range(100)]
    request = with_tokens(GAP, *times)
    assert absence_ns(request, 2000, LONGEST) == LONGEST
    request.add_token(0, 10**9)
    assert request.late_tokens == 1
    assert absence_ns(request, 10**9, LONGEST) == 0
    for i in range(1, 100):
        request.add_token(0, 10**9 + i)
    assert absence_ns(request, 10**9 + 99, LONGEST) == LONGEST
