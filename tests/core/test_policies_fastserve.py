"""FastServe's rules: skip-join, demotion, promotion of the starving, preemption by queue."""

from __future__ import annotations

import pytest
from core_orders import make_capacity, make_order
from core_policies import tiny_model
from core_scenes import decoding, find, parked, prefilling, step, view, waiting
from core_world import World

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.policies import make_policy
from engine.core.policies.fastserve import FastServe
from engine.core.request import Request

# A prompt token takes 1 ms.
PER_TOKEN = LatencyProfile("per-token", token_ns=1.0 * NS_PER_MS)


def fastserve(**options: float) -> FastServe:
    policy = make_policy("fastserve", options.items(), LatencyModel(PER_TOKEN))
    assert isinstance(policy, FastServe)
    return policy


def ran(policy: FastServe, request: Request, *times_ms: float, now_ns: int = 0) -> int:
    """Its queue once it ran in steps of these lengths."""
    for time_ms in times_ms:
        policy.observe([request], int(time_ms * NS_PER_MS), view(now_ns))
    return policy.queue(request)


@pytest.mark.parametrize(
    ("prompt", "queue"), [(1, 0), (10, 0), (11, 1), (20, 1), (21, 2), (40, 2), (640, 6)]
)
def test_a_job_joins_the_queue_whose_quantum_covers_its_prompt(prompt: int, queue: int) -> None:
    """Skip-join: 10 ms * 2^L."""
    assert fastserve().queue(waiting("a", prompt)) == queue


def test_a_job_moves_down_when_it_used_more_than_its_quantum() -> None:
    """Not at it; and the next queue's quantum is counted from nothing."""
    policy = fastserve()
    request = decoding("a", 5)
    assert ran(policy, request, 4, 6) == 0
    assert ran(policy, request, 1) == 1
    assert ran(policy, request, 10, 10) == 1
    assert ran(policy, request, 1) == 2
    assert ran(policy, request, *[10] * 4) == 2
    assert ran(policy, request, 1) == 3


def test_the_starving_are_promoted_at_a_check() -> None:
    """Every so many steps, whoever had none for 3 s goes to the top, from there down again."""
    policy = fastserve(period=10)
    idle, busy = parked("idle", 5), decoding("busy", 5)
    assert ran(policy, idle, 11) == 1
    ran(policy, busy, *[1] * 8, now_ns=3 * NS_PER_S)
    assert policy.queue(idle) == 1  # the check is due after one more step
    ran(policy, busy, 1, now_ns=3 * NS_PER_S)
    assert policy.queue(idle) == 0
    assert ran(policy, idle, 5, now_ns=4 * NS_PER_S) == 0
    assert ran(policy, idle, 6, now_ns=4 * NS_PER_S) == 1


def test_a_wait_just_short_of_the_limit_is_no_starvation() -> None:
    """And who never ran waits from its arrival on."""
    policy = fastserve(period=1)
    late, early = waiting("late", 100, arrival_ns=1), waiting("early", 100, arrival_ns=0)
    policy.observe([], 1, view(3 * NS_PER_S))
    assert (policy.queue(late), policy.queue(early)) == (4, 0)


def test_jobs_are_served_by_queue_and_then_by_arrival() -> None:
    """For prompts and for memory alike."""
    policy = fastserve()
    low = decoding("low", 5, arrival_ns=0)
    ran(policy, low, 11)
    jobs = [low, waiting("b", 5, arrival_ns=2), waiting("a", 5, arrival_ns=1)]
    for rank in (policy.prefill_rank, policy.keep_rank):
        assert [r.id for r in sorted(jobs, key=lambda r: rank(r, view()))] == ["a", "b", "low"]


def test_a_better_queue_preempts_and_an_equal_one_does_not() -> None:
    """From one step to the next, whoever decodes; a prompt under way stays."""
    policy = fastserve()
    victim = decoding("v", 5, arrival_ns=9)
    newcomer = waiting("n", 5, arrival_ns=1)
    assert not policy.may_displace(newcomer, victim, view())
    ran(policy, victim, 11)
    assert policy.may_displace(newcomer, victim, view())
    assert not policy.may_displace(newcomer, prefilling("p", 900), view())


def test_no_prompt_is_begun_while_the_host_is_nearly_full() -> None:
    """Rule 3 of the swapping; those running go on."""
    policy = fastserve()
    victim = decoding("v", 5)
    ran(policy, victim, 11)
    full = view(
        decoding=[victim],
        parked=[parked("p")],
        free_host_blocks=9,
        capacity=make_capacity(num_host_blocks=100),
    )
    assert policy.limits(full).max_running == 1
    assert not policy.may_displace(waiting("n", 5), victim, full)


def test_prompts_are_whole_unless_chunked() -> None:
    """8,192 tokens of them in a step, as published; or Sarathi's budget."""
    whole, chunked = fastserve().limits(view()), fastserve(chunk=1).limits(view())
    assert (whole.whole_prompts, whole.max_tokens) == (True, 8192)
    assert (chunked.whole_prompts, chunked.max_tokens) == (False, 512)


def test_a_newcomer_runs_before_a_job_that_used_its_quantum() -> None:
    """In the engine: the later of two jobs goes to the host and comes back, nothing is lost."""
    model = tiny_model()
    policy = make_policy("fastserve", [("quantum_ms", 2e-5)], model)  # 20 ns; a step takes 7
    capacity = make_capacity(num_blocks=20, num_host_blocks=40)
    world = World(capacity, policy, enable_prefix_cache=False, model=model)
    world.submit(make_order("first", 16, max_tokens=30))
    world.submit(make_order("second", 16, max_tokens=30))
    for _ in range(6):
        step(world)
    world.submit(make_order("new", 32, max_tokens=2))
    while "new" in world.live:
        step(world)
    assert find(world, "second").park_count == 1
    assert world.core.snapshot(world.now_ns).preemptions_total == 0
    world.drain()
