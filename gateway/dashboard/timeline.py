"""Draws one request's life as bars and marks on a line of time; the numbers come from its story.

Times are ms since the arrival; x is in the drawing's own unit (`WIDTH`). Every bar is a row of the
table that says the same. What a bar is called is a closed list (`BARS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.dashboard.filters import ms
from gateway.request_sentences import WORDS

WIDTH = 1000
LEFT = 112  # for the names of the lanes
LANE = 34
TOP = 26
MOST_BARS = 400
MOST_DUES = 60
MOST_CHOICES = 16  # of an answer of which the door alone tells
ZOOM = 3  # the first token gets a drawing of its own where the answer is so many times longer
FAR = 1.5  # a due time so far behind everything else stands at the edge, with its number

# Kind of a bar -> what it says in the legend.
BARS: Mapping[str, str] = MappingProxyType(
    {
        "door": "at the door",
        "queued": "queued",
        "prefill": "prefill",
        "decode": "decode steps",
        "deferred": "deferred: its token was not due",
        "held": "held back although due",
        "parked": "parked on the host",
        "moving": "on its way back",
        "again": "preempted: queued again",
        "running": "running (steps not followed)",
        "answer": "tokens to the client",
        "waits": "the client waits",
    }
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of one kind; `said` is what the table adds."""

    kind: str
    from_ms: float
    until_ms: float
    said: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment; kind "due", "next" (a later token's due time), "first", "late", "end"."""

    kind: str
    at_ms: float
    said: str


@dataclass(frozen=True, slots=True)
class Lane:
    """Bars and marks of one part of the house."""

    name: str
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawing:
    """Lanes on one scale of time, ready to be drawn."""

    title: str
    lanes: tuple[Lane, ...]
    until_ms: float

    @property
    def height(self) -> int:
        """How high the drawing is."""
        return TOP + LANE * len(self.lanes) + 8

    def x(self, at_ms: float) -> float:
        """Return where a moment is."""
        share = min(max(at_ms / self.until_ms, 0.0), 1.0)
        return round(LEFT + share * (WIDTH - LEFT - 8), 2)

    def is_beyond(self, mark: Mark) -> bool:
        """True for a mark that lies behind the right edge: an arrow stands there instead."""
        return mark.at_ms > self.until_ms

    def width(self, bar: Bar) -> float:
        """Return how wide a bar is; it can always be seen."""
        return max(round(self.x(bar.until_ms) - self.x(bar.from_ms), 2), 1.5)

    def y(self, number: int) -> int:
        """Return where a lane begins."""
        return TOP + LANE * number

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and names of round moments, six or so."""
        step = 1.0
        while self.until_ms / step > 7:
            step *= 2.5 if str(step).startswith("2") else 2
        found, at_ms = [], 0.0
        while at_ms <= self.until_ms:
            found.append((self.x(at_ms), "0" if at_ms == 0 else ms(at_ms)))
            at_ms += step
        return found


@dataclass(frozen=True, slots=True)
class Timeline:
    """Drawings of one request, their legend, and the rows of the table that says the same."""

    drawings: tuple[Drawing, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[str, Bar], ...]
    marks: tuple[Mark, ...]
    dropped: int


def timeline(story: Mapping[str, Any], age_ms: float | None = None) -> Timeline:
    """Return the drawings of a story as the API tells it; `age_ms` of one that is under way.

    Where the engine tells nothing, the door's own times are drawn.
    """
    door: Mapping[str, Any] | None = story["door"]
    lanes = [] if door is None else [_door_lane(door, age_ms)]
    choices, since = ([], None) if door is None else (door["choices"], door["admitted_ms"])
    engines = [(name, one) for name, one in story["engine"].items() if one is not None]
    for number, (name, one) in enumerate(engines):
        title = "Engine" if len(engines) == 1 else f"Choice {number}"
        lanes.append(Lane(title, tuple(_engine_bars(one))[:MOST_BARS]))
        now_ms = age_ms if one["end"] is None else None
        place = number if len(engines) > 1 else None
        lanes += [_client_lane(c, place, since, now_ms) for c in choices if c["id"] == name]
    is_heard_of = bool(engines) or (door is not None and door["refusal"] is None)
    if not engines and is_heard_of:
        for number, choice in enumerate(choices[:MOST_CHOICES]):
            place = number if len(choices) > 1 else None
            lanes.append(_client_lane(choice, place, since, age_ms))
    if is_heard_of:
        lanes.append(_promise_lane(door, [one for _, one in engines]))
    return of_lanes(lanes, sum(one["dropped_decisions"] for _, one in engines))


def of_lanes(lanes: Sequence[Lane], dropped: int = 0) -> Timeline:
    """Return the drawings of these lanes: all of it, and the first token from near."""
    marks_of = [mark for lane in lanes for mark in lane.marks]
    ends = [bar.until_ms for lane in lanes for bar in lane.bars]
    ends += [mark.at_ms for mark in marks_of if mark.kind not in ("due", "next")]
    until = max([*ends, 1.0])
    dues = [mark.at_ms for mark in marks_of if mark.kind == "due"]
    if max(dues, default=0.0) <= until * FAR:
        until = max([until, *dues])
    until *= 1.04
    firsts = [mark.at_ms for mark in marks_of if mark.kind in ("due", "first", "late")]
    drawings = [Drawing("The whole answer", tuple(lanes), until)]
    near = max(firsts, default=until) * 1.1
    if near * ZOOM < until and any(mark.kind in ("first", "late") for mark in marks_of):
        drawings.insert(0, Drawing("Until the first token", tuple(_until(lanes, near)), near))
    kinds = {bar.kind for lane in lanes for bar in lane.bars}
    rows = [(lane.name, bar) for lane in lanes for bar in lane.bars]
    rows.sort(key=lambda row: row[1].from_ms)
    marks = sorted(
        (mark for lane in lanes for mark in lane.marks if mark.kind != "next"),
        key=lambda mark: mark.at_ms,
    )
    ordered = tuple(kind for kind in BARS if kind in kinds)
    return Timeline(tuple(drawings), ordered, tuple(rows), tuple(marks), dropped)


def _until(lanes: Sequence[Lane], until_ms: float) -> Iterator[Lane]:
    for lane in lanes:
        bars = tuple(bar for bar in lane.bars if bar.from_ms < until_ms)
        marks = tuple(mark for mark in lane.marks if mark.at_ms <= until_ms)
        yield Lane(lane.name, bars, marks)


def _door_lane(door: Mapping[str, Any], age_ms: float | None) -> Lane:
    refusal = door["refusal"]
    if refusal is not None:
        end = Mark("late", refusal["at_ms"], f"turned away: {refusal['reason']}")
        return Lane("Door", (Bar("door", 0.0, refusal["at_ms"]),), (end,))
    marks, admitted, ended = [], door["admitted_ms"], door["ended_ms"]
    if ended is not None:
        marks.append(Mark("end", ended, f"over: {door['outcome']}"))
    if admitted is None:
        return Lane("Door", (Bar("door", 0.0, ended or age_ms or 0.0),), tuple(marks))
    return Lane("Door", (Bar("door", 0.0, admitted, "read, judged and let in"),), tuple(marks))


def _client_lane(
    choice: Mapping[str, Any], number: int | None, since_ms: float | None, now_ms: float | None
) -> Lane:
    """Return what the client got; it waits `since_ms`, up to `now_ms` where it still does."""
    marks, bars = [], []
    first, last = choice["ttft_ms"], choice["last_ms"]
    if first is not None:
        kind = "first" if first <= choice["due_ms"] else "late"
        said = "the first token" + ("" if kind == "first" else ", late")
        marks.append(Mark(kind, first, said))
        late = f", {choice['late_tokens']} late" if choice["late_tokens"] else ""
        bars.append(Bar("answer", first, last or first, f"{choice['tokens']} tokens{late}"))
        since_ms = last or first
    if now_ms is not None and since_ms is not None and now_ms > since_ms:
        said = "no token yet" if first is None else "since its last token"
        bars.append(Bar("waits", since_ms, now_ms, said))
    return Lane("Client" if number is None else f"Client {number}", tuple(bars), tuple(marks))


def _engine_bars(one: Mapping[str, Any]) -> Iterator[Bar]:
    """Yield the bars of an engine's record, decision after decision."""
    end_ms: float = one["end"]["at_ms"] if one["end"] is not None else one["read_ms"]
    first_ms: float | None = one["first_token_ms"]
    waiting: tuple[float, str] | None = (one["submitted_ms"], "queued")
    away: tuple[float, str] | None = None
    started: float | None = None
    for decision in one["decisions"]:
        at_ms, kind, why = decision["at_ms"], decision["kind"], _why(decision)
        if kind == "started":
            if waiting is not None:
                yield Bar(waiting[1], waiting[0], at_ms, _waits(decision))
            waiting, started = None, at_ms
        elif kind == "ran":
            yield from _ran(decision, first_ms)
        elif kind == "held":
            due = "held" if decision["was_due"] else "deferred"
            yield Bar(due, at_ms, decision.get("until_ms", at_ms), why)
        elif kind in ("parked", "returning", "returned"):
            if away is not None:
                yield Bar("parked" if kind == "returning" else "moving", away[0], at_ms, away[1])
            away = None if kind == "returned" else (at_ms, why)
        elif kind in ("preempted", "fault"):
            waiting, away = (at_ms, "again"), None
    if waiting is not None:
        yield Bar(waiting[1], waiting[0], end_ms)
    elif away is not None:
        yield Bar("parked", away[0], end_ms, away[1])
    elif started is not None and not one["followed"]:
        yield Bar("running", started, end_ms)


def _ran(decision: Mapping[str, Any], first_ms: float | None) -> Iterator[Bar]:
    """Yield steps that ran: prefill up to the first token, decodes behind it."""
    at_ms = decision["at_ms"]
    until = decision.get("until_ms", at_ms)
    steps = decision.get("until_step", decision["step"]) - decision["step"] + 1
    said = f"{decision.get('steps', steps)} steps, {decision.get('tokens', 0)} tokens computed"
    middle = until if first_ms is None else min(max(first_ms, at_ms), until)
    if middle > at_ms:
        yield Bar("prefill", at_ms, middle, said)
    if until > middle or middle == at_ms:
        yield Bar("decode", middle, until, said)


def _promise_lane(door: Mapping[str, Any] | None, engines: Sequence[Mapping[str, Any]]) -> Lane:
    """Return when tokens were due: the first ones, and others as far as decisions went by it."""
    first = {one["first_token_due_ms"] for one in engines}
    if door is not None:
        first = {choice["due_ms"] for choice in door["choices"]}
    marks = [Mark("due", due, "the first token was due") for due in sorted(first)]
    return Lane("Due", (), (*marks, *(mark for one in engines for mark in _dues(one))))


def _dues(one: Mapping[str, Any]) -> Iterator[Mark]:
    """Yield when next tokens were due, as far as decisions were made by it."""
    dues = {
        decision["due_ms"]
        for decision in one["decisions"]
        if "due_ms" in decision and decision["due_ms"] != one["first_token_due_ms"]
    }
    for due in sorted(dues)[:MOST_DUES]:
        if due > 0:
            yield Mark("next", due, "the next token was due")


def _why(decision: Mapping[str, Any]) -> str:
    reason = decision.get("reason")
    words = {one.value: text for one, text in WORDS.items()}
    return words.get(reason, "") if reason else ""


def _waits(decision: Mapping[str, Any]) -> str:
    words = {one.value: text for one, text in WORDS.items()}
    waits: Mapping[str, float] = decision.get("waits_ms", {})
    return ", ".join(f"{ms(took)} {words.get(why, why)}" for why, took in waits.items())
