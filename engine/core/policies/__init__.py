"""The policies by name: it knows who exists and how to make one, not what they decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import TypeAlias

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies.fcfs import Fcfs
from engine.core.policies.sarathi import Sarathi
from engine.core.policy import SchedulingPolicy

DEFAULT_PROFILE = "builtin-cpu"

Options: TypeAlias = dict[str, float]

# A factory takes the options it knows out of the dictionary it is handed.
_Factory: TypeAlias = Callable[[Options, LatencyModel], SchedulingPolicy]


def _fcfs(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Fcfs()


def _sarathi(options: Options, model: LatencyModel) -> SchedulingPolicy:
    return Sarathi(
        token_budget=int(options.pop("token_budget", 512)),
        max_running=int(options.pop("max_running", 128)),
    )


POLICIES: MappingProxyType[str, _Factory] = MappingProxyType({"fcfs": _fcfs, "sarathi": _sarathi})


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
