"""Says where each gauge is read: queues, limits, engine, memory, usage; it keeps nothing.

Readers run in the thread that answers `/metrics`, so they only look at immutable values and sizes.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.core.stats import Snapshot
from gateway import metric_names as names
from gateway.limits.breaker import BreakerState
from gateway.limits.limiter import LimiterState
from gateway.limits.rules import Dimension
from gateway.services import Services


def observe(services: Services) -> None:
    """Register what is read, not counted: queues, limits, engine, memory, usage."""
    telemetry, admission = services.telemetry, services.admission
    engine, meter = services.host.engine, services.meter

    def depth() -> list[tuple[float, dict[str, str]]]:
        waiting = admission.waiting_by_tier()
        return [(waiting.get(t.name, 0), {names.TIER: t.name}) for t in services.tiers.current]

    def states() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        if now is None:
            return []
        counts = {"waiting": now.waiting, "running": now.running, "parked": now.parked}
        return [(count, {names.STATE: state}) for state, count in counts.items()]

    def blocks() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        if now is None:
            return []
        counts = {"free": now.free_blocks, "used": now.num_blocks - now.free_blocks}
        return [(count, {names.STATE: state}) for state, count in counts.items()]

    def usage() -> list[tuple[float, dict[str, str]]]:
        s = meter.state
        counts = {"written": s.written, "spooled": s.spooled, "refused": s.refused, "lost": s.lost}
        return [(count, {names.STATE: state}) for state, count in counts.items()]

    def backlog() -> list[tuple[float, dict[str, str]]]:
        s = meter.state
        return [
            (s.buffered, {names.STATE: "buffered_rows"}),
            (s.spooled_bytes, {names.STATE: "spooled_bytes"}),
        ]

    def thresholds() -> list[tuple[float, dict[str, str]]]:
        promised = (
            (tier.name, objective, value_ms)
            for tier in services.tiers.current
            for objective, value_ms in (
                (names.OBJECTIVE_TTFT, tier.ttft_ms),
                (names.OBJECTIVE_TBT, tier.tbt_ms),
            )
        )
        return [
            (value_ms / 1000, {names.TIER: tier, names.OBJECTIVE: objective})
            for tier, objective, value_ms in promised
        ]

    def preemptions() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        return [] if now is None else [(now.preemptions_total, {})]

    observe_limits(services)
    telemetry.observe(
        names.SLO_LEFT_OUT, lambda: [(services.slo.crowd.num_left_out, {})], monotonic=True
    )
    observe_parking(services)
    observe_latency(services)
    observe_as_vllm(services)
    telemetry.observe(names.SLO_THRESHOLD, thresholds)
    telemetry.observe(names.QUEUE_DEPTH, depth)
    telemetry.observe(names.QUEUE_PROMPT_TOKENS, lambda: [(admission.waiting_prompt_tokens, {})])
    telemetry.observe(names.OPEN_ANSWERS, lambda: [(len(services.live), {})])
    telemetry.observe(names.ENGINE_UP, lambda: [(int(services.host.is_ready), {})])
    telemetry.observe(names.ENGINE_RESTARTS, lambda: [(services.host.restarts, {})], monotonic=True)
    telemetry.observe(names.ENGINE_REQUESTS, states)
    telemetry.observe(names.ENGINE_PREEMPTIONS, preemptions, monotonic=True)
    telemetry.observe(names.KV_BLOCKS, blocks)
    telemetry.observe(names.USAGE_RECORDS, usage, monotonic=True)
    telemetry.observe(names.USAGE_BACKLOG, backlog)


def observe_as_vllm(services: Services) -> None:
    """Register what endpoint pickers read, under the names that vLLM gave it.

    The model-server protocol of the Gateway API Inference Extension (proposal 003): requests that
    wait and run, use of the KV cache, and its geometry. There are no adapters, hence no LoRA gauge.
    """
    telemetry, engine = services.telemetry, services.host.engine

    def one(read: Callable[[Snapshot], float]) -> Callable[[], list[tuple[float, dict[str, str]]]]:
        def values() -> list[tuple[float, dict[str, str]]]:
            now = engine.snapshot
            return [(0 if now is None else read(now), {})]

        return values

    def geometry() -> list[tuple[float, dict[str, str]]]:
        info = engine.info
        if info is None:
            return []
        shape = {
            names.VLLM_BLOCK_SIZE: str(info.block_size),
            names.VLLM_NUM_BLOCKS: str(info.num_blocks),
        }
        return [(1, shape)]

    telemetry.observe(names.VLLM_WAITING, one(lambda now: now.waiting))
    telemetry.observe(names.VLLM_RUNNING, one(lambda now: now.running))
    used = one(lambda now: 1 - now.free_blocks / max(now.num_blocks, 1))
    telemetry.observe(names.VLLM_KV_USE, used)
    telemetry.observe(names.VLLM_CACHE, geometry)


def observe_limits(services: Services) -> None:
    """Register the limiter: its store, what it let in and refused, what it still has to tell."""
    telemetry, limiter = services.telemetry, services.desk.limiter

    def reservations() -> list[tuple[float, dict[str, str]]]:
        s = limiter.state
        counts = {
            "granted": s.granted,
            "granted_locally": s.granted_locally,
            "refused_away": s.refused_away,
        }
        return [(count, {names.STATE: state}) for state, count in counts.items()]

    def refusals() -> list[tuple[float, dict[str, str]]]:
        denied = limiter.state.denied
        return [(denied.get(d, 0), {names.LIMIT: d.value}) for d in Dimension]

    def one(
        read: Callable[[LimiterState], int],
    ) -> Callable[[], list[tuple[float, dict[str, str]]]]:
        return lambda: [(read(limiter.state), {})]

    telemetry.observe(names.LIMITS_STORE_UP, one(lambda s: s.state == BreakerState.CLOSED))
    telemetry.observe(names.LIMITS_OPEN, one(lambda s: s.open_holds))
    telemetry.observe(names.LIMITS_OWED, one(lambda s: s.owed))
    telemetry.observe(names.LIMITS_RESERVATIONS, reservations, monotonic=True)
    telemetry.observe(names.LIMITS_REFUSALS, refusals, monotonic=True)
    for name, read in (
        (names.LIMITS_OUTAGES, lambda s: s.opened),
        (names.LIMITS_ADOPTED, lambda s: s.adopted),
        (names.LIMITS_CHARGED, lambda s: s.charged),
        (names.LIMITS_LOST, lambda s: s.lost),
        (names.LIMITS_ALERTS, lambda s: s.alerts),
    ):
        telemetry.observe(name, one(read), monotonic=True)


def observe_parking(services: Services) -> None:
    """Register what memory costs: contexts carried, lost and computed again."""
    telemetry, engine = services.telemetry, services.host.engine

    def total(read: Callable[[Snapshot], int]) -> Callable[[], list[tuple[float, dict[str, str]]]]:
        def values() -> list[tuple[float, dict[str, str]]]:
            now = engine.snapshot
            return [] if now is None else [(read(now), {})]

        return values

    def host_blocks() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        if now is None:
            return []
        counts = {"free": now.free_host_blocks, "used": now.num_host_blocks - now.free_host_blocks}
        return [(count, {names.STATE: state}) for state, count in counts.items()]

    def copied() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        if now is None:
            return []
        counts = {"out": now.copied_out_tokens_total, "in": now.copied_in_tokens_total}
        return [(count, {names.STATE: state}) for state, count in counts.items()]

    telemetry.observe(names.HOST_KV_BLOCKS, host_blocks)
    telemetry.observe(names.COPIED_TOKENS, copied, monotonic=True)
    for name, read in (
        (names.PARKS, lambda now: now.parks_total),
        (names.LOST_COPIES, lambda now: now.lost_copies_total),
        (names.COMPUTED_TOKENS, lambda now: now.computed_tokens_total),
        (names.RECOMPUTED_TOKENS, lambda now: now.recomputed_tokens_total),
    ):
        telemetry.observe(name, total(read), monotonic=True)


def observe_latency(services: Services) -> None:
    """Register how well the engine knows what its steps take."""
    telemetry, engine = services.telemetry, services.host.engine

    def factor() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        known = None if now is None else now.latency_factor
        return [] if known is None else [(known, {})]

    def errors() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        if now is None:
            return []
        found = {"0.5": now.latency_error_p50, "0.99": now.latency_error_p99}
        return [(e, {names.QUANTILE: name}) for name, e in found.items() if e is not None]

    telemetry.observe(names.STEP_FACTOR, factor)
    telemetry.observe(names.STEP_ERROR, errors)
