"""How far a measurement can be believed: what the client itself did late, and what it estimated.

Everything here becomes the field `measured` of a point. It knows what was seen of each request and
no connection.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.core.request import FinishReason
from gateway.replay.answer_watch import CountedBy
from gateway.replay.dialect import Dialect, Form
from gateway.replay.player import Seen

MOST_DETAILS = 20  # different words of failures that are kept

# Beyond these a reader is told that the client, not the server, may be what was measured.
MOST_LAG_MS = 5.0
MOST_LOOP_DELAY_MS = 5.0
MOST_CPU_SHARE = 0.7
MOST_ESTIMATED = 0.01  # of the requests


@dataclass(frozen=True, slots=True)
class Client:
    """What the client did and used in a run; `beats` are delays of its event loop in ns."""

    origin_ns: int
    ended_ns: int
    cpu_ns: int
    bound: int
    most_open: int
    num_held: int
    beats: Sequence[int]

    @property
    def cpu_share(self) -> float:
        """CPU time over wall time; above 1 only where threads helped."""
        return self.cpu_ns / max(1, self.ended_ns - self.origin_ns)


def evidence(
    seen: Sequence[Seen],
    client: Client,
    dialect: Dialect,
    *,
    url: str,
    server: str,
    served_tiers: Mapping[str, str],
    started: str,
    asked_requests: int,
    was_stopped: bool,
) -> dict[str, Any]:
    """Return the field `measured` of a point, without keys and without prompts."""
    lag = [s.begun_ns - client.origin_ns - s.request.arrival_ns for s in seen if s.begun_ns]
    opening = [s.sent_ns - s.begun_ns for s in seen if s.sent_ns and s.begun_ns]
    tokens = sum(len(s.token_times) for s in seen)
    return {
        "url": url,
        "server": server,
        "model": dialect.model,
        "started": started,
        "wall_s": round((client.ended_ns - client.origin_ns) / 1e9, 3),
        "stopped_early": was_stopped,
        "asked_requests": asked_requests,
        "prompts": dialect.form.value,
        "pinned_by": dialect.pin.value,
        "served_tiers": dict(served_tiers),
        "outcomes": dict(Counter(_outcome(s) for s in seen)),
        "details": dict(Counter(s.detail for s in seen if s.detail).most_common(MOST_DETAILS)),
        "client": {
            "lag_ms": spread(lag),
            "connect_ms": spread(opening),
            "loop_delay_ms": spread(client.beats),
            "cpu_share": round(client.cpu_share, 4),
            "cpu_us_per_token": round(client.cpu_ns / 1000 / tokens, 2) if tokens else None,
            "bound": client.bound,
            "most_open": client.most_open,
            "held_back": client.num_held,
        },
        "tokens": {
            "counted_by": dict(Counter(s.counted_by.value for s in seen)),
            "answers_of_another_length": sum(map(_is_of_another_length, seen)),
            "prompt_tokens_wanted": sum(s.request.num_prompt_tokens for s in _counted(seen)),
            "prompt_tokens_by_server": sum(s.num_prompt_tokens or 0 for s in _counted(seen)),
        },
    }


def _counted(seen: Iterable[Seen]) -> Iterator[Seen]:
    """Yield those whose prompts the server has counted."""
    return (s for s in seen if s.num_prompt_tokens is not None)


def _outcome(seen: Seen) -> str:
    return "unfinished" if seen.reason is None else seen.reason.value


def _is_of_another_length(seen: Seen) -> bool:
    is_whole = seen.reason in (FinishReason.STOP, FinishReason.LENGTH)
    return is_whole and len(seen.token_times) != seen.request.num_output_tokens


def spread(values_ns: Sequence[int]) -> dict[str, float | None]:
    """Return median, 99th percentile and largest of some durations, in ms; null for none."""
    ordered = sorted(values_ns)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        return round(ordered[math.ceil(share * len(ordered)) - 1] / NS_PER_MS, 3)

    return {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)}


def doubts(measured: Mapping[str, Any], requests: int) -> list[str]:
    """Return, in sentences, every reason to distrust a measurement; none for a good one."""
    client, tokens = measured["client"], measured["tokens"]
    found = []
    if measured["stopped_early"]:
        found.append(f"stopped early: {requests} of {measured['asked_requests']} requests were due")
    if (late := client["lag_ms"]["p99"] or 0) > MOST_LAG_MS and not client["held_back"]:
        found.append(f"the client sent late: {late:g} ms at the 99th percentile")
    if (late := client["loop_delay_ms"]["p99"] or 0) > MOST_LOOP_DELAY_MS:
        found.append(
            f"the client read late: its loop was {late:g} ms behind at the 99th percentile"
        )
    if client["cpu_share"] > MOST_CPU_SHARE:
        found.append(f"the client was busy for {client['cpu_share']:.0%} of the time")
    if client["held_back"]:
        found.append(
            f"{client['held_back']} requests were held back: all {client['bound']} connections "
            "were in use; they count from their scheduled time"
        )
    if (short := tokens["answers_of_another_length"]) > 0:
        found.append(f"{short} answers were not as long as the trace's")
    by = tokens["counted_by"]
    estimated = by.get(CountedBy.TEXT, 0) + by.get(CountedBy.NOTHING, 0)
    if estimated > MOST_ESTIMATED * requests:
        found.append(
            f"the times of tokens are estimates in {estimated} answers: chunks held several, and "
            "the server does not say how many"
        )
    if measured["prompts"] != Form.TOKENS:
        found.append("prompts were texts of about the trace's lengths")
    return found
