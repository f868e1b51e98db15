"""Where all seats are taken, prompts go as fast as answers end, whatever steps could compute."""

from __future__ import annotations

import dataclasses

import pytest
from test_forecast import AT, PREMIUM, make_load, newcomer, waiting

from engine.core.forecast import Forecaster
from engine.core.load import ClassLoad
from engine.core.prompt_plan import PromptOrder, PromptPlan

ARRIVAL = PromptPlan(PromptOrder.ARRIVAL)


def raw_ns(free_seats: int, start_rate: float = 0.0) -> float:
    """Return the forecast behind ten prompts, by an engine that served 100 tokens a second."""
    running = ClassLoad("free", 1, decodes=4, decode_tokens=400)
    load = make_load(
        dataclasses.replace(running, prompts=waiting("free", 1, [100] * 10).prompts),
        plan=ARRIVAL,
        rate=100.0,
    )
    load = dataclasses.replace(load, free_seats=free_seats, start_rate=start_rate)
    found = Forecaster().forecast(newcomer(100), load, AT, AT)
    assert found is not None
    return found.raw_ns


def test_full_seats_are_waited_for() -> None:
    """Eleven prompts of 100 tokens at 100 tokens a second: some ten seconds, not some steps."""
    assert raw_ns(free_seats=0) > 8e9
    assert raw_ns(free_seats=10) > 8e9
    assert raw_ns(free_seats=11) < 1e9


def test_where_only_seats_are_short_requests_are_counted() -> None:
    """Two are started a second: ten ahead take five seconds, fewer where some seats are free."""
    waits = [raw_ns(free_seats=free, start_rate=2.0) / 1e9 for free in (0, 4, 10)]
    assert waits == pytest.approx([5.5, 3.5, 0.5], abs=0.2)


def test_prompts_without_seats_do_not_lengthen_steps() -> None:
    """A step of the first class is short beside a crowd that cannot be started."""
    crowd = ClassLoad("free", 1, waiting("free", 1, [500] * 40).prompts, decodes=4)
    load = dataclasses.replace(make_load(crowd), free_seats=1, start_rate=2.0)
    found = Forecaster().forecast(newcomer(100, PREMIUM), load, AT, AT)
    roomy = Forecaster().forecast(
        newcomer(100, PREMIUM), dataclasses.replace(load, free_seats=100), AT, AT
    )
    assert found is not None
    assert roomy is not None
    assert found.raw_ns < 0.7 * roomy.raw_ns


def test_behind_too_many_one_is_served_when_it_is_due_or_long_after() -> None:
    """Where due times order and seats are short, nobody is passed over before its time is over."""
    crowd = dataclasses.replace(
        ClassLoad("free", 1, decodes=4), prompts=waiting("free", 1, [100] * 40).prompts
    )
    load = dataclasses.replace(make_load(crowd), free_seats=0, start_rate=2.0)
    who = newcomer(100)
    found = Forecaster().forecast(who, load, AT, AT)
    assert found is not None
    assert found.basis == "late"
    assert found.raw_ns == who.target_ns
    assert found.on_time < 0.7
