"""The engine's present as an operator reads it: memory, queues, copies, banks; it keeps nothing.

Made from one snapshot, what the engine said of itself at its start, and the last seconds' rates.
Every field is documented in docs/http.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.core.stats import Snapshot
from engine.serving.client import EngineInfo


def engine_fields(
    info: EngineInfo, now: Snapshot, recent: Mapping[str, Any] | None, now_ns: int
) -> dict[str, Any]:
    """Return the fields under `engine`; `recent` is None until there is something to compare."""
    return {
        "age_ms": max(0, now_ns - now.at_ns) // NS_PER_MS,
        "step": now.step,
        "memory": {
            "block_tokens": info.block_size,
            "blocks": now.num_blocks,
            "free": now.free_blocks,
            "held": now.num_blocks - now.free_blocks,
            "coming": now.coming_blocks,
            "host_blocks": now.num_host_blocks,
            "host_free": now.free_host_blocks,
            "host_held": now.num_host_blocks - now.free_host_blocks,
            "host_format": info.host_kv_format or None,
        },
        "waiting": {
            "requests": now.waiting,
            "by_tier": dict(now.waiting_by_tier),
            "prompt_tokens": now.waiting_prompt_tokens,
        },
        "running": {"requests": now.running, "by_tier": dict(now.running_by_tier)},
        "parked": {
            "requests": now.parked,
            "by_tier": dict(now.parked_by_tier),
            "tokens": now.parked_tokens,
        },
        "bank": _bank(now),
        "swap": {
            "leaving": now.leaving,
            "returning": now.returning,
            "tokens_out_total": now.copied_out_tokens_total,
            "tokens_in_total": now.copied_in_tokens_total,
            "parks_total": now.parks_total,
            "lost_copies_total": now.lost_copies_total,
        },
        "preemptions_total": now.preemptions_total,
        "recompute_share": _share(now.recomputed_tokens_total, now.computed_tokens_total),
        "prefix_hit_share": _share(now.cached_tokens_total, now.prompt_tokens_total),
        "policy": {"name": info.policy, "options": dict(info.policy_options)},
        "latency": {
            "profile": info.latency_profile or None,
            "factor": _rounded(now.latency_factor, 4),
            "error_p50": _rounded(now.latency_error_p50, 4),
            "error_p99": _rounded(now.latency_error_p99, 4),
        },
        "recent": None if recent is None else dict(recent),
    }


def _bank(now: Snapshot) -> dict[str, float | None]:
    """Return the banks; the snapshot's are a little old, and nobody's once all have ended."""
    if not now.running + now.parked:
        return {"ms": 0.0, "least_ms": None}
    return {"ms": round(now.bank_ms, 1), "least_ms": _rounded(now.least_bank_ms)}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)
