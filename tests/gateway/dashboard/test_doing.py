"""What is said of the scheduler while there is no engine, or one that says nothing."""

from __future__ import annotations

from typing import Any

from gateway.dashboard.doing import doing, first_line


def test_of_an_engine_that_does_not_answer_no_past_is_told_as_its_present() -> None:
    """Its last numbers are there still: that it has nothing to do is not said of it."""
    last = {"running": {"requests": 0}, "waiting": {"requests": 0}}
    [said] = doing(last, None, is_away=True)
    assert said.startswith("The engine does not answer")
    assert doing(None, None, is_away=True) == ["The engine is not there yet: nothing runs."]


def idle(num_running: int = 0) -> dict[str, Any]:
    """The engine's fields as far as sentences need them, of one that holds nothing else."""
    return {
        "running": {"requests": num_running, "by_tier": {"premium": num_running}},
        "waiting": {"requests": 0},
        "parked": {"requests": 0},
        "swap": {},
        "memory": {"held": 0, "blocks": 10, "coming": 0},
        "recent": None,
        "bank": {"least_ms": None},
        "policy": {"name": "hybrid"},
    }


def test_who_waits_at_the_door_is_told_before_the_engine_has_noticed() -> None:
    assert doing(idle(), None) == ["Nobody runs: there is nothing to do."]
    assert doing(idle(), None, num_waiting=5) == ["Nobody runs, 5 wait."]
    assert doing(idle(), None, num_waiting=1) == ["Nobody runs, 1 waits."]


def test_a_silent_engine_that_owes_work_is_told_as_such_and_not_as_ready() -> None:
    state: dict[str, Any] = {"missing": [], "degraded": []}
    assert doing(idle(), None, num_waiting=5, silent_ms=2999) == ["Nobody runs, 5 wait."]
    assert first_line(state, 2999) == ("good", "Ready to serve")
    said, past = doing(idle(2), None, num_waiting=5, silent_ms=3999)
    assert "silent for 3\N{NO-BREAK SPACE}s" in said
    assert "5 requests wait for a first token, 2 requests ran when it was last heard" in said
    assert past == "The numbers are the last it told."
    kind, words = first_line(state, 3000)
    assert kind == "bad"
    assert "Ready" not in words
    assert first_line(state | {"missing": ["engine"]}, 3000)[1] == "Not ready: engine"
