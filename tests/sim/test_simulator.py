"""Virtual time: scenarios small enough to add up by hand, and the verdicts on them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_world import ROUND, TIGHT, request, simulate, tier

from engine.core.clock import NS_PER_MS
from engine.core.request import TbtMode
from engine.sim.records import LatenessHistogram, RequestRecord, meets_tbt


def in_ms(record: RequestRecord) -> tuple[float, ...]:
    times = (record.first_scheduled_ns, record.first_token_ns, record.finished_ns)
    return tuple(-1 if at_ns is None else at_ns / NS_PER_MS for at_ns in times)


def test_two_requests_take_the_time_one_adds_up_by_hand() -> None:
    """Steps of 10 ms and 1 ms a token; who arrives while a step is out waits for its end.

    0 to 15 ms: five prompt tokens of a. 15 to 28: a's second token and two prompt tokens of b.
    28 to 40: the last token of both.
    """
    records, _ = simulate([request("a", 0, 5, 3), request("b", 10, 2, 2)])
    assert in_ms(records["a"]) == (0, 15, 40)
    assert in_ms(records["b"]) == (15, 28, 40)
    assert [r.finish_reason for r in records.values()] == ["stop", "stop"]


def test_an_idle_device_waits_for_the_next_arrival() -> None:
    """The second request starts when it comes, not when the first ends."""
    records, _ = simulate([request("a", 0, 1, 1), request("b", 500, 1, 1)])
    assert in_ms(records["a"]) == (0, 11, 11)
    assert in_ms(records["b"]) == (500, 511, 511)


def test_a_step_that_ends_as_one_arrives_ends_first() -> None:
    """At one instant: the step's end, then the arrival, then the next step, which has both."""
    records, _ = simulate([request("a", 0, 5, 2), request("b", 15, 1, 1)])
    assert in_ms(records["b"]) == (15, 27, 27)
    assert in_ms(records["a"]) == (0, 15, 27)


@pytest.mark.parametrize(
    ("mode", "tbt_ms", "late", "worst_ms"),
    [
        # a's tokens come at 15, 28 and 40 ms: gaps of 13 and 12.
        (TbtMode.GAP, 13, 0, 0),
        (TbtMode.GAP, 12.5, 1, 0.5),
        (TbtMode.GAP, 11, 2, 2),
        # Due at 15 + i * tbt: the second gap makes up for the first.
        (TbtMode.STREAM, 12.5, 1, 0.5),
        (TbtMode.STREAM, 13, 0, 0),
        (TbtMode.STREAM, 12, 2, 1),
    ],
)
def test_lateness_is_counted_in_the_mode_of_the_tier(
    mode: TbtMode, tbt_ms: float, late: int, worst_ms: float
) -> None:
    """`gap` counts from the token before, `stream` from the first token."""
    of_tier = tier(tbt_ms=tbt_ms, mode=mode)
    records, journal = simulate([request("a", 0, 5, 3, of_tier), request("b", 10, 2, 2, of_tier)])
    a = records["a"]
    assert (a.late_tokens, a.worst_lateness_ns) == (late, worst_ms * NS_PER_MS)
    assert a.met_tbt == (late == 0)  # two later tokens: one late is more than 1 %
    histogram = journal.lateness["free"]
    assert histogram.num_tokens == 3
    assert histogram.quantile(1.0) == pytest.approx(worst_ms * NS_PER_MS, rel=1 / 128)


def test_a_first_token_on_its_due_time_is_on_time() -> None:
    """Due 20 ms after arrival: nine prompt tokens take 19 ms, ten 20, eleven 21."""
    for prompt, met in ((9, True), (10, True), (11, False)):
        records, _ = simulate([request("a", 0, prompt, 1)])
        assert records["a"].met_ttft is met
        assert records["a"].met is met
        assert records["a"].met_tbt  # a lone token has no later ones


@pytest.mark.parametrize(
    ("tokens", "late", "met"),
    [(1, 0, True), (2, 1, False), (100, 1, False), (101, 1, True), (101, 2, False), (201, 2, True)],
)
def test_one_later_token_in_a_hundred_may_be_late(tokens: int, late: int, met: bool) -> None:
    """The first is none of them: 100 later tokens, 101 in all, allow one."""
    assert meets_tbt(tokens, late) is met


@pytest.mark.parametrize(
    ("at_ms", "first_ms", "tokens"),
    [(5, None, 0), (15, 15, 1), (20, 15, 1), (28, 15, 2)],
)
def test_an_abort_ends_a_request_at_once_and_is_a_miss(
    at_ms: float, first_ms: float | None, tokens: int
) -> None:
    """While its prompt is out, as a step ends (whose token counts), while decoding."""
    records, _ = simulate(
        [request("a", 0, 5, 9), request("b", 10, 2, 2)], aborts=[(int(at_ms * NS_PER_MS), "a")]
    )
    a, b = records["a"], records["b"]
    assert (a.finish_reason, a.finished_ns, a.output) == ("cancelled", at_ms * NS_PER_MS, tokens)
    assert a.first_token_ns == (None if first_ms is None else first_ms * NS_PER_MS)
    assert not a.met
    assert b.met


def test_aborting_who_is_gone_or_never_came_changes_nothing() -> None:
    """The client may leave after the last token."""
    plain, _ = simulate([request("a", 0, 5, 2)])
    late, _ = simulate([request("a", 0, 5, 2)], aborts=[(10**12, "a"), (10**6, "nobody")])
    assert plain == late


def test_who_can_never_fit_is_refused_and_recorded() -> None:
    """Offered, so a miss; and nobody behind it is held up."""
    records, _ = simulate([request("big", 0, 398, 3), request("a", 0, 5, 1)])
    big = records["big"]
    assert (big.finish_reason, big.refusal, big.met) == ("rejected", "never_fits", False)
    assert big.first_token_ns is None
    assert records["a"].met


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60), st.integers(0, 60))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_lateness_quantiles_are_right_to_a_128th(late: list[int], on_time: int) -> None:
    """The histogram's quantile is the sorted list's, rounded down by less than its resolution."""
    histogram = LatenessHistogram()
    for lateness_ns in late:
        histogram.add_late(lateness_ns)
    histogram.num_tokens = len(late) + on_time
    ordered = [0] * on_time + sorted(late)
    for share in (0.5, 0.95, 0.99):
        exact = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        assert exact * 127 / 128 - 1 <= histogram.quantile(share) <= exact


@pytest.mark.parametrize("profile", [ROUND, TIGHT], ids=lambda p: p.name)
def test_tokens_and_times_of_a_lone_request_are_the_models(profile: object) -> None:
    """Alone, an answer of n tokens takes a prompt step and n - 1 decode steps."""
    assert profile in (ROUND, TIGHT)
    chosen = ROUND if profile is ROUND else TIGHT
    records, _ = simulate([request("a", 0, 6, 4)], chosen)
    a = records["a"]
    assert (a.output, a.wanted, a.predicted) == (4, 4, 4.0)
    if chosen is ROUND:
        assert in_ms(a) == (0, 16, 49)
