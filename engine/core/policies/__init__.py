"""The policies by name: it knows who exists and how to make one, not what they decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from types import MappingProxyType
from typing import TypeAlias

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies.alise import Alise
from engine.core.policies.fastserve import FastServe
from engine.core.policies.fcfs import Fcfs
from engine.core.policies.hybrid import Hybrid
from engine.core.policies.hybrid_options import HybridOptions
from engine.core.policies.options import Options, real, switch, whole
from engine.core.policies.orca import Orca
from engine.core.policies.rad import Rad, default_tile
from engine.core.policies.sarathi import Sarathi
from engine.core.policies.slai import OFFSET_HIGH, OFFSET_LOW, Slai
from engine.core.policies.vllm0 import Vllm0
from engine.core.policy import SchedulingPolicy

DEFAULT_PROFILE = "builtin-cpu"

# A factory takes the options it knows out of the dictionary it is handed.
_Factory: TypeAlias = Callable[[Options, LatencyModel], SchedulingPolicy]


def _fcfs(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Fcfs(
        token_budget=whole(options, "token_budget", 2048),
        max_running=whole(options, "max_running", 256),
    )


def _vllm0(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Vllm0(
        token_budget=whole(options, "token_budget", 8192),
        max_running=whole(options, "max_running", 128),
    )


def _orca(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Orca(max_running=whole(options, "max_running", 8))


def _sarathi(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Sarathi(
        token_budget=whole(options, "token_budget", 512),
        max_running=whole(options, "max_running", 128),
    )


def _sarathi_spf(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Sarathi(
        token_budget=whole(options, "token_budget", 512),
        max_running=whole(options, "max_running", 128),
        shortest_first=True,
    )


def _slai(options: Options, model: LatencyModel) -> SchedulingPolicy:
    dynamic = switch(options, "dynamic", True)
    theta = real(options, "theta", OFFSET_LOW if dynamic else OFFSET_HIGH, most=1e6)
    theta_high = real(options, "theta_high", OFFSET_HIGH, most=1e6)
    return Slai(
        shortest_first=switch(options, "spf", True),
        priority=switch(options, "priority", True),
        dynamic=dynamic,
        offset_low=theta,
        offset_high=theta_high if dynamic else theta,
        memory_limit=real(options, "memory_limit", 0.96),
        token_budget=whole(options, "token_budget", 512),
        max_running=whole(options, "max_running", 128),
        decode_limit=whole(options, "decode_limit", 128),
    )


def _rad(options: Options, model: LatencyModel) -> SchedulingPolicy:
    tile_columns = whole(options, "b_col", default_tile(model))
    return Rad(
        tile_columns=tile_columns,
        tile_lcm=whole(options, "b_lcm", tile_columns),
        cycle=real(options, "cycle", math.inf, least=1.0),
    )


def _alise(options: Options, model: LatencyModel) -> SchedulingPolicy:
    prompts_whole = switch(options, "whole", False)
    return Alise(
        model,
        quantum_ms=real(options, "quantum_ms", 10.0, least=1e-6),
        ratio=real(options, "ratio", 2.0, least=1.01),
        min_steps=whole(options, "min_steps", 10, least=0),
        settled_share=real(options, "settled_share", 0.8),
        ageing_s=real(options, "ageing_s", 100.0),
        aged_steps=whole(options, "aged_steps", 10, least=0),
        swap=switch(options, "swap", True),
        defer=switch(options, "defer", False),
        whole=prompts_whole,
        token_budget=whole(options, "token_budget", 8192 if prompts_whole else 512),
        max_running=whole(options, "max_running", 128),
    )


def _fastserve(options: Options, model: LatencyModel) -> SchedulingPolicy:
    chunk = switch(options, "chunk", False)
    return FastServe(
        model,
        quantum_ms=real(options, "quantum_ms", 10.0, least=1e-6),
        starvation_s=real(options, "starvation_s", 3.0),
        period=whole(options, "period", 1000),
        token_budget=whole(options, "token_budget", 512 if chunk else 8192),
        max_running=whole(options, "max_running", 128),
        chunk=chunk,
    )


def _hybrid(options: Options, model: LatencyModel) -> SchedulingPolicy:
    names = [spec.name for spec in fields(HybridOptions) if spec.name in options]
    return Hybrid(model, HybridOptions(**{name: options.pop(name) for name in names}))


POLICIES: MappingProxyType[str, _Factory] = MappingProxyType(
    {
        "fcfs": _fcfs,
        "vllm0": _vllm0,
        "orca": _orca,
        "sarathi": _sarathi,
        "sarathi-spf": _sarathi_spf,
        "slai": _slai,
        "rad": _rad,
        "alise": _alise,
        "fastserve": _fastserve,
        "hybrid": _hybrid,
    }
)


def make_policy(
    name: str, options: Iterable[tuple[str, float]] = (), model: LatencyModel | None = None
) -> SchedulingPolicy:
    """Return a new policy; ValueError names the known ones, or the option nobody knows.

    Policies that think in time ask `model`, the very one that the engine corrects; without it they
    get the profile of the built-in model.
    """
    factory = POLICIES.get(name)
    if factory is None:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    left = dict(options)
    policy = factory(left, model or LatencyModel(load_profile(DEFAULT_PROFILE)))
    if left:
        raise ValueError(f"policy {name!r} has no option {', '.join(sorted(left))}")
    return policy
