"""A request's life as bars and marks: every kind of decision, every end, one scale of time."""

from __future__ import annotations

from typing import Any

from gateway.dashboard.timeline import BARS, LEFT, WIDTH, Bar, Lane, Mark, of_lanes, timeline


def decision(kind: str, at_ms: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "at_ms": at_ms, "step": int(at_ms), **more}


def engine(*decisions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "submitted_ms": 1.0, "read_ms": 100.0, "first_token_ms": 20.0,
        "first_token_due_ms": 50.0, "followed": True, "end": {"at_ms": 90.0},
        "decisions": list(decisions), "dropped_decisions": 0,
    } | more  # fmt: skip


def story(one: dict[str, Any], door: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"id": "a", "door": door, "engine": {"a": one}, "story": []}


def bars(one: dict[str, Any]) -> list[tuple[str, float, float]]:
    drawn = timeline(story(one))
    return [(bar.kind, bar.from_ms, bar.until_ms) for _, bar in drawn.rows]


def test_a_whole_life_is_told_in_order() -> None:
    """Queued, prefill up to the first token, decodes, deferred, parked, back, preempted, again."""
    found = bars(
        engine(
            decision("started", 10.0, waits_ms={"no_memory": 9.0}),
            decision("ran", 10.0, until_ms=30.0, until_step=30, tokens=40, steps=20),
            decision("held", 30.0, until_ms=35.0, was_due=False),
            decision("held", 35.0, until_ms=38.0, was_due=True, reason="time_full"),
            decision("parked", 40.0, reason="growth"),
            decision("returning", 50.0),
            decision("returned", 55.0),
            decision("preempted", 60.0, reason="newcomer"),
            decision("started", 70.0),
            decision("ran", 70.0, until_ms=90.0, until_step=90, tokens=60),
        )
    )
    assert found == [
        ("queued", 1.0, 10.0), ("prefill", 10.0, 20.0), ("decode", 20.0, 30.0),
        ("deferred", 30.0, 35.0), ("held", 35.0, 38.0), ("parked", 40.0, 50.0),
        ("moving", 50.0, 55.0), ("again", 60.0, 70.0), ("decode", 70.0, 90.0),
    ]  # fmt: skip
    assert {kind for kind, _, _ in found} <= set(BARS)


def test_what_is_not_over_goes_to_the_present() -> None:
    """Still queued, still away, or running without its steps being followed."""
    assert bars(engine(end=None)) == [("queued", 1.0, 100.0)]
    away = engine(decision("started", 5.0), decision("parked", 40.0), end=None)
    assert bars(away)[-1] == ("parked", 40.0, 100.0)
    unseen = engine(decision("started", 5.0), followed=False)
    assert bars(unseen)[-1] == ("running", 5.0, 90.0)


def test_reasons_are_told_in_words() -> None:
    drawn = timeline(story(engine(decision("started", 10.0, waits_ms={"no_memory": 9.0}))))
    assert drawn.rows[0][1].said == "9.0\N{NO-BREAK SPACE}ms for memory"


def test_a_refused_request_has_its_door_and_nothing_else() -> None:
    refusal = {"at_ms": 3.0, "reason": "saturated"}
    door = {"refusal": refusal, "admitted_ms": None, "ended_ms": 3.0, "outcome": "", "choices": []}
    drawn = timeline({"id": "a", "door": door, "engine": {}})
    assert [(lane, bar.kind) for lane, bar in drawn.rows] == [("Door", "door")]
    assert [mark.said for mark in drawn.marks] == ["turned away: saturated"]


def test_everything_is_within_the_drawing() -> None:
    """Whatever the times, x grows with time and stays between the names and the edge."""
    marks = (Mark("due", 900.0, "due"), Mark("first", 20.0, "first"))
    lane = Lane("Engine", (Bar("queued", 0.0, 10.0), Bar("decode", 10.0, 1000.0)), marks)
    for drawing in of_lanes([lane]).drawings:
        places = [drawing.x(at) for at in (-5.0, 0.0, 10.0, 500.0, 1e9)]
        assert places == sorted(places)
        assert places[0] == LEFT
        assert places[-1] <= WIDTH
        assert all(drawing.width(bar) >= 1.5 for bar in drawing.lanes[0].bars)
        assert 2 <= len(drawing.ticks()) <= 9


def test_the_first_token_is_seen_from_near_in_a_long_answer() -> None:
    marks = (Mark("due", 100.0, "due"), Mark("first", 20.0, "first"))
    long = of_lanes([Lane("Engine", (Bar("decode", 20.0, 5000.0),), marks)])
    assert [drawing.title for drawing in long.drawings] == [
        "Until the first token",
        "The whole answer",
    ]
    short = of_lanes([Lane("Engine", (Bar("decode", 20.0, 120.0),), marks)])
    assert len(short.drawings) == 1


def test_a_due_time_far_behind_the_end_does_not_press_the_rest_together() -> None:
    marks = (Mark("due", 60_000.0, "due"), Mark("first", 5.0, "first"))
    (drawing,) = of_lanes([Lane("Client", (Bar("answer", 5.0, 40.0),), marks)]).drawings
    assert drawing.until_ms < 50
    assert drawing.is_beyond(marks[0])
    assert not drawing.is_beyond(marks[1])


def at_the_door(**more: Any) -> dict[str, Any]:
    """A door's record of one choice that is under way and has no token."""
    choice = {
        "id": "a", "due_ms": 600.0, "ttft_ms": None, "last_ms": None, "tokens": 0, "late_tokens": 0,
    }  # fmt: skip
    return {
        "refusal": None, "admitted_ms": 10.0, "ended_ms": None, "outcome": "open",
        "choices": [choice],
    } | more  # fmt: skip


def test_what_is_under_way_is_drawn_up_to_now_by_the_door_where_the_engine_says_nothing() -> None:
    """With the moment at which its first token was due, on one drawing: there is no first token."""
    drawn = timeline({"id": "a", "door": at_the_door(), "engine": {"a": None}}, 20_000.0)
    assert [(lane, bar.kind, bar.from_ms, bar.until_ms) for lane, bar in drawn.rows] == [
        ("Door", "door", 0.0, 10.0),
        ("Client", "waits", 10.0, 20_000.0),
    ]
    assert [(mark.kind, mark.at_ms) for mark in drawn.marks] == [("due", 600.0)]
    (drawing,) = drawn.drawings
    assert drawing.until_ms > 20_000


def test_who_has_tokens_waits_since_the_last_of_them_unless_the_engine_is_done() -> None:
    door = at_the_door()
    door["choices"][0] |= {"ttft_ms": 20.0, "last_ms": 50.0, "tokens": 4}
    waits = ("waits", 50.0, 90.0)

    def client(one: dict[str, Any] | None) -> list[tuple[str, float, float]]:
        drawn = timeline({"id": "a", "door": door, "engine": {"a": one}}, 90.0)
        return [(b.kind, b.from_ms, b.until_ms) for lane, b in drawn.rows if lane == "Client"]

    assert client(None) == client(engine(end=None)) == [("answer", 20.0, 50.0), waits]
    assert client(engine()) == [("answer", 20.0, 50.0)]


def test_what_stands_at_the_door_is_drawn_up_to_now() -> None:
    door = at_the_door(admitted_ms=None)
    drawn = timeline({"id": "a", "door": door, "engine": {}}, 700.0)
    assert [(bar.kind, bar.until_ms) for _, bar in drawn.rows] == [("door", 700.0)]
    assert [mark.at_ms for mark in drawn.marks] == [600.0]
