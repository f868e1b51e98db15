"""Tells a finished request's story from its counters and its timeline; it ends nobody."""

from __future__ import annotations

import itertools

from engine.core.request import Request, Status
from engine.core.stats import RequestStats


def stats_of(
    request: Request, *, num_output_tokens: int | None = None, detail: str = ""
) -> RequestStats:
    """Return the whole story of a request that has just ended.

    `num_output_tokens` replaces the count of what was generated, where less belongs to the answer.
    """
    assert request.finish_reason is not None
    generated = len(request.output)
    order = request.order
    return RequestStats(
        request_id=request.id,
        tenant=order.tenant,
        tier=order.tier,
        finish_reason=request.finish_reason,
        arrival_ns=order.arrival_ns,
        finished_ns=request.timeline[-1].at_ns,
        first_scheduled_ns=request.first_scheduled_ns,
        first_token_ns=request.first_token_ns,
        last_token_ns=request.last_token_ns,
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached,
        num_output_tokens=generated if num_output_tokens is None else num_output_tokens,
        preemptions=request.preemption_count,
        late_tokens=request.late_tokens,
        parks=request.park_count,
        parked_ns=_parked_ns(request),
        predicted_tokens=0.0 if request.estimate is None else request.estimate.middle,
        detail=detail,
    )


def _parked_ns(request: Request) -> int:
    """Return the time a finished request spent on the host."""
    steps = itertools.pairwise(request.timeline)
    return sum(b.at_ns - a.at_ns for a, b in steps if a.status is Status.PARKED)
