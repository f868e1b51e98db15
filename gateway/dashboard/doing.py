"""What the scheduler is doing now, in a few plain sentences; whoever reads them may be tired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.core.load import ClassLoad, EngineLoad
from gateway.dashboard.filters import count, ms, rate, share, span

ALMOST = 0.9  # of the memory: soon somebody has to wait for it
SILENT_MS = 3000  # with work owed: no step takes so long on an engine that is well


def doing(
    engine: Mapping[str, Any] | None,
    load: EngineLoad | None,
    *,
    is_away: bool = False,
    num_waiting: int = 0,
    silent_ms: int = 0,
) -> list[str]:
    """Return the sentences; `engine` are the fields of the engine's present.

    `is_away`: it was there and does not answer now; what is known of it is its past. `num_waiting`
    are those at the doors without a first token, whom the engine may not have noticed yet.
    `silent_ms`: for so long it has owed something without a word.
    """
    if engine is None:
        return ["The engine is not there yet: nothing runs."]
    if is_away:
        return ["The engine does not answer, so nothing runs. The numbers are the last it told."]
    if silent_ms >= SILENT_MS:
        return [_silent(engine, num_waiting, silent_ms), "The numbers are the last it told."]
    found = [_running(engine, num_waiting)]
    if load is not None:
        found += [_class(one) for one in load.classes if one.num_open]
        if load.budget_ns and engine["running"]["requests"]:
            found.append(
                f"A step may take at most {ms(load.budget_ns / NS_PER_MS)} now, so that streams "
                "keep their pace."
            )
    found += [*_parked(engine), *_memory(engine), *_lost(engine), *_bank(engine)]
    return found


def _silent(engine: Mapping[str, Any], num_waiting: int, silent_ms: int) -> str:
    ran = engine["running"]["requests"]
    owed = []
    if num_waiting:
        owed.append(f"{_requests(num_waiting)} {_waits(num_waiting)} for a first token")
    if ran:
        owed.append(f"{_requests(ran)} ran when it was last heard")
    whom = ", ".join(owed) or "somebody waits"
    return (
        f"The engine has been silent for {span(silent_ms // 1000)} and owes work: {whom}. If it "
        "stays silent for a minute or two, it is ended and another started."
    )


def _running(engine: Mapping[str, Any], num_waiting: int) -> str:
    running, recent = engine["running"], engine["recent"]
    policy = engine["policy"]["name"]
    if not running["requests"]:
        waits = max(engine["waiting"]["requests"], num_waiting)
        return (
            f"Nobody runs{f', {waits} {_waits(waits)}' if waits else ': there is nothing to do'}."
        )
    tiers = _by_tier(running["by_tier"])
    pace = ""
    if recent is not None and recent["steps"]["mean_ms"] is not None:
        pace = (
            f" A step takes {ms(recent['steps']['mean_ms'])}, and "
            f"{rate(recent['output_tokens_per_s'])} tokens come out a second."
        )
    return f"{policy} runs {_requests(running['requests'])}: {tiers}.{pace}"


def _class(one: ClassLoad) -> str:
    text = f"{one.tier}: {_requests(one.num_open)} still {_needs(one.num_open)} a first token"
    text += f", {count(one.open_tokens)} prompt tokens to compute"
    dues = [prompt.due_ns for prompt in one.prompts]
    if dues:
        first = min(dues)
        when = (
            f"due in {ms(first / NS_PER_MS)}"
            if first >= 0
            else (f"overdue by {ms(-first / NS_PER_MS)}")
        )
        text += f"; the most urgent is {when}"
    if one.lost:
        text += f"; {one.lost} missed for good and {'go' if one.lost > 1 else 'goes'} last"
    return text + "."


def _parked(engine: Mapping[str, Any]) -> list[str]:
    parked, swap = engine["parked"], engine["swap"]
    if not parked["requests"]:
        return []
    text = f"{_requests(parked['requests'])} parked on the host ({_by_tier(parked['by_tier'])}"
    text += f", {count(parked['tokens'])} tokens), so that others keep their promise"
    moves = [
        f"{swap[name]} {words}"
        for name, words in (("leaving", "on the way out"), ("returning", "on the way back"))
        if swap[name]
    ]
    return [text + (f"; {' and '.join(moves)}" if moves else "") + "."]


def _memory(engine: Mapping[str, Any]) -> list[str]:
    memory = engine["memory"]
    held = memory["held"] / memory["blocks"] if memory["blocks"] else 0.0
    if held < ALMOST:
        return []
    coming = f"; {memory['coming']} blocks are coming free" if memory["coming"] else ""
    return [f"Memory is nearly full: {share(held)} of the blocks are held{coming}."]


def _lost(engine: Mapping[str, Any]) -> list[str]:
    recent = engine["recent"]
    if recent is None or not recent["recompute_share"]:
        return []
    return [f"{share(recent['recompute_share'])} of what is computed was computed before."]


def _bank(engine: Mapping[str, Any]) -> list[str]:
    least = engine["bank"]["least_ms"]
    if least is None:
        return []
    if least < 0:
        return [f"The stream that is worst off is {ms(-least)} late."]
    return [f"Every stream is ahead of its promise, the closest by {ms(least)}."]


def _by_tier(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{num} {tier}" for tier, num in counts.items() if num) or "none"


def _requests(num: int) -> str:
    return f"{num} request{'' if num == 1 else 's'}"


def _needs(num: int) -> str:
    return "needs" if num == 1 else "need"


def _waits(num: int) -> str:
    return "waits" if num == 1 else "wait"


def first_line(state: Mapping[str, Any], silent_ms: int = 0) -> tuple[str, str]:
    """Return whether the gateway serves, as (kind of badge, words)."""
    missing: Sequence[str] = state["missing"]
    if missing:
        return "bad", f"Not ready: {', '.join(missing)}"
    if silent_ms >= SILENT_MS:
        return "bad", "Not answering: the engine is silent"
    if state["degraded"]:
        return "warn", f"Ready, but degraded: {', '.join(state['degraded'])}"
    return "good", "Ready to serve"
