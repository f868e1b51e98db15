"""From records and steps to the fields of a point; the names here are stable and documented.

Per tier: `attainment` over all offered requests, `met`, `offered`, `objective`, and quantiles of
`ttft_ms`, `lateness_ms` (per later token, 0 when early) and `normalised_latency_ms` (arrival to
end, per token generated). A request that never got a first token, or never ended by itself, counts
as infinitely late and stands in the quantiles as null: nobody vanishes. The mean of the normalised
latency is that of the requests that ended by themselves, null where there is none.

Beside them, of the whole point: `goodput` (attaining requests per second until the last arrival),
`tokens_per_s` (output tokens over the simulated time), `loaded_tokens_per_s` (those until the last
arrival, over that time: no drain at the end), `computed_tokens_per_s` (prompt and output tokens
that went through the model), `preemptions`, `max_preemptions` (of one request), `parks`,
`recompute_share` (of all computed tokens), `swap_bytes`, `refused`, `unfinished`,
`longest_wait_ms` (arrival to first token, or to the end of the run), `simulated_s`, `steps`,
`mean_step_ms`, `busy_share` (of the time a step was out), `device_use_mean` (share of blocks in
use, weighted by time in steps), `mean_decodes` (rows of a step that decode) and `tenants`: their
`count`, the `worst_attainment` among them and `jain`, Jain's index of their attainments.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from engine.core.batch import Batch, StepResult
from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.executor import Capacity
from engine.core.latency_profile import LatencyProfile
from engine.core.stats import RequestStats, StepStats, TokenEvent
from engine.sim.executor import SimulatedFault
from engine.sim.records import LatenessHistogram, RequestRecord
from engine.sim.simulator import Outcome
from engine.sim.workload import SimTier

QUANTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))
ENDED = ("stop", "length")  # by itself


class StepTotals:
    """Adds steps up as the core tells of them and as the simulator sees them."""

    def __init__(self, capacity: Capacity, last_arrival_ns: int) -> None:
        self._capacity = capacity
        self._last_arrival_ns = last_arrival_ns
        self._loaded_tokens = 0
        self._busy_ns = 0
        self._decodes = 0
        self._used_block_ns = 0
        self._copied_blocks = 0

    def on_step(self, stats: StepStats) -> None:
        """Observer: a step is over."""
        self._busy_ns += stats.elapsed_ns
        self._decodes += stats.num_decodes
        self._used_block_ns += (self._capacity.num_blocks - stats.free_blocks) * stats.elapsed_ns

    def on_finish(self, stats: RequestStats) -> None:
        """Observer: the records have it already."""

    def after_start(self, batch: Batch, now_ns: int) -> None:
        """Count what the step carries over the link."""
        if batch.parks or batch.returns:
            copies = (*batch.parks, *batch.returns)
            self._copied_blocks += sum([len(copy.block_ids) for copy in copies])

    def after_step(
        self,
        batch: Batch,
        answer: StepResult | SimulatedFault,
        events: Sequence[TokenEvent],
        now_ns: int,
    ) -> None:
        """Count tokens while requests still arrive."""
        if now_ns <= self._last_arrival_ns:
            self._loaded_tokens += sum([event.token_id is not None for event in events])

    def fields(self, outcome: Outcome, profile: LatencyProfile) -> dict[str, Any]:
        """Return the fields of a point that steps tell."""
        snapshot, steps = outcome.snapshot, outcome.num_steps
        seconds = outcome.ended_ns / NS_PER_S
        block_bytes = self._capacity.block_size * profile.kv_bytes_per_token
        busy = max(1, self._busy_ns)
        return {
            "recompute_share": _share(
                snapshot.recomputed_tokens_total, snapshot.computed_tokens_total
            ),
            "swap_bytes": self._copied_blocks * block_bytes,
            "preemptions": snapshot.preemptions_total,
            "tokens_per_s": _share(snapshot.output_tokens_total, seconds, 3),
            "loaded_tokens_per_s": _share(self._loaded_tokens, self._last_arrival_ns / NS_PER_S, 3),
            "computed_tokens_per_s": _share(snapshot.computed_tokens_total, seconds, 3),
            "simulated_s": round(seconds, 6),
            "steps": steps,
            "mean_step_ms": _share(self._busy_ns / NS_PER_MS, steps, 4),
            "busy_share": _share(self._busy_ns, outcome.ended_ns),
            "device_use_mean": _share(self._used_block_ns / self._capacity.num_blocks, busy),
            "mean_decodes": _share(self._decodes, steps, 3),
        }


def summarize(
    policy: str,
    rate: float,
    seed: int,
    tiers: Sequence[SimTier],
    records: Sequence[RequestRecord],
    lateness: Mapping[str, LatenessHistogram],
    ended_ns: int,
) -> dict[str, Any]:
    """Return the fields of a point that records tell; the run ended at `ended_ns`."""
    span_s = max(r.arrival_ns for r in records) / NS_PER_S
    met = sum(r.met for r in records)
    return {
        "policy": policy,
        "rate": rate,
        "seed": seed,
        "requests": len(records),
        "tiers": {
            tier.name: _tier_fields(
                tier, [r for r in records if r.tier == tier.name], lateness[tier.name]
            )
            for tier in tiers
        },
        "goodput": _share(met, span_s),
        "attainment": _share(met, len(records)),
        "max_preemptions": max(r.preemptions for r in records),
        "parks": sum(r.parks for r in records),
        "refused": sum(r.finish_reason == "rejected" for r in records),
        "unfinished": sum(r.finish_reason is None for r in records),
        "longest_wait_ms": _number(max(_wait_ns(r, ended_ns) for r in records) / NS_PER_MS),
        "tenants": _tenant_fields(records),
    }


def _wait_ns(record: RequestRecord, ended_ns: int) -> int:
    """Return how long a request waited for its first token, or in vain; a refused one not at all.

    A client that left before its first token waited until then.
    """
    if record.finish_reason == "rejected" or record.arrival_ns > ended_ns:
        return 0
    waited_until = (record.first_token_ns, record.finished_ns, ended_ns)
    return next(at_ns for at_ns in waited_until if at_ns is not None) - record.arrival_ns


def _tenant_fields(records: Sequence[RequestRecord]) -> dict[str, Any]:
    offered, met = Counter[str](), Counter[str]()
    for record in records:
        offered[record.tenant] += 1
        met[record.tenant] += record.met
    shares = [met[tenant] / offered[tenant] for tenant in sorted(offered)]
    squares = math.fsum(share * share for share in shares)
    return {
        "count": len(shares),
        "worst_attainment": _number(min(shares), 6),
        "jain": _share(math.fsum(shares) ** 2, len(shares) * squares),
    }


def _tier_fields(
    tier: SimTier, records: Sequence[RequestRecord], lateness: LatenessHistogram
) -> dict[str, Any]:
    met = sum(r.met for r in records)
    ttft = [
        math.inf if r.first_token_ns is None else (r.first_token_ns - r.arrival_ns) / NS_PER_MS
        for r in records
    ]
    normalised = [
        (r.finished_ns - r.arrival_ns) / NS_PER_MS / r.output
        if r.finished_ns is not None and r.finish_reason in ENDED
        else math.inf
        for r in records
    ]
    finite = [value for value in normalised if value < math.inf]
    mean = math.fsum(finite) / len(finite) if finite else math.inf
    return {
        "attainment": _share(met, len(records)),
        "objective": tier.objective,
        "offered": len(records),
        "met": met,
        "ttft_ms": quantiles(ttft),
        "lateness_ms": {
            name: _number(lateness.quantile(share) / NS_PER_MS) for name, share in QUANTILES
        },
        "normalised_latency_ms": {**quantiles(normalised), "mean": _number(mean)},
    }


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return the smallest values that 50, 95 and 99 % do not exceed; null for infinite."""
    ordered = sorted(values)
    return {
        name: _number(ordered[math.ceil(share * len(ordered)) - 1]) if ordered else None
        for name, share in QUANTILES
    }


def _number(value: float, digits: int = 3) -> float | None:
    """JSON has no infinity."""
    return round(value, digits) if math.isfinite(value) else None


def _share(part: float, whole: float, digits: int = 6) -> float | None:
    """Return part of whole, null where there is no whole."""
    return round(part / whole, digits) if whole else None
