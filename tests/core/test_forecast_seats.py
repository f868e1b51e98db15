"""Where all seats are taken, prompts go as fast as answers end, whatever steps could compute."""

from __future__ import annotations

import dataclasses

from test_forecast import AT, make_load, newcomer, waiting

from engine.core.forecast import Forecaster
from engine.core.load import ClassLoad
from engine.core.prompt_plan import PromptOrder, PromptPlan

ARRIVAL = PromptPlan(PromptOrder.ARRIVAL)


def raw_ns(free_seats: int) -> float:
    """Return the forecast behind ten prompts, by an engine that served 100 tokens a second."""
    running = ClassLoad("free", 1, decodes=4, decode_tokens=400)
    load = make_load(
        dataclasses.replace(running, prompts=waiting("free", 1, [100] * 10).prompts),
        plan=ARRIVAL,
        rate=100.0,
    )
    load = dataclasses.replace(load, free_seats=free_seats)
    found = Forecaster().forecast(newcomer(100), load, AT, AT)
    assert found is not None
    return found.raw_ns


def test_full_seats_are_waited_for() -> None:
    """Eleven prompts of 100 tokens at 100 tokens a second: some ten seconds, not some steps."""
    assert raw_ns(free_seats=0) > 8e9
    assert raw_ns(free_seats=10) == raw_ns(free_seats=0)
    assert raw_ns(free_seats=11) < 1e9
