"""What is billed for one request, and how it did: the engine's record joined with the door's.

A row counts a prompt once the engine began to compute it, and once for all choices of one prompt,
and the tokens of the answer. A request that was refused, or failed before its first token, has no
row. It keeps nothing and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from engine.core.clock import NS_PER_MS
from engine.core.request import FinishReason
from engine.core.stats import RequestStats
from gateway.stopwatch import Stopwatch
from tenants.slo import is_steady
from tenants.values import DEFAULT_ORGANISATION_ID, TierRecord, UsageRecord

OnEnd = Callable[[UsageRecord | None], None]


@dataclass(frozen=True, slots=True)
class UsageContext:
    """What the door knows of one engine request, and the engine does not.

    `bills_prompt` is False for further choices of a prompt that another choice pays for. `paced`
    is True where the door holds tokens back, and says by `Meter.settle` when it has ended. `tier`
    is the one served, with its prices; without it the request costs nothing. `on_end` hears at
    once, when the request is over, what is billed for it: None where nothing is.
    """

    tenant_id: str
    key_id: str
    tier_requested: str
    tier_served: str
    model: str
    stream: bool
    arrival: datetime
    stopwatch: Stopwatch
    bills_prompt: bool = True
    paced: bool = False
    organisation_id: str = DEFAULT_ORGANISATION_ID
    tier: TierRecord | None = None
    on_end: OnEnd | None = None


def usage_row(stats: RequestStats, context: UsageContext) -> UsageRecord | None:
    """Return the row of a finished request; None where there is nothing to record.

    Times are those at the door where an answer got that far, else the engine's.
    """
    nothing_made = stats.num_output_tokens == 0
    if stats.finish_reason is FinishReason.REJECTED:
        return None
    if stats.finish_reason is FinishReason.FAILED and nothing_made:
        return None
    # A record written for a dead engine knows no scheduling time, but a token proves it.
    began = stats.first_scheduled_ns is not None or not nothing_made
    prompt = stats.num_prompt_tokens if began and context.bills_prompt else 0
    cached, tier = min(stats.num_cached_tokens, prompt), context.tier
    watch = context.stopwatch
    first_ns, late = _first_and_late(stats, watch)
    return UsageRecord(
        request_id=stats.request_id,
        tenant_id=context.tenant_id,
        key_id=context.key_id,
        tier_requested=context.tier_requested,
        tier_served=context.tier_served,
        model=context.model,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=stats.num_output_tokens,
        finish_reason=stats.finish_reason.value,
        stream=context.stream,
        arrival=context.arrival,
        total_ms=_ms(stats.finished_ns - stats.arrival_ns),
        ttft_ms=None if first_ns is None else _ms(first_ns - stats.arrival_ns),
        late_tokens=late,
        preemptions=stats.preemptions,
        slo_met=slo_met(stats, watch),
        organisation_id=context.organisation_id,
        tier_version=0 if tier is None else tier.version,
        cost_nano=0 if tier is None else tier.cost_nano(prompt, cached, stats.num_output_tokens),
    )


def interrupted_row(request_id: str, context: UsageContext) -> UsageRecord | None:
    """Return the row of an answer under way, as if it broke off at this moment; None for no answer.

    It counts what was handed to the client. How much of the prompt came from the cache only the
    engine knows, and will say at the end: here it is counted at the lower of the two prices.
    """
    watch, tier = context.stopwatch, context.tier
    if not context.stream or watch.num_tokens == 0:
        return None
    is_cheaper = tier is not None and tier.price_cached_nano < tier.price_prompt_nano
    assert watch.last_ns is not None
    stats = RequestStats(
        request_id=request_id,
        tenant=context.tenant_id,
        tier=context.tier_served,
        finish_reason=FinishReason.FAILED,
        arrival_ns=watch.arrival_ns,
        finished_ns=watch.last_ns,
        first_scheduled_ns=None,
        first_token_ns=watch.first_ns,
        last_token_ns=watch.last_ns,
        num_prompt_tokens=watch.num_prompt_tokens,
        num_cached_tokens=watch.num_prompt_tokens if is_cheaper else 0,
        num_output_tokens=watch.num_tokens,
        preemptions=0,
        late_tokens=watch.late,
    )
    return usage_row(stats, context)


def as_delivered(stats: RequestStats, watch: Stopwatch) -> RequestStats:
    """Return the record of a paced answer whose client left before it had seen all of it."""
    is_whole = stats.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    return dataclasses.replace(
        stats,
        finish_reason=FinishReason.CANCELLED if is_whole else stats.finish_reason,
        num_output_tokens=min(stats.num_output_tokens, watch.num_tokens),
    )


def slo_met(stats: RequestStats, watch: Stopwatch) -> bool | None:
    """True where a finished choice met both targets; None where its client left.

    It is the story of one choice: what is promised is judged by whole requests (tenants/slo.py).
    """
    if stats.finish_reason is FinishReason.CANCELLED:
        return None  # the client left: neither kept nor broken
    if stats.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        return False
    first_ns, late = _first_and_late(stats, watch)
    in_time = watch.ttft_met_at(first_ns)
    return in_time and is_steady(max(stats.num_output_tokens - 1, 0), late) is not False


def _first_and_late(stats: RequestStats, watch: Stopwatch) -> tuple[int | None, int]:
    """Return when the first token came and how many others were late; at the door, if there."""
    if watch.first_ns is None:
        return stats.first_token_ns, stats.late_tokens
    return watch.first_ns, watch.late


def _ms(duration_ns: int) -> float:
    return round(max(duration_ns, 0) / NS_PER_MS, 3)
