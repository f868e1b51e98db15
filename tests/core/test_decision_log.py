"""Records agree with the truth: under any load, in known scenes, and however many there are."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from core_world import World
from decision_truth import check_world, refusals
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_random_load import run_load

from engine.core.policies import POLICIES

FEW = settings(max_examples=max(1, settings().max_examples // 3))


def watched(world_check: object, seed: int, one_in: int) -> object:
    """World.check, and now and then a look at all records in the middle of things."""
    dice = random.Random(seed)

    def check(world: World) -> None:
        world_check(world)  # type: ignore[operator]
        if dice.randrange(one_in) == 0:
            check_world(world)

    return check


@pytest.mark.parametrize("name", [*POLICIES, "hostile", "tiered", "forced"])
@FEW
@given(seed=st.integers(0, 2**32), calm=st.booleans())
def test_records_tell_what_happened(name: str, seed: int, calm: bool) -> None:
    """Steps, waits, parks, preemptions and tokens are those seen from outside, at any moment."""
    with patch.object(World, "check", watched(World.check, seed, 10)):
        world = run_load(seed, name, calm=calm, num_requests=20)
    check_world(world)
    names = [str(number) for number in range(20)]
    assert sorted(refusals(world, names)) == sorted(world.refused)
    records = [world.core.explain(name, world.now_ns) for name in names]
    assert None not in records
    kinds = [d.kind for r in records if r is not None for d in r.decisions]
    for kind in ("held", "parked", "preempted", "fault", "policy"):
        event(f"{kind}: {kinds.count(kind) > 0}")
    event(f"dropped: {any(r.num_dropped for r in records if r is not None)}")


@FEW
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["fcfs", "hybrid", "hostile"]))
def test_equal_scripts_give_equal_records(seed: int, name: str) -> None:
    """Nothing in a record depends on anything but commands, times and results."""

    def run() -> list[object]:
        world = run_load(seed, name, calm=False, num_requests=15)
        return [world.core.explain(str(number), world.now_ns) for number in range(15)]

    assert run() == run()
