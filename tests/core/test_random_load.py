"""Long random loads under memory pressure: every answer is right, whatever the sizes and policy."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from core_copier import Copier
from core_fakes import VOCABULARY
from core_policies import ForcedParks, HostilePolicy, Tiered, tiny_model
from core_world import World
from hypothesis import event, given, settings
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
    tenant, tier = rng.choice(["red", "blue"]), rng.choice(["premium", "free"])
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
        tier=tier,
        cache_salt=tenant,
        slo=Slo(
            rank=0 if tier == "premium" else 1,
            ttft_ns=rng.randrange(10, 400),
            ttft_ns_per_1k_prompt_tokens=rng.randrange(1000),
            tbt_ns=rng.randrange(5, 30),
            tbt_mode=rng.choice(list(TbtMode)),
            pace_ns=rng.choice([0, 0, 2, 7]),
        ),
    )


def random_capacity(rng: random.Random, *, is_busy: bool = False) -> Capacity:
    """Sizes drawn at random; busy = several in a step, several on the host."""
    block_size = rng.choice([1, 2, 4, 8])
    max_batch_tokens, max_batch_requests = rng.choice([8, 16, 64]), rng.choice([4, 8, 16])
    num_host_blocks = rng.choice([20, 200])
    if not is_busy:
        max_batch_tokens = rng.choice([1, max_batch_tokens, max_batch_tokens, max_batch_tokens])
        max_batch_requests = rng.choice([1, max_batch_requests, max_batch_requests])
        num_host_blocks = rng.choice([0, 2, num_host_blocks, num_host_blocks])
    return Capacity(
        num_blocks=rng.randrange(60, 120) // block_size,
        block_size=block_size,
        max_model_len=56,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        num_host_blocks=num_host_blocks,
    )


def named_policy(name: str, seed: int, model: LatencyModel | None) -> SchedulingPolicy:
    if name == "hostile":
        return HostilePolicy(seed)
    if name == "tiered":
        return Tiered()
    if name.startswith("forced"):
        inner = named_policy(name.partition("-")[2] or "fcfs", seed, model)
        return ForcedParks(inner, seed, one_in=1 + seed % 4)
    return make_policy(name, (), model or tiny_model())


def run_load(
    seed: int, name: str, *, calm: bool, num_requests: int = 30, is_busy: bool = False
) -> World:
    """A load drawn from `seed`; calm = no aborts, stops or faults, so that every one finishes.

    In two loads of three copies are late and out of order, and some are lost where it is not calm.
    """
    rng = random.Random(seed)
    capacity = random_capacity(rng, is_busy=is_busy)
    model = rng.choice([None, tiny_model(), tiny_model(), tiny_model(link_ns=100.0)])
    policy = named_policy(name, seed, model)
    world = World(
        capacity,
        policy,
        CoreConfig(max_waiting_requests=20, max_waiting_prompt_tokens=600),
        enable_prefix_cache=rng.random() < 0.8,
        model=model,
        copier=rng.choice([Copier(), Copier(seed), Copier(seed, lost_share=0.0 if calm else 0.1)]),
    )
    world.wait(10)
    longest = min(capacity.max_model_len, capacity.num_blocks * capacity.block_size)
    pace, left = 1.0 if is_busy else rng.choice([0.3, 1.0]), num_requests
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


FEW = settings(max_examples=max(1, settings().max_examples // 3))


@pytest.mark.parametrize("name", [*POLICIES, "hostile", "tiered", "forced"])
@FEW
@given(seed=st.integers(0, 2**32), calm=st.booleans())
def test_every_request_gets_the_answer_of_its_own_history(name: str, seed: int, calm: bool) -> None:
    """Whatever is preempted, parked, shared, refused or lost, the laws of World hold."""
    world = run_load(seed, name, calm=calm)
    tell(world)
    if calm:
        ends = [truth.end for truth in world.ended]
        assert all(end is not None and end.finish_reason in ("stop", "length") for end in ends)


def tell(world: World) -> None:
    """Say how eventful a run was (pytest --hypothesis-show-statistics)."""
    snapshot = world.core.snapshot(world.now_ns)
    event(f"preemptions: {min(snapshot.preemptions_total // 4 * 4, 20)}")
    event(f"lost copies: {min(snapshot.lost_copies_total, 3)}")
    event(f"parks: {min(snapshot.parks_total // 8 * 8, 80)}")
    event(f"prefix hits: {snapshot.cached_tokens_total > 0}")
    most = max((t.end.preemptions for t in world.ended if t.end), default=0)
    event(f"most preemptions of one request: {most}")
    event(f"most steps without progress: {world.most_steps_without_progress // 4 * 4}")


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["fcfs", "tiered", "hostile"])
@settings(max_examples=max(1, 5 * settings().max_examples))
@given(seed=st.integers(0, 2**32), calm=st.booleans())
def test_answers_survive_parks_at_every_chance(inner: str, seed: int, calm: bool) -> None:
    """Laws L30 and L33: token for token as if never parked, with faults and leavers on the way.

    Many short loads: whoever made a token is carried out, comes back late, or meets a failed copy.
    """
    world = run_load(seed, f"forced-{inner}", calm=calm, num_requests=8, is_busy=True)
    tell(world)
    assert world.core.snapshot(world.now_ns).parked == 0


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
