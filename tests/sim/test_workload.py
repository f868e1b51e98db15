"""Workloads: what the seed decides, and that nothing else decides it."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_world import ROUND, short_rows

from engine.sim.arrivals import ArrivalError, parse_arrivals
from engine.sim.lengths import Lengths
from engine.sim.orders import OrderMaker
from engine.sim.tiers import DEFAULT_TIERS
from engine.sim.workload import SimTier, TraceRow, Workload, draw_workload

ROWS = short_rows(50)


def draw(**changes: object) -> Workload:
    fields: dict[str, object] = {
        "rows": ROWS,
        "tiers": DEFAULT_TIERS,
        "rate": 2.0,
        "requests": 80,
        "seed": 1,
        **changes,
    }
    return draw_workload(**fields)  # type: ignore[arg-type]


def lengths(workload: Workload) -> list[tuple[int, int]]:
    return [(r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]


def test_one_seed_one_workload_and_another_seed_another() -> None:
    """Equal seeds are equal, different ones differ in rows, times and tiers."""
    assert draw() == draw()
    one, other = draw(), draw(seed=2)
    assert lengths(one) != lengths(other)
    assert [r.arrival_ns for r in one.requests] != [r.arrival_ns for r in other.requests]
    assert [r.tier for r in one.requests] != [r.tier for r in other.requests]


def test_the_rate_moves_requests_and_changes_none() -> None:
    """At half the rate the same requests come at twice the times."""
    fast, slow = draw(rate=2.0), draw(rate=1.0)
    assert lengths(fast) == lengths(slow)
    assert [r.tier for r in fast.requests] == [r.tier for r in slow.requests]
    for a, b in zip(fast.requests, slow.requests, strict=True):
        assert b.arrival_ns == pytest.approx(2 * a.arrival_ns, abs=2)


def test_tiers_tenants_and_arrivals_have_streams_of_their_own() -> None:
    """Changing the one leaves the others as they were."""
    plain = draw(rows=[TraceRow(r.num_prompt_tokens, r.num_output_tokens) for r in ROWS])
    changed = draw(
        rows=[TraceRow(r.num_prompt_tokens, r.num_output_tokens) for r in ROWS],
        tiers=DEFAULT_TIERS[:1],
        tenants=5,
        arrivals="gamma:3",
    )
    assert lengths(plain) == lengths(changed)
    assert {r.tenant for r in plain.requests} == {"tenant-0"}
    assert len({r.tenant for r in changed.requests}) == 5
    same_arrivals = draw(tiers=DEFAULT_TIERS[:1], tenants=9)
    assert [r.arrival_ns for r in same_arrivals.requests] == [r.arrival_ns for r in plain.requests]


def test_rows_come_once_each_before_any_comes_again() -> None:
    """Shuffled, then from the start again; the tenants of the trace are kept."""
    workload = draw(requests=100)
    first, second = lengths(workload)[:50], lengths(workload)[50:]
    assert first == second
    assert sorted(first) == sorted((r.num_prompt_tokens, r.num_output_tokens) for r in ROWS)
    assert {r.tenant for r in workload.requests} == {"t0", "t1", "t2"}


@pytest.mark.parametrize(("arrivals", "cv"), [("poisson", 1.0), ("gamma:0.5", 0.5), ("gamma:4", 4)])
def test_gaps_have_the_mean_and_the_spread_that_was_asked_for(arrivals: str, cv: float) -> None:
    """Over many requests the rate is met and the coefficient of variation is as named."""
    times = [r.arrival_ns / 1e9 for r in draw(requests=20_000, arrivals=arrivals).requests]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(0.5, rel=0.1)
    assert statistics.pstdev(gaps) / mean == pytest.approx(cv, rel=0.15)


@given(
    st.floats(0.01, 100),
    st.integers(1, 120),
    st.integers(0, 9),
    st.sampled_from(["", "+jitter:0.07"]),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_recorded_arrivals_keep_their_order_and_meet_the_rate(
    rate: float, count: int, seed: int, jitter: str
) -> None:
    """Consecutive rows, in order, round the end; their span is that of the asked rate."""
    workload = draw(arrivals=f"trace{jitter}", rate=rate, requests=count, seed=seed)
    times = [r.arrival_ns for r in workload.requests]
    assert times == sorted(times)
    assert times[0] == 0
    if count > 1:
        assert times[-1] / 1e9 == pytest.approx((count - 1) / rate, rel=1e-6, abs=1e-8)
    if not jitter:
        all_lengths = [(r.num_prompt_tokens, r.num_output_tokens) for r in ROWS]
        seen = lengths(workload)
        assert any(
            seen == [all_lengths[(start + i) % 50] for i in range(count)] for start in range(50)
        )


def test_jitter_spreads_times_that_were_quantised() -> None:
    """Ticks become distinct times, and the same ones for the same seed."""
    rows = [TraceRow(1, 1, float(3 * (i // 10))) for i in range(100)]
    ticks = draw(rows=rows, arrivals="trace", requests=100)
    spread = draw(rows=rows, arrivals="trace+jitter:3", requests=100)
    assert len({r.arrival_ns for r in ticks.requests}) <= 11
    assert len({r.arrival_ns for r in spread.requests}) == 100
    assert spread == draw(rows=rows, arrivals="trace+jitter:3", requests=100)


def test_shares_are_met_by_independent_coins() -> None:
    """A twentieth is premium, whatever the shares sum to."""
    tiers = (
        SimTier("a", DEFAULT_TIERS[0].slo, 1.0, 0.9),
        SimTier("b", DEFAULT_TIERS[1].slo, 19.0, 0.9),
    )
    names = [r.tier.name for r in draw(tiers=tiers, requests=20_000).requests]
    assert names.count("a") / 20_000 == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(
    "text", ["", "uniform", "gamma", "gamma:", "gamma:0", "gamma:x", "poisson:2", "trace+jitter:-1"]
)
def test_unknown_arrivals_are_refused_by_name(text: str) -> None:
    """One sentence repeats what was given and names what is known."""
    with pytest.raises(ArrivalError, match="must be poisson, gamma:CV, trace"):
        parse_arrivals(text)


def test_recorded_arrivals_need_a_trace_that_has_them() -> None:
    """Length-only traces say so."""
    with pytest.raises(ArrivalError, match="no arrival_s"):
        draw(rows=[TraceRow(1, 1)], arrivals="trace")


def test_a_request_says_what_its_conversation_answered_before() -> None:
    """Scaled and cut as its own answer is; the order carries it, and never its own length."""
    rows = (
        TraceRow(9, 40, conversation="a"),
        TraceRow(9, 7, conversation="a", previous_outputs=(40,), text="And?"),
    )
    workload = draw(rows=Lengths(0.5, None, 15).apply(rows), requests=2, rate=1.0)
    by_length = {r.num_output_tokens: r for r in workload.requests}
    assert set(by_length) == {4, 15}
    later = by_length[4]
    assert (later.previous_outputs, later.text) == ((15,), "And?")
    maker = OrderMaker(ROUND.capacity(), 64)
    assert maker.order(later).previous_outputs == (15,)
    assert maker.order(by_length[15]).previous_outputs == ()
