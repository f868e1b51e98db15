"""Tells a request's story in short plain sentences, in order of time; it knows records only.

Each sentence begins with its time since the request's arrival. Whoever reads them may be tired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine.core.clock import NS_PER_MS
from engine.core.decision import Decision, DecisionKind, Reason, RequestRecord
from gateway.request_records import ChoiceRecord, DoorRecord

WORDS = {
    Reason.STEP_UNDER_WAY: "for a step under way to end",
    Reason.TOKENS_FULL: "for room among the tokens of a step",
    Reason.ROWS_FULL: "for a row of the batch",
    Reason.TIME_FULL: "for room in the time of a step",
    Reason.DECODES_FULL: "for a place among a step's decodes",
    Reason.PROMPTS_FULL: "for a place among a step's prompts",
    Reason.SEATS_FULL: "for a seat among those who may run",
    Reason.WHOLE_PROMPT: "for a step that takes the whole prompt",
    Reason.NO_MEMORY: "for memory",
    Reason.MEMORY_COMING: "for memory that was on its way",
    Reason.RETURN_FIRST: "for a parked one ahead to come back",
    Reason.ROOM_MADE: "for a step in which nobody lost his memory to others",
    Reason.GROWTH: "to give memory to the next tokens of one ahead",
    Reason.NEWCOMER: "to make room for one ahead that was started",
    Reason.POLICY_WISH: "as the policy wished",
    Reason.NOBODY_ELSE: "because nobody else could run",
}

Line = tuple[int, str]


def story(door: DoorRecord | None, engines: list[RequestRecord]) -> list[str]:
    """Return the sentences of a request: the door's, and the engine's of each choice it knows."""
    lines: list[Line] = []
    arrival_ns = engines[0].arrival_ns if door is None else door.arrival_ns
    if door is not None:
        lines += _door_lines(door)
    for engine in engines:
        mark = f"[{engine.request_id}] " if len(engines) > 1 else ""
        lines += [(at_ns, mark + text) for at_ns, text in _engine_lines(engine)]
    lines.sort(key=lambda line: line[0])
    return [f"+{_ms(at_ns - arrival_ns)}  {text}" for at_ns, text in lines]


def _ms(duration_ns: float) -> str:
    return f"{duration_ns / NS_PER_MS:,.1f} ms"


def _due(due_ns: int | None, at_ns: int, what: str) -> str:
    """Return when something not yet there is due, seen from this moment."""
    if due_ns is None:
        return ""
    if due_ns >= at_ns:
        return f"; {what} is due in {_ms(due_ns - at_ns)}"
    return f"; {what} is overdue by {_ms(at_ns - due_ns)}"


def _margin(due_ns: int, at_ns: int) -> str:
    """Return whether something that came then was on time."""
    if at_ns <= due_ns:
        return f", {_ms(due_ns - at_ns)} before it was due"
    return f", {_ms(at_ns - due_ns)} late"


# The door


def _door_lines(door: DoorRecord) -> Iterator[Line]:
    shape = "streamed" if door.is_stream else "not streamed"
    tokens = sum(choice.num_prompt_tokens for choice in door.choices)
    first = door.choices[0]
    guess = ""
    if first.estimate is not None:
        middle, high = first.estimate.middle, first.estimate.high
        guess = f"; guessed to be {middle:.0f} tokens long, 9 in 10 at most {high:.0f}"
    yield (
        door.arrival_ns,
        f"arrived at the door: {door.operation}, {shape}, tier {door.tier_asked}, {tokens} prompt "
        f"tokens, {len(door.choices)} answer(s) of at most {door.max_tokens} tokens{guess}",
    )
    forecast = _expected(door.forecast)
    if door.refused_ns is not None:
        hint = "" if door.retry_after_ms is None else f", to come back in {door.retry_after_ms} ms"
        yield door.refused_ns, f"turned away: {door.reason} ({door.status}){hint}{forecast}"
    elif door.admitted_ns is not None:
        less = ""
        if door.tier_served != door.tier_asked:
            less = f", as tier {door.tier_served}: its own had refused it ({door.reason})"
            if own := _expected(door.own_forecast):
                less += f"{own} there"
        yield door.admitted_ns, f"let in{less}{forecast}"
    for choice in door.choices:
        yield from _choice_lines(choice, len(door.choices) > 1)
    if door.ended_ns is not None and door.refused_ns is None:
        yield door.ended_ns, f"over at the door: {door.outcome}"


def _expected(forecast: Mapping[str, float | str]) -> str:
    if "ttft_ns" not in forecast:
        return ""
    expected, low, high = [float(forecast[f"{name}_ns"]) for name in ("ttft", "low", "high")]
    return (
        f"; its first token was expected {_ms(expected)} after it arrived ({_ms(low)} to "
        f"{_ms(high)})"
    )


def _choice_lines(choice: ChoiceRecord, has_others: bool) -> Iterator[Line]:
    watch, mark = choice.stopwatch, f"[{choice.id}] " if has_others else ""
    if watch is None or watch.first_ns is None:
        return
    yield (
        watch.first_ns,
        f"{mark}first text handed to the client{_margin(choice.due_ns, watch.first_ns)}",
    )
    if watch.last_ns is not None and watch.gaps:
        yield (
            watch.last_ns,
            f"{mark}latest text handed over: {watch.num_tokens} tokens by then, {watch.late} of "
            f"them late, the longest gap {_ms(watch.worst_gap_ns)}",
        )


# The engine


def _engine_lines(record: RequestRecord) -> Iterator[Line]:
    if record.refusal is not None:
        yield record.submitted_ns, f"the engine refused it: {record.refusal}"
        return
    due = _due(record.first_token_due_ns, record.submitted_ns, "its first token")
    yield record.submitted_ns, f"the engine took it{due}"
    for decision in record.decisions:
        yield decision.at_ns, _sentence(decision)
    if record.num_dropped:
        yield record.decisions[0].at_ns, f"({record.num_dropped} decisions after these not kept)"
    if record.first_token_ns is not None:
        late = _margin(record.first_token_due_ns, record.first_token_ns)
        yield record.first_token_ns, f"the engine made the first token{late}"
    if record.late_tokens:
        at_ns = record.read_ns if record.end is None else record.end.finished_ns
        late_of = f"{record.late_tokens} of {record.num_output_tokens} tokens"
        worst = _ms(record.worst_late_ns)
        yield at_ns, f"{late_of} were late at the engine, the worst by {worst}"
    if record.end is not None:
        detail = f" ({record.end.detail})" if record.end.detail else ""
        yield (
            record.end.finished_ns,
            f"the engine ended it: {record.end.finish_reason}, "
            f"{record.end.num_output_tokens} tokens{detail}",
        )
    else:
        standing = f": {record.standing}" if record.standing else ""
        yield record.read_ns, f"now {record.state}{standing}"


def _sentence(one: Decision) -> str:
    steps = f"step {one.step}"
    if one.until_step > one.step:
        steps = f"steps {one.step} to {one.until_step}"
    lasted = _ms(one.until_ns - one.at_ns)
    why = "" if one.reason is None else f" {WORDS[one.reason]}"
    match one.kind:
        case DecisionKind.STARTED:
            return _start(one)
        case DecisionKind.RAN:
            made = f", {one.num_output_tokens} of the answer" if one.num_output_tokens else ""
            some = one.until_step - one.step + 1 - one.num_steps
            skipped = f", skipped {some} while its token was not due" if some else ""
            return f"ran in {steps} ({lasted}): {one.num_tokens} tokens computed{made}{skipped}"
        case DecisionKind.HELD:
            blame = "although it had to run" if one.is_due else "while its token was not due"
            due = _due(one.due_ns, one.at_ns, "its next token")
            return f"held back in {steps} ({lasted}){why}, {blame}{due}"
        case DecisionKind.PARKED:
            due = _due(one.due_ns, one.at_ns, "its next token")
            return f"parked{why}{_names(one)}: {one.num_tokens} tokens go to the host{due}"
        case DecisionKind.RETURNING:
            waited = "".join(f", after {_ms(ns)} {WORDS[r]}" for r, ns in one.waits)
            return f"on its way back from the host{why}{waited}"
        case DecisionKind.RETURNED:
            return f"back from the host{_due(one.due_ns, one.at_ns, 'its next token')}"
        case DecisionKind.PREEMPTED:
            return f"preempted{why}{_names(one)}: {one.num_tokens} tokens to compute again"
        case DecisionKind.FAULT:
            return f"a fault, to compute again: {one.detail}"
        case DecisionKind.POLICY:
            times = f" ({one.num_steps} times)" if one.num_steps > 1 else ""
            return f"the policy: {one.detail}{times}"


def _start(one: Decision) -> str:
    total_ns = sum(ns for _, ns in one.waits)
    text = f"started in step {one.step}{_due(one.due_ns, one.at_ns, 'its next token')}"
    if total_ns:
        parts = ", ".join(f"{_ms(ns)} {WORDS[why]}" for why, ns in one.waits)
        text += (
            f"; it had waited {_ms(total_ns)}: {parts}"
            if len(one.waits) > 1
            else (f"; it had waited {parts}")
        )
        first_ns = sum(ns for _, ns in one.first_waits)
        if first_ns:
            text += f" ({_ms(first_ns)} of it as the first in line)"
    if one.num_tokens:
        text += f"; {one.num_tokens} tokens found in the prefix cache"
    if one.others:
        text += f"; room was made by {', '.join(name for name, _ in one.others)}"
    if one.detail:
        text += f"; the policy: {one.detail}"
    return text


def _names(one: Decision) -> str:
    return "".join(f" ({name}{', tier ' + tier if tier else ''})" for name, tier in one.others)
