"""Long random loads under memory pressure: every answer is right, whatever the sizes and policy."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from core_fakes import VOCABULARY
from core_policies import ForcedParks, HostilePolicy, tiny_model
from core_world import World
from hypothesis import event, given
from hypothesis import strategies as st

from engine.core import memory_moves, planner
from engine.core.engine_core import CoreConfig
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.policies import POLICIES, make_policy
from engine.core.policy import SchedulingPolicy
from engine.core.request import RequestOrder, SamplingParams, Slo, TbtMode

SYSTEM_PROMPTS = [tuple(i * j % VOCABULARY for j in range(40)) for i in range(1, 4)]


def random_order(rng: random.Random, name: str, now_ns: int, longest: int) -> RequestOrder:
    """An order whose prompt often begins like that of others, of its own tenant or another."""
    start = rng.choice(SYSTEM_PROMPTS)[: rng.choice([0, 8, 16, 28])]
    tail = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 10)))
    max_tokens = rng.randrange(1, 30)
    prompt = (start + tail)[: max(1, longest - max_tokens)]
    tenant = rng.choice(["red", "blue"])
    return RequestOrder(
        id=name,
        prompt=prompt,
        sampling=SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.randrange(3),
            seed=rng.randrange(3),
            stop_token_ids=rng.choice([(), (), (0,)]),
            repetition_penalty=rng.choice([1.0, 1.1]),
        ),
        arrival_ns=now_ns - rng.randrange(3),
        tenant=tenant,
        tier=rng.choice(["premium", "free"]),
        cache_salt=tenant,
        slo=Slo(tbt_ns=rng.randrange(5, 30), tbt_mode=rng.choice(list(TbtMode))),
    )


def random_capacity(rng: random.Random) -> Capacity:
    block_size = rng.choice([1, 2, 4, 8])
    return Capacity(
        num_blocks=rng.randrange(60, 120) // block_size,
        block_size=block_size,
        max_model_len=56,
        max_batch_tokens=rng.choice([1, 8, 16, 64]),
        max_batch_requests=rng.choice([1, 4, 8, 16]),
        num_host_blocks=rng.choice([0, 2, 20, 200]),
    )


def named_policy(name: str, seed: int, model: LatencyModel | None) -> SchedulingPolicy:
    if name == "hostile":
        return HostilePolicy(seed)
    if name == "forced":
        return ForcedParks(make_policy("fcfs"), seed, one_in=1 + seed % 4)
    return make_policy(name, (), model or tiny_model())


def run_load(seed: int, name: str, *, calm: bool, num_requests: int = 30) -> World:
    """A load drawn from `seed`; calm = no aborts, stops or faults, so that every one finishes."""
    rng = random.Random(seed)
    capacity = random_capacity(rng)
    model = rng.choice([None, tiny_model(), tiny_model(link_ns=100.0)])
    policy = named_policy(name, seed, model)
    world = World(
        capacity,
        policy,
        CoreConfig(max_waiting_requests=20, max_waiting_prompt_tokens=600),
        enable_prefix_cache=rng.random() < 0.8,
        model=model,
    )
    world.wait(10)
    longest = min(capacity.max_model_len, capacity.num_blocks * capacity.block_size)
    pace, left = rng.choice([0.3, 1.0]), num_requests
    while left or world.live:
        world.wait(rng.randrange(3))
        if left and rng.random() < pace:
            left -= 1
            world.submit(random_order(rng, str(left), world.now_ns, longest))
        if not calm and rng.random() < 0.05:
            world.abort(str(rng.randrange(num_requests)))
        if not calm and rng.random() < 0.05:
            world.stop(str(rng.randrange(num_requests)), rng.randrange(5))
        if world.out is None:
            world.start()
        elif calm or rng.random() < 0.9:
            world.finish()
        elif rng.random() < 0.5:
            world.fault()
        else:
            world.finish([chunk.request_id for chunk in world.out.chunks[: rng.randrange(3)]])
    world.drain()
    return world


@pytest.mark.parametrize("name", [*POLICIES, "hostile", "forced"])
@given(seed=st.integers(0, 2**32), calm=st.booleans())
def test_every_request_gets_the_answer_of_its_own_history(name: str, seed: int, calm: bool) -> None:
    """Whatever is preempted, shared, refused or lost, the laws of World hold after each call."""
    world = run_load(seed, name, calm=calm)
    snapshot = world.core.snapshot(world.now_ns)
    event(f"preemptions: {min(snapshot.preemptions_total // 4 * 4, 20)}")
    event(f"parks: {min(snapshot.parks_total // 8 * 8, 40)}")
    event(f"prefix hits: {snapshot.cached_tokens_total > 0}")
    most = max((t.end.preemptions for t in world.ended if t.end), default=0)
    event(f"most preemptions of one request: {most}")
    if calm:
        ends = [truth.end for truth in world.ended]
        assert all(end is not None and end.finish_reason in ("stop", "length") for end in ends)


@given(seed=st.integers(0, 2**32), bound=st.integers(0, 2))
def test_the_preemption_bound_is_exact(seed: int, bound: int) -> None:
    """Law L16 under a bound that is reached in nearly every load, and all are served in the end."""
    with (
        patch.object(planner, "MAX_PREEMPTIONS", bound),
        patch.object(memory_moves, "MAX_PREEMPTIONS", bound),
    ):
        world = run_load(seed, "fcfs", calm=True)
    most = max(truth.end.preemptions for truth in world.ended if truth.end)
    event(f"most preemptions of one request: {most} of {bound}")
    assert most <= bound


@given(seed=st.integers(0, 2**32), name=st.sampled_from(["fcfs", "hostile", "forced"]))
def test_equal_scripts_give_equal_batches(seed: int, name: str) -> None:
    """Law L37: the same commands at the same times make the same batches, stats and blocks."""

    def run() -> World:
        return run_load(seed, name, calm=False, num_requests=15)

    first, second = run(), run()
    assert first.batches == second.batches
    assert first.recorder.finished == second.recorder.finished
    assert first.recorder.steps == second.recorder.steps
