"""A request's own arithmetic: the transition table, its tokens, its lateness."""

from __future__ import annotations

import pytest
from core_orders import make_order
from hypothesis import given
from hypothesis import strategies as st

from engine.core.batch import Chunk, decode_chunk
from engine.core.request import TRANSITIONS, Request, SamplingParams, Slo, Status, TbtMode


@given(path=st.lists(st.sampled_from(Status), max_size=6))
def test_only_drawn_transitions_are_possible(path: list[Status]) -> None:
    """Law L2: whatever is not in the table cannot happen, and nothing follows the end."""
    request = Request(make_order("a"), now_ns=0)
    for now_ns, status in enumerate(path):
        if status in TRANSITIONS[request.status]:
            request.move_to(status, now_ns)
            assert (request.timeline[-1].status, request.timeline[-1].at_ns) == (status, now_ns)
        else:
            before = list(request.timeline)
            with pytest.raises(AssertionError):
                request.move_to(status, now_ns)
            assert request.timeline == before
    assert TRANSITIONS[Status.FINISHED] == frozenset()


def test_a_status_cannot_change_before_the_last_change() -> None:
    """Law L36."""
    request = Request(make_order("a"), now_ns=5)
    with pytest.raises(AssertionError, match="time ran back"):
        request.move_to(Status.RUNNING, 4)


@given(
    prompt=st.lists(st.integers(0, 9), max_size=8),
    output=st.lists(st.integers(0, 9), max_size=8),
    start=st.integers(0, 16),
    length=st.integers(0, 16),
)
def test_tokens_are_slices_of_prompt_and_output(
    prompt: list[int], output: list[int], start: int, length: int
) -> None:
    """Positions count through the prompt into the output without a seam."""
    request = Request(make_order("a", tuple(prompt)), now_ns=0)
    request.output = output
    both = (prompt + output)[start : start + length]
    start, stop = min(start, len(prompt + output)), min(start + length, len(prompt + output))
    assert request.tokens(start, stop) == tuple(both)


@pytest.mark.parametrize(
    ("mode", "times", "late"),
    [
        (TbtMode.GAP, [50, 60, 71, 80], 1),
        (TbtMode.GAP, [50, 90, 100, 110], 1),  # one gap is one late token
        (TbtMode.STREAM, [50, 90, 100, 110], 3),  # all are behind the contract from then on
        (TbtMode.STREAM, [50, 51, 52, 80], 0),  # early ones are a bank
        (TbtMode.GAP, [50, 51, 52, 80], 1),
        (TbtMode.GAP, [1_000], 0),  # the first token is judged by TTFT
    ],
)
def test_lateness_is_counted_as_the_tier_promises(
    mode: TbtMode, times: list[int], late: int
) -> None:
    """A gap is judged from the token before, a stream from the first token."""
    slo = Slo(tbt_ns=10, tbt_mode=mode)
    request = Request(make_order("a", slo=slo), now_ns=0)
    for time in times:
        request.add_token(1, time)
    assert request.late_tokens == late
    assert (request.first_token_ns, request.last_token_ns) == (times[0], times[-1])


def test_the_cheap_decode_chunk_is_a_chunk_like_any_other() -> None:
    """Equal, hashable and just as frozen as one from the constructor."""
    sampling = SamplingParams(max_tokens=3)
    cheap = decode_chunk("a", 7, 5, (1, 2), sampling, 3, (9,), (5,))
    plain = Chunk("a", 7, (5,), (1, 2), sampling, 3, (9,), (5,))
    assert cheap == plain
    assert type(cheap) is Chunk
    assert hash(cheap) == hash(plain)
    with pytest.raises(AttributeError):
        cheap.start = 8  # type: ignore[misc]
