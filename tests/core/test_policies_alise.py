"""ALISE's rules as reconstructed: remaining times, levels, limited preemption, ageing, swapping."""

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
from engine.core.policies.alise import Alise, JobTimes
from engine.core.request import LengthEstimate, Request, Status

# A step takes 10 ms and nothing else; prompt tokens 1 ms; links 1 us a token.
FLAT = LatencyProfile(
    "flat",
    base_ns=10.0 * NS_PER_MS,
    knee_tokens=1000,
    knee_token_ns=1.0 * NS_PER_MS,
    link_out_ns_per_token=1000.0,
    link_in_ns_per_token=1000.0,
)
HOST = make_capacity(num_blocks=1000, num_host_blocks=1000)


def flat_alise(**options: float) -> Alise:
    policy = make_policy("alise", options.items(), LatencyModel(FLAT))
    assert isinstance(policy, Alise)
    return policy


def level(policy: Alise, request: Request, now_ns: int = 0) -> float | str:
    return policy.prefill_rank(request, view(now_ns))[0]


def ran(policy: Alise, request: Request, steps: int) -> Request:
    for _ in range(steps):
        policy.observe([request], 10, view())
    return request


# Remaining time


def test_remaining_time_is_the_prompt_and_a_step_for_each_token_to_come() -> None:
    """T0 * prompt left + tokens left * (alpha * context + beta)."""
    times = JobTimes(LatencyModel(FLAT))
    assert times.remaining_ns(waiting("a", 20, guess=7)) == (20 + 70) * NS_PER_MS
    assert times.remaining_ns(prefilling("a", 20, done=15)) == (5 + 1000) * NS_PER_MS
    assert times.remaining_ns(decoding("a", generated=3, guess=7)) == 40 * NS_PER_MS


def test_remaining_time_grows_with_the_context() -> None:
    """alpha: every cached token is read for every token to come."""
    profile = LatencyProfile("reads", base_ns=100.0, decode_kv_ns=1.0)
    times = JobTimes(LatencyModel(profile))
    short = times.remaining_ns(decoding("a", 10, generated=1, guess=11))
    long = times.remaining_ns(decoding("b", 110, generated=1, guess=11))
    assert long - short == pytest.approx(10 * 100)


def test_an_overrun_guess_never_leaves_nothing() -> None:
    """A mispredicted long job must not hold the first place for ever (law L25)."""
    times = JobTimes(LatencyModel(FLAT))
    remaining = [
        times.remaining_ns(decoding("a", generated=generated, guess=10))
        for generated in (9, 10, 20, 200)
    ]
    assert [ns / (10 * NS_PER_MS) for ns in remaining] == [1, 5, 10, 100]


def test_times_follow_the_measured_factor() -> None:
    """The engine corrects its model; levels are asked of the corrected one."""
    model = LatencyModel(FLAT)
    times = JobTimes(model)
    job = waiting("a", 20, guess=7)
    before = times.remaining_ns(job)
    model.factor = 3.0
    assert times.remaining_ns(job) == pytest.approx(3 * before)


# Order


@pytest.mark.parametrize(
    ("guess", "expected"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (64, 6)]
)
def test_levels_double(guess: float, expected: int) -> None:
    """Level L holds what takes up to 10 ms * 2^L."""
    assert level(flat_alise(), decoding("a", generated=1, guess=1 + guess)) == expected


def test_within_a_level_the_earlier_goes_first() -> None:
    """And a job rises as it nears its end."""
    policy = flat_alise()
    early, late = waiting("e", 4, arrival_ns=1, guess=30), waiting("l", 4, arrival_ns=2, guess=20)
    assert level(policy, early) == level(policy, late) == 6 - 1
    assert policy.prefill_rank(early, view()) < policy.prefill_rank(late, view())
    young = decoding("y", generated=1, guess=50)
    old = decoding("o", generated=48, guess=50)
    assert level(policy, old) < level(policy, young)


def test_ageing_lifts_to_the_top_for_a_while() -> None:
    """Off the device for longer than the limit: level 0 until it ran some steps."""
    policy = flat_alise(ageing_s=1, aged_steps=2)
    request = waiting("a", guess=500)
    assert level(policy, request, NS_PER_S) > 0
    assert level(policy, request, NS_PER_S + 1) == 0
    request.move_to(Status.RUNNING, NS_PER_S + 1)
    assert level(policy, ran(policy, request, 1), 2 * NS_PER_S) == 0
    assert level(policy, ran(policy, request, 1), 2 * NS_PER_S) > 0
    assert level(policy, parked("p", at_ns=0, guess=500), NS_PER_S + 1) == 0


# Preemption


def test_only_a_strictly_better_level_preempts() -> None:
    """Arrival orders a level but justifies nothing (law L16)."""
    policy = flat_alise(min_steps=0)
    victim = decoding("v", arrival_ns=9, generated=1, guess=60)
    assert policy.may_displace(waiting("n", 4, guess=20), victim, view())
    assert not policy.may_displace(waiting("n", 4, arrival_ns=1, guess=59), victim, view())


def test_a_job_runs_its_quantum_before_it_can_be_preempted() -> None:
    """Ten steps since it was started or came back."""
    policy = flat_alise()
    newcomer = waiting("n", 4, guess=2)
    victim = ran(policy, decoding("v", generated=1, guess=600), 9)
    assert not policy.may_displace(newcomer, victim, view())
    assert policy.may_displace(newcomer, ran(policy, victim, 1), view())
    victim.move_to(Status.PARKED, 50)
    victim.move_to(Status.RUNNING, 60)
    assert not policy.may_displace(newcomer, victim, view())
    assert policy.may_displace(newcomer, ran(policy, victim, 10), view())


def test_a_nearly_finished_job_keeps_its_place() -> None:
    """Limited preemption: from 0.8 of the predicted output on."""
    policy = flat_alise(min_steps=0)
    newcomer = waiting("n", 1, guess=1)
    assert policy.may_displace(newcomer, decoding("v", generated=79, guess=100), view())
    assert not policy.may_displace(newcomer, decoding("v", generated=80, guess=100), view())


def test_a_prompt_under_way_is_not_preempted() -> None:
    """Its context is not worth a trip yet."""
    policy = flat_alise(min_steps=0)
    assert not policy.may_displace(waiting("n", 1, guess=1), prefilling("p", 90), view())


def test_deferral_preempts_nobody_and_parks_nobody() -> None:
    """The ablation: shortest job first, without preemption."""
    policy = flat_alise(defer=1, min_steps=0)
    assert not policy.may_displace(waiting("n", 1, guess=1), decoding("v", guess=900), view())
    assert not policy.swaps
    assert not flat_alise(swap=0).swaps
    assert flat_alise().swaps


def test_no_newcomer_displaces_while_the_host_is_nearly_full() -> None:
    """Nor is any started: what is on the host must come back first."""
    policy = flat_alise(min_steps=0)
    victim = decoding("v", guess=900)
    full = view(
        decoding=[victim], parked=[parked("p")], free_host_blocks=99, capacity=HOST, num_waiting=1
    )
    assert not policy.may_displace(waiting("n", 1, guess=1), victim, full)
    assert policy.limits(full).max_running == 1


# Swapping


def test_the_job_with_the_longest_to_go_leaves_for_a_shorter_one_on_the_host() -> None:
    """Waiting for those ahead of it takes far longer than the link does."""
    policy = flat_alise(min_steps=0)
    running = [decoding("long", 398, generated=1, guess=900), decoding("short", 398, guess=300)]
    small = make_capacity(num_blocks=210, num_host_blocks=1000)
    away = [parked("shortest", 398, guess=20)]
    present = view(decoding=running, parked=away, free_blocks=10, capacity=small)
    traffic = policy.traffic(present)
    assert [job.id for job in traffic.park] == ["long"]


def test_a_job_stays_where_waiting_is_shorter_than_the_link_takes() -> None:
    """It leaves only if its expected wait exceeds twice the copies."""
    slow = LatencyModel(LatencyProfile("slow", base_ns=1e7, link_out_ns_per_token=1e9))
    policy = make_policy("alise", [("min_steps", 0)], slow)
    running = [decoding("long", 398, generated=1, guess=900), decoding("short", 398, guess=300)]
    small = make_capacity(num_blocks=210, num_host_blocks=1000)
    away = [parked("shortest", 398, guess=20)]
    present = view(decoding=running, parked=away, free_blocks=10, capacity=small)
    assert list(policy.traffic(present).park) == []


def test_a_short_newcomer_takes_the_device_from_a_long_job() -> None:
    """In the engine: the longest is parked, the short one runs, the longest goes on."""
    model = tiny_model()
    policy = make_policy("alise", [("quantum_ms", 2e-5), ("min_steps", 2)], model)
    capacity = make_capacity(num_blocks=20, num_host_blocks=40)
    world = World(capacity, policy, enable_prefix_cache=False, model=model)
    for name, tokens in (("middle", 16), ("long", 30)):
        world.submit(make_order(name, 16, max_tokens=tokens))
        find(world, name).estimate = LengthEstimate(tokens, tokens)
    for _ in range(6):
        step(world)
    world.submit(make_order("short", 32, max_tokens=3))
    find(world, "short").estimate = LengthEstimate(3, 3)
    seen = []
    while "short" in world.live:
        seen.append([name for name, _ in step(world)])
    assert find(world, "long").park_count == 1
    assert find(world, "long").preemption_count == 0
    assert seen[-1] == ["middle", "short"]
    world.drain()


# Prompts


def test_prompts_are_chunked_beside_decodes_unless_whole() -> None:
    """Sarathi's budget by default; vLLM 0.x's way as an option."""
    busy = view(num_waiting=1)
    chunked, whole = flat_alise().limits(busy), flat_alise(whole=1).limits(busy)
    assert (chunked.max_tokens, chunked.whole_prompts) == (512, False)
    assert (whole.max_tokens, whole.whole_prompts, whole.max_decodes) == (8192, True, 0)
    assert flat_alise(whole=1).limits(view()).max_decodes > 0
