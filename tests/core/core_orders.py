"""Short ways to say what a test needs: an order, a capacity, a world."""

from __future__ import annotations

from core_copier import Copier
from core_world import World

from engine.core.engine_core import CoreConfig
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.policies import make_policy
from engine.core.policy import SchedulingPolicy
from engine.core.request import RequestOrder, SamplingParams, Slo


def make_capacity(
    *,
    num_blocks: int = 100,
    block_size: int = 4,
    max_model_len: int = 200,
    max_batch_tokens: int = 64,
    max_batch_requests: int = 16,
    num_host_blocks: int = 0,
    host_is_exact: bool = True,
) -> Capacity:
    return Capacity(
        num_blocks,
        block_size,
        max_model_len,
        max_batch_tokens,
        max_batch_requests,
        num_host_blocks,
        host_is_exact,
    )


def make_order(
    name: str,
    prompt: int | tuple[int, ...] = 4,
    *,
    max_tokens: int = 4,
    arrival_ns: int = 0,
    salt: str = "",
    tier: str = "",
    slo: Slo | None = None,
    stop_token_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
    seed: int = 0,
) -> RequestOrder:
    """An order; a number as prompt means that many tokens, different for different names."""
    if isinstance(prompt, int):
        prompt = tuple((hash_of(name) >> i % 16) % 6 for i in range(prompt))
    sampling = SamplingParams(
        max_tokens=max_tokens, stop_token_ids=stop_token_ids, min_tokens=min_tokens, seed=seed
    )
    return RequestOrder(
        id=name,
        prompt=prompt,
        sampling=sampling,
        arrival_ns=arrival_ns,
        tier=tier,
        cache_salt=salt,
        slo=slo or Slo(),
    )


def hash_of(name: str) -> int:
    return sum(ord(letter) * 1_000_003**i for i, letter in enumerate(name, 1))


def make_world(
    policy: str | SchedulingPolicy = "fcfs",
    config: CoreConfig | None = None,
    *,
    enable_prefix_cache: bool = True,
    model: LatencyModel | None = None,
    copier: Copier | None = None,
    **capacity: int,
) -> World:
    if isinstance(policy, str):
        policy = make_policy(policy)
    return World(
        make_capacity(**capacity),
        policy,
        config,
        enable_prefix_cache=enable_prefix_cache,
        model=model,
        copier=copier,
    )
