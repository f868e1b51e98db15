"""From what a client saw of a real server to the simulator's own records and points.

The verdicts are those of `records` and `summary`, by the same code; this file only brings
observations into the form of the core's events. It knows no HTTP. What a client cannot see (steps,
preemptions, memory) is null in a measured point and empty in its records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from engine.core.clock import NS_PER_S
from engine.core.request import FinishReason
from engine.core.stats import RequestStats, TokenEvent
from engine.sim.records import Journal, RequestRecord
from engine.sim.summary import summarize
from engine.sim.workload import SimRequest, SimTier

# Fields of a point that only the engine itself could tell.
UNSEEN = (
    "computed_tokens_per_s",
    "preemptions",
    "max_preemptions",
    "parks",
    "recompute_share",
    "swap_bytes",
    "steps",
    "mean_step_ms",
    "busy_share",
    "device_use_mean",
    "mean_decodes",
)
# Columns of a record, likewise.
UNSEEN_COLUMNS = ("predicted_tokens", "first_scheduled_ms", "preemptions", "parks")


class MeasuredJournal(Journal):
    """Takes requests as a client saw them, each told once, when it is over."""

    def __init__(self, tiers: Iterable[str], last_arrival_ns: int) -> None:
        super().__init__(tiers)
        self._last_arrival_ns = last_arrival_ns
        self._refusals: dict[str, str] = {}
        self.num_tokens = 0
        self.num_loaded_tokens = 0  # until the last arrival

    def tell(
        self,
        request: SimRequest,
        token_times: Sequence[int],
        reason: FinishReason | None,
        ended_ns: int,
        *,
        num_prompt_tokens: int | None = None,
        refusal: str = "",
    ) -> None:
        """One request is over; times in ns since the run began. No reason: it was cut off.

        Where the server counted the prompt, that count decides when the first token was due.
        `refusal` says why, where the reason is REJECTED.
        """
        if num_prompt_tokens is not None:
            request = replace(request, num_prompt_tokens=num_prompt_tokens)
        self.offer(request)
        self.take([TokenEvent(request.id, 0, at_ns) for at_ns in token_times])
        self.num_tokens += len(token_times)
        self.num_loaded_tokens += sum([at_ns <= self._last_arrival_ns for at_ns in token_times])
        if reason is None:
            return  # stays open: `records` makes it an unfinished one
        track = self._live[request.id]
        stats = RequestStats(
            request_id=request.id,
            tenant=request.tenant,
            tier=request.tier.name,
            finish_reason=reason,
            arrival_ns=request.arrival_ns,
            finished_ns=ended_ns,
            first_scheduled_ns=None,
            first_token_ns=token_times[0] if token_times else None,
            last_token_ns=token_times[-1] if token_times else None,
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=0,
            num_output_tokens=len(token_times),
            preemptions=0,
            late_tokens=track.late,
        )
        self.take([TokenEvent(request.id, None, ended_ns, finish_reason=reason, stats=stats)])
        if refusal:
            self._refusals[request.id] = refusal

    def records(self, requests: Sequence[SimRequest]) -> tuple[RequestRecord, ...]:
        """See Journal; with the server's words on those it refused."""
        return tuple(
            replace(record, refusal=self._refusals.get(record.id, record.refusal))
            for record in super().records(requests)
        )


def measured_point(
    label: str,
    rate: float,
    seed: int,
    tiers: Sequence[SimTier],
    records: Sequence[RequestRecord],
    journal: MeasuredJournal,
    ended_ns: int,
) -> dict[str, Any]:
    """Return the fields of a point; `simulated_s` is the time it really took."""
    point = summarize(label, rate, seed, tiers, records, journal.lateness, ended_ns)
    seconds = ended_ns / NS_PER_S
    span_s = max(record.arrival_ns for record in records) / NS_PER_S
    point |= {
        "tokens_per_s": _rate(journal.num_tokens, seconds),
        "loaded_tokens_per_s": _rate(journal.num_loaded_tokens, span_s),
        "simulated_s": round(seconds, 6),
    }
    return point | dict.fromkeys(UNSEEN)


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
