"""Makes the JSON of a request's story out of the door's and the engine's records; asks nobody.

Times are ms since the request's arrival. Every field is documented in docs/http.md.
"""

from __future__ import annotations

from typing import Any

from engine.core.clock import NS_PER_MS
from engine.core.decision import Decision, RequestRecord
from gateway.request_records import ChoiceRecord, DoorRecord, numbers
from gateway.request_sentences import story

MOST_DETAIL = 200  # characters of an engine's own words


def request_fields(
    door: DoorRecord | None, engines: dict[str, RequestRecord | None], engine_error: str
) -> dict[str, Any]:
    """Return the whole story; `engines` are by the ids of engine requests, in order.

    One of both is known. `engine_error` says why the engine was not heard, empty where it was.
    """
    known = [record for record in engines.values() if record is not None]
    arrival_ns = known[0].arrival_ns if door is None else door.arrival_ns
    shown = {name: record and engine_fields(record, arrival_ns) for name, record in engines.items()}
    return {
        "id": next(iter(engines)) if door is None else door.id,
        "request_id": None if door is None else door.request_id,
        "story": story(door, known),
        "door": None if door is None else door_fields(door),
        "engine": shown,
        "engine_error": engine_error or None,
    }


def summary_fields(door: DoorRecord) -> dict[str, Any]:
    """Return one line of the list of requests."""
    firsts = [ns for choice in door.choices if (ns := _first_ns(choice)) is not None]
    return {
        "id": door.id,
        "request_id": door.request_id,
        "trace_id": door.trace_id or None,
        "arrival": door.arrival.isoformat(),
        "tenant": door.tenant_id,
        "tier": door.tier_served,
        "outcome": door.outcome or "open",
        "reason": door.reason or None,
        "ttft_ms": _since(min(firsts, default=None), door.arrival_ns),
        "met": None if door.judged is None else door.judged.met,
    }


def door_fields(door: DoorRecord) -> dict[str, Any]:
    """Return the door's record as plain values."""
    arrival_ns = door.arrival_ns
    refusal = downgrade = None
    if door.tier_served != door.tier_asked:
        downgrade = {"reason": door.reason, "forecast": numbers(door.own_forecast) or None}
    if door.refused_ns is not None:
        refusal = {
            "at_ms": _since(door.refused_ns, arrival_ns),
            "reason": door.reason,
            "status": door.status,
            "retry_after_ms": door.retry_after_ms,
        }
    return {
        **summary_fields(door),
        "operation": door.operation,
        "model": door.model,
        "tier_asked": door.tier_asked,
        "stream": door.is_stream,
        "paced": door.is_paced,
        "max_tokens": door.max_tokens,
        "verdict": door.verdict or None,
        "forecast": numbers(door.forecast) or None,
        "downgrade": downgrade,
        "admitted_ms": _since(door.admitted_ns, arrival_ns),
        "refusal": refusal,
        "ended_ms": _since(door.ended_ns, arrival_ns),
        "choices": [_choice_fields(choice, arrival_ns) for choice in door.choices],
    }


def _choice_fields(choice: ChoiceRecord, arrival_ns: int) -> dict[str, Any]:
    watch, guess = choice.stopwatch, choice.estimate
    return {
        "id": choice.id,
        "prompt_tokens": choice.num_prompt_tokens,
        "predicted_tokens": None if guess is None else round(guess.middle, 1),
        "predicted_high": None if guess is None else round(guess.high, 1),
        "due_ms": _since(choice.due_ns, arrival_ns),
        "ttft_ms": _since(_first_ns(choice), arrival_ns),
        "last_ms": _since(None if watch is None else watch.last_ns, arrival_ns),
        "tokens": 0 if watch is None else watch.num_tokens,
        "late_tokens": 0 if watch is None else watch.late,
        "worst_gap_ms": None if watch is None else round(watch.worst_gap_ns / NS_PER_MS, 3),
        "finish_reason": choice.finish_reason,
        "met": choice.is_met,
    }


def _first_ns(choice: ChoiceRecord) -> int | None:
    return None if choice.stopwatch is None else choice.stopwatch.first_ns


def engine_fields(record: RequestRecord, arrival_ns: int) -> dict[str, Any]:
    """Return an engine's record as plain values."""
    end = record.end
    return {
        "state": record.state,
        "standing": record.standing or None,
        "tier": record.tier,
        "rank": record.rank,
        "read_ms": _since(record.read_ns, arrival_ns),
        "submitted_ms": _since(record.submitted_ns, arrival_ns),
        "first_token_due_ms": _since(record.first_token_due_ns, arrival_ns),
        "first_token_ms": _since(record.first_token_ns, arrival_ns),
        "tbt_ms": record.tbt_ns / NS_PER_MS,
        "tbt_mode": record.tbt_mode.value,
        "pace_ms": record.pace_ns / NS_PER_MS,
        "prompt_tokens": record.num_prompt_tokens,
        "max_tokens": record.max_tokens,
        "predicted_tokens": round(record.predicted_tokens, 1),
        "predicted_high": round(record.predicted_high, 1),
        "output_tokens": record.num_output_tokens,
        "late_tokens": record.late_tokens,
        "worst_late_ms": record.worst_late_ns / NS_PER_MS,
        "steps": record.num_steps,
        "followed": record.is_followed,
        "refusal": None if record.refusal is None else record.refusal.value,
        "end": None
        if end is None
        else {
            "at_ms": _since(end.finished_ns, arrival_ns),
            "finish_reason": end.finish_reason.value,
            "preemptions": end.preemptions,
            "parks": end.parks,
            "parked_ms": end.parked_ns / NS_PER_MS,
            "cached_tokens": end.num_cached_tokens,
            "detail": end.detail[:MOST_DETAIL] or None,
        },
        "decisions": [decision_fields(one, arrival_ns) for one in record.decisions],
        "dropped_decisions": record.num_dropped,
    }


def decision_fields(one: Decision, arrival_ns: int) -> dict[str, Any]:
    """Return a decision; what it does not have is left out."""
    shown: dict[str, Any] = {
        "kind": one.kind.value,
        "at_ms": _since(one.at_ns, arrival_ns),
        "step": one.step,
    }
    if one.until_step:
        shown["until_ms"] = _since(one.until_ns, arrival_ns)
        shown["until_step"] = one.until_step
    if one.reason is not None:
        shown["reason"] = one.reason.value
    if one.kind == "held":
        shown["was_due"] = one.is_due
    if one.due_ns is not None:
        shown["due_ms"] = _since(one.due_ns, arrival_ns)
    counts = {
        "steps": one.num_steps,
        "tokens": one.num_tokens,
        "output_tokens": one.num_output_tokens,
    }
    shown |= {name: count for name, count in counts.items() if count}
    if one.others:
        shown["others"] = [{"id": name, "tier": tier} for name, tier in one.others]
    for name, waits in (("waits_ms", one.waits), ("first_waits_ms", one.first_waits)):
        if waits:
            shown[name] = {reason.value: ns / NS_PER_MS for reason, ns in waits}
    if one.detail:
        shown["detail"] = one.detail[:MOST_DETAIL]
    return shown


def _since(at_ns: int | None, arrival_ns: int) -> float | None:
    return None if at_ns is None else round((at_ns - arrival_ns) / NS_PER_MS, 3)
