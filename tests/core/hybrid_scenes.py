"""A hybrid of round numbers, tiers to go with it, and ways to ask it who is next."""

from __future__ import annotations

import dataclasses

from core_scenes import view, waiting

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.policies.hybrid import Hybrid
from engine.core.policies.hybrid_options import HybridOptions
from engine.core.request import Request, Slo, TbtMode

MS = 1_000_000
S = 1000 * MS
# 10 ms a step and 1 ms a token: what fits can be counted.
ROUND = LatencyProfile(name="round", base_ns=10 * MS, token_ns=MS)
PREMIUM = Slo(rank=0, ttft_ns=500 * MS, ttft_ns_per_1k_prompt_tokens=0, tbt_ns=100 * MS)
FREE = Slo(rank=1, ttft_ns=2 * S, ttft_ns_per_1k_prompt_tokens=0, tbt_ns=500 * MS)
STREAM = dataclasses.replace(FREE, tbt_mode=TbtMode.STREAM)


def hybrid(**options: float) -> Hybrid:
    """Round numbers: steps take all of the tightest gap unless a scene is about their share."""
    return Hybrid(LatencyModel(ROUND), HybridOptions(**{"step_share": 1.0, **options}))


def free(name: str, prompt: int = 20, arrival_ns: int = 0, **more: float) -> Request:
    return waiting(name, prompt, arrival_ns=arrival_ns, slo=FREE, **more)


def offer(policy: Hybrid, *requests: Request, now_ns: int = 0) -> None:
    """They arrive, as far as the policy can tell."""
    for request in requests:
        policy.prefill_rank(request, view(now_ns))


def in_turn(policy: Hybrid, *requests: Request, now_ns: int = 0) -> str:
    """The names, best rank first."""
    ranked = sorted(requests, key=lambda r: policy.prefill_rank(r, view(now_ns)))
    return "".join(r.id for r in ranked)
