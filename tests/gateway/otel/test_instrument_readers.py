"""Whoever reads instruments from another thread sees whole series, whatever is being counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gateway.instruments
from gateway.instruments import Example, Histogram, Instruments
from gateway.prometheus_text import PrometheusText


@contextmanager
def between_all_steps(look: Callable[[], Any]) -> Iterator[None]:
    """Call `look` before each step of the interpreter in the instruments' own code.

    There another thread may get its turn.
    """
    is_looking = False

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal is_looking
        if frame.f_code.co_filename != gateway.instruments.__file__:
            return None
        frame.f_trace_opcodes = True
        if not is_looking:
            is_looking = True
            look()
            is_looking = False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_new_series_of_a_histogram_appears_whole() -> None:
    """Also the one of those that are too many, and examples are taken meanwhile."""
    histogram = Histogram((1.0, 2.0), "model", most=2)
    seen: set[tuple[int, int]] = set()

    def look() -> None:
        readings = histogram.read(takes_examples=True)
        assert all(len(reading.counts) == 3 and reading.total >= 0 for reading in readings)
        seen.add((len(readings), sum(reading.count for reading in readings)))

    with between_all_steps(look):
        for number in range(4):
            histogram.record_many(1.5, (f"model {number}",), 2)
            histogram.exemplify(Example(1.5, 1, "aa" * 16, "bb" * 8), f"model {number}")
    assert {(0, 0), (1, 0), (1, 3), (2, 6), (3, 12)} <= seen
    assert [reading.total for reading in histogram.read()] == [1.5, 1.5, 3.0]


def test_a_scrape_at_any_moment_is_answered() -> None:
    made = Instruments()
    tally, histogram = (
        made.tally("tiergate.slo.requests", "tiergate.tenant.id"),
        made.histogram("gen_ai.server.request.duration", (1.0,), "tiergate.tenant.id"),
    )
    text = PrometheusText(made)
    scrapes: list[bytes] = []
    with between_all_steps(lambda: scrapes.append(text.render())):
        for tenant in ("t1", "t2"):
            tally.add(1, tenant)
            histogram.record(0.5, tenant)
    assert len(set(scrapes)) > 4
    assert b'tiergate_slo_requests_total{tiergate_tenant_id="t2"} 1.0' in text.render()
