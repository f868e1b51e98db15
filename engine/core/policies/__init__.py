"""The policies by name: it knows who exists and how to make one, not what they decide."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from engine.core.policies.fcfs import Fcfs
from engine.core.policies.sarathi import Sarathi
from engine.core.policy import SchedulingPolicy


def _fcfs(options: dict[str, float]) -> SchedulingPolicy:
    return Fcfs()


def _sarathi(options: dict[str, float]) -> SchedulingPolicy:
    return Sarathi(
        token_budget=int(options.pop("token_budget", 512)),
        max_running=int(options.pop("max_running", 128)),
    )


# A factory takes the options it knows out of the dictionary it is handed.
POLICIES = MappingProxyType({"fcfs": _fcfs, "sarathi": _sarathi})


def make_policy(name: str, options: Iterable[tuple[str, float]] = ()) -> SchedulingPolicy:
    """Return a new policy; ValueError names the known ones, or the option nobody knows."""
    factory = POLICIES.get(name)
    if factory is None:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    left = dict(options)
    policy = factory(left)
    if left:
        raise ValueError(f"policy {name!r} has no option {', '.join(sorted(left))}")
    return policy
