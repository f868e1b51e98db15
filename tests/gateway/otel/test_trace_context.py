"""The caller's trace context, and who is traced: whatever anybody sends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.clock import NS_PER_S, VirtualClock
from gateway.otel.sampler import Sampler
from gateway.otel.trace_context import Parent, Trace, new_span_id, new_trace_id, parent_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def told(*values: str) -> Parent | None:
    return parent_of([(b"host", b"x"), *((b"traceparent", v.encode()) for v in values)])


def test_a_sound_parent_is_taken() -> None:
    assert told(f"00-{TRACE}-{SPAN}-01") == Parent(TRACE, SPAN, True)
    assert told(f"00-{TRACE}-{SPAN}-00") == Parent(TRACE, SPAN, False)
    # Other flags are for others; a later version may have more fields.
    assert told(f"00-{TRACE}-{SPAN}-ff") == Parent(TRACE, SPAN, True)
    assert told(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings") == Parent(TRACE, SPAN, True)


def test_anything_else_counts_as_none() -> None:
    for hostile in (
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0",
        f"00-{TRACE}0-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-" + "x" * 1000,
        f"00-{TRACE}-{SPAN}-01\n00-{TRACE}-{SPAN}-01",
        "'; drop table spans; --",
    ):
        assert told(hostile) is None, hostile
    assert told(f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01") is None  # which of them?
    assert parent_of([]) is None


@given(st.binary(max_size=600))
def test_no_bytes_do_harm(value: bytes) -> None:
    """Whatever comes, what is taken of it is hexadecimal digits and one flag."""
    parent = parent_of([(b"traceparent", value)])
    if parent is not None:
        assert len(bytes.fromhex(parent.trace_id)) == 16
        assert len(bytes.fromhex(parent.span_id)) == 8


def test_our_own_header_can_be_read_again() -> None:
    trace = Trace(new_trace_id(), new_span_id(), is_sampled=True)
    assert told(trace.header) == Parent(trace.trace_id, trace.span_id, True)


def test_the_share_is_taken_of_the_trace_id_and_close_to_what_was_asked_for() -> None:
    """The same trace is chosen at every service of the same ratio, and of a higher one."""
    clock = VirtualClock()
    ids = [new_trace_id() for _ in range(4_000)]
    tenth, half = Sampler(0.1, 0, clock), Sampler(0.5, 0, clock)
    chosen = {one for one in ids if tenth.samples(one, None)}
    assert chosen == {one for one in ids if tenth.samples(one, None)}
    assert chosen <= {one for one in ids if half.samples(one, None)}
    assert 250 < len(chosen) < 550  # eight standard deviations
    assert not any(Sampler(0.0, 0, clock).samples(one, None) for one in ids)
    assert all(Sampler(1.0, 0, clock).samples(one, None) for one in ids)


def test_a_caller_that_does_not_trace_is_followed_and_one_that_does_up_to_a_rate() -> None:
    """The sampled flag costs us work: beyond the share only so much of it can be had a second."""
    clock = VirtualClock()
    sampler = Sampler(0.0, 5.0, clock)
    asks, declines = Parent(TRACE, SPAN, True), Parent(TRACE, SPAN, False)
    assert not Sampler(1.0, 5.0, clock).samples(TRACE, declines)
    assert sum(sampler.samples(TRACE, asks) for _ in range(1_000)) == 5
    clock.advance_to(NS_PER_S)
    assert sum(sampler.samples(TRACE, asks) for _ in range(1_000)) == 5
    assert not any(Sampler(0.0, 0.0, clock).samples(TRACE, asks) for _ in range(10))
