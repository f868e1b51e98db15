"""Says where each gauge is read: queues, engine, memory, the writer of usage; it keeps nothing.

Readers run in the thread that answers `/metrics`, so they only look at immutable values and sizes.
"""

from __future__ import annotations

from gateway import metric_names as names
from gateway.services import Services


def observe(services: Services) -> None:
    """Register what is read, not counted: queues, engine, memory, the writer of usage."""
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

    def as_vllm() -> tuple[float, float, float]:
        now = engine.snapshot
        if now is None:
            return 0, 0, 0
        return now.waiting, now.running, 1 - now.free_blocks / max(now.num_blocks, 1)

    def preemptions() -> list[tuple[float, dict[str, str]]]:
        now = engine.snapshot
        return [] if now is None else [(now.preemptions_total, {})]

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
    telemetry.observe_as_vllm(as_vllm)
