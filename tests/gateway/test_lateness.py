"""One promise, judged alike wherever it is judged: in the engine, in its records, at the door."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from engine.core.policies.patience import absence_ns, due_ns
from engine.core.request import Request, RequestOrder, SamplingParams, Slo, TbtMode
from engine.core.stats import TokenEvent
from engine.serving.streams import EventStream
from gateway.pacing import Pacer
from gateway.principal import slo_of
from gateway.stopwatch import Stopwatch
from tenants.values import Overload, TierRecord

MS = 1_000_000
S = 1000 * MS
TIER = TierRecord(
    "t", 0, 500, 250, tbt_ms=100, tbt_mode="gap", pace_ms=40, objective=0.99, weight=1.0,
    max_queue=None, max_output_tokens=None, on_overload=Overload.QUEUE, version=1,
)  # fmt: skip

slos = st.builds(
    Slo,
    tbt_ns=st.integers(60, 200),
    tbt_mode=st.sampled_from(TbtMode),
    pace_ns=st.sampled_from([0, 0, 1, 20, 60]),
)
gaps = st.lists(st.one_of(st.integers(0, 30), st.integers(0, 900)), max_size=80)


def order_of(slo: Slo) -> RequestOrder:
    return RequestOrder("a", (1, 2), SamplingParams(max_tokens=500), 0, slo=slo)


def seen_by_client(slo: Slo, made: list[int]) -> list[int]:
    """Return when tokens leave the door: at once, or when the pacer lets them."""
    if not slo.pace_ns:
        return made
    pacer: Pacer[int] = Pacer(slo)
    seen: list[int] = []
    for i, at_ns in enumerate([*made, 1 << 60]):
        while (next_ns := pacer.next_ns()) is not None and next_ns < at_ns:
            assert pacer.pop(next_ns) == len(seen)
            seen.append(next_ns)
        if i < len(made):
            pacer.push(i, 1, at_ns)
    return seen


@given(slo=slos, gaps_ns=gaps)
def test_engine_record_and_door_count_the_same_tokens_as_late(slo: Slo, gaps_ns: list[int]) -> None:
    """Both modes, paced or not: the client's own eyes are the measure, and the engine knows them.

    Where the way to the client takes no time the counts are equal, token for token.
    """
    made = [1000]
    for gap in gaps_ns:
        made.append(made[-1] + gap)
    request, record = Request(order_of(slo), 0), EventStream(order_of(slo))
    watch = Stopwatch(0, 2, slo)
    for at_ns in made:
        request.add_token(7, at_ns)
        record.push(TokenEvent("a", 7, at_ns))
    for at_ns in seen_by_client(slo, made):
        watch.tokens(1, at_ns)
    assert request.late_tokens == record.late_tokens == watch.late
    assert watch.num_tokens == len(made)


@given(slo=slos, gaps_ns=gaps, more=st.integers(0, 2000))
def test_a_due_time_is_the_last_moment_that_is_not_late(
    slo: Slo, gaps_ns: list[int], more: int
) -> None:
    """What policies are told to be the due time is what is judged, to the nanosecond."""
    request = Request(order_of(slo), 0)
    at_ns = 1000
    request.add_token(7, at_ns)
    for gap in gaps_ns:
        at_ns += gap
        request.add_token(7, at_ns)
    due, late = due_ns(request), request.late_tokens
    next_ns = at_ns + more
    request.add_token(7, next_ns)
    assert (request.late_tokens > late) == (next_ns > due)


def test_early_tokens_of_a_paced_gap_promise_are_a_bank() -> None:
    """Sixty tokens at once, shown one each 100 ms, leave the engine six seconds less its reserve;
    without the pace they leave it nothing."""
    paced = Slo(tbt_ns=200 * MS, pace_ns=100 * MS)
    for slo, away_ns in ((paced, 6_100 * MS - 2 * S), (dataclasses.replace(paced, pace_ns=0), 0)):
        request = Request(order_of(slo), 0)
        for _ in range(60):
            request.add_token(7, 0)
        assert absence_ns(request, 0, 20 * S) == away_ns


def test_a_pause_of_a_paced_stream_is_never_seen() -> None:
    """Neither mode spends more than what the door holds: no token bought late, no contract used up
    that is longer than the pace."""
    for mode, plain_ns in ((TbtMode.GAP, 20 * S), (TbtMode.STREAM, 17_200 * MS)):
        paced = Slo(tbt_ns=200 * MS, tbt_mode=mode, pace_ns=100 * MS)
        for slo, away_ns in (
            (paced, 9_000 * MS + 200 * MS - 2 * S),
            (dataclasses.replace(paced, pace_ns=0), plain_ns),
        ):
            request = Request(order_of(slo), 0)
            for _ in range(101):
                request.add_token(7, 0)
            assert absence_ns(request, S, 20 * S) == min(away_ns, 20 * S)


def test_a_plain_answer_is_judged_as_a_stream_and_never_held_back() -> None:
    """Nobody sees its gaps, whatever its tier says of them."""
    streamed, plain = slo_of(TIER), slo_of(TIER, stream=False)
    assert (streamed.tbt_mode, streamed.pace_ns) == (TbtMode.GAP, 40 * MS)
    assert plain == dataclasses.replace(streamed, tbt_mode=TbtMode.STREAM, pace_ns=0)
