"""What is said of the scheduler while there is no engine."""

from __future__ import annotations

from gateway.dashboard.doing import doing


def test_of_an_engine_that_does_not_answer_no_past_is_told_as_its_present() -> None:
    """Its last numbers are there still: that it has nothing to do is not said of it."""
    last = {"running": {"requests": 0}, "waiting": {"requests": 0}}
    [said] = doing(last, None, is_away=True)
    assert said.startswith("The engine does not answer")
    assert doing(None, None, is_away=True) == ["The engine is not there yet: nothing runs."]
