"""The baselines without a notion of time: fcfs, vllm0, orca and sarathi, rule by rule."""

from __future__ import annotations

import pytest
from core_orders import make_capacity, make_order, make_world
from core_scenes import decoding, find, prefilling, step, view, waiting
from core_world import World

from engine.core.policies.fcfs import Fcfs
from engine.core.policies.orca import Orca
from engine.core.policies.sarathi import Sarathi
from engine.core.policies.vllm0 import Vllm0
from engine.core.policy import SchedulingPolicy
from engine.core.request import Status


def small_world(policy: SchedulingPolicy, **capacity: int) -> World:
    """No shared prefixes: every token a test counts is computed."""
    return make_world(policy, enable_prefix_cache=False, **capacity)


def kinds(world: World) -> set[str]:
    """Run a step; which kinds of work it held."""
    batch = world.start()
    assert batch is not None
    found = {"decode" if chunk.is_decode else "prompt" for chunk in batch.chunks}
    world.finish()
    return found


# fcfs


def test_fcfs_holds_its_own_budget_and_the_executors() -> None:
    """vLLM's default of 2,048 tokens is a limit of its own; the executor's applies as well."""
    world = small_world(Fcfs(token_budget=6), max_batch_tokens=64)
    world.submit(make_order("a", 20))
    assert step(world) == [("a", 6)]
    world = small_world(Fcfs(), max_batch_tokens=8)
    world.submit(make_order("a", 20))
    assert step(world) == [("a", 8)]


def test_fcfs_starts_no_more_than_its_seats() -> None:
    """Nor more than a step has rows, however many seats are asked for."""
    assert Fcfs().limits(view()).max_running == 16
    world = small_world(Fcfs(max_running=2))
    for name in "abc":
        world.submit(make_order(name, max_tokens=2))
    assert step(world) == [("a", 4), ("b", 4)]
    assert step(world) == [("a", 1), ("b", 1)]
    assert step(world) == [("c", 4)]


def test_fcfs_claims_a_chunk_and_not_the_prompt() -> None:
    """V1 allocates as it computes: a prompt larger than what is free may begin."""
    policy = Fcfs(token_budget=8)
    assert policy.room(waiting("a", 60), view()).claim_tokens == 0
    world = small_world(policy, num_blocks=20)
    world.submit(make_order("a", 40, max_tokens=20))
    step(world)
    assert world.core.snapshot(world.now_ns).free_blocks == 18


# vllm0


def test_vllm0_never_mixes_prompts_and_decodes() -> None:
    """A step is one or the other; prompts go first, and decodes wait for all of them."""
    world = small_world(Vllm0())
    world.submit(make_order("a", 10, max_tokens=6))
    assert step(world) == [("a", 10)]
    assert step(world) == [("a", 1)]
    world.submit(make_order("b", 30, max_tokens=6))
    world.submit(make_order("c", 40, max_tokens=6))
    assert step(world) == [("b", 30)]  # c does not fit beside it
    assert step(world) == [("c", 40)]  # and a decodes nothing all the while
    assert step(world) == [("a", 1), ("b", 1), ("c", 1)]
    while world.live:
        assert len(kinds(world)) == 1


def test_vllm0_decodes_when_the_first_prompt_finds_no_room() -> None:
    """Whoever waits for blocks holds up nobody, and nobody overtakes it."""
    world = small_world(Vllm0(), num_blocks=12)
    world.submit(make_order("a", 30, max_tokens=4))
    step(world)
    world.submit(make_order("big", 20, max_tokens=4))
    world.submit(make_order("small", 4, max_tokens=4))
    assert step(world) == [("a", 1)]
    assert step(world) == [("a", 1)]
    assert step(world) == [("a", 1)]  # it ends, and both fit
    assert step(world) == [("big", 20), ("small", 4)]


def test_vllm0_takes_prompts_up_to_its_budget() -> None:
    """Whole prompts of 8,192 tokens in all; a smaller budget is an option."""
    world = small_world(Vllm0(token_budget=20))
    for name in "abc":
        world.submit(make_order(name, 9))
    assert step(world) == [("a", 9), ("b", 9)]
    assert step(world) == [("c", 9)]


def test_vllm0_computes_what_is_too_long_for_a_step_when_alone() -> None:
    """vLLM drops such a prompt; here it is served in the end, after everyone who runs."""
    world = small_world(Vllm0(), max_batch_tokens=16)
    world.submit(make_order("a", 4, max_tokens=3))
    step(world)
    world.submit(make_order("long", 40, max_tokens=2))
    assert [step(world) for _ in range(5)] == [
        [("a", 1)],
        [("a", 1)],
        [("long", 16)],
        [("long", 16)],
        [("long", 8)],
    ]


def test_vllm0_evicts_the_latest_arrival_and_computes_it_again() -> None:
    """Out of blocks, the earlier goes on; the later comes back with its whole history."""
    world = small_world(Vllm0(), num_blocks=8)
    world.submit(make_order("a", 8, max_tokens=20))
    world.wait(1)
    world.submit(make_order("b", 8, max_tokens=12, arrival_ns=1))
    assert step(world) == [("a", 8), ("b", 8)]
    while len(step(world)) == 2:
        pass
    assert find(world, "b").status is Status.WAITING
    assert find(world, "b").preemption_count == 1
    generated = len(find(world, "b").output)
    rows = step(world)
    while rows == [("a", 1)]:
        rows = step(world)
    assert rows == [("b", 8 + generated)]
    world.drain()


# orca


def test_orca_mixes_whole_prompts_with_decodes() -> None:
    """Iteration-level scheduling: who arrives joins the next step, with all of its prompt."""
    world = small_world(Orca())
    world.submit(make_order("a", 10, max_tokens=4))
    assert step(world) == [("a", 10)]
    world.submit(make_order("b", 30, max_tokens=4))
    assert step(world) == [("a", 1), ("b", 30)]


def test_orca_claims_the_worst_case() -> None:
    """Room for the longest answer is set aside at admission, so nobody is ever preempted."""
    request = waiting("a", 20, max_tokens=300)
    assert Orca().room(request, view()).claim_tokens == 320
    world = small_world(Orca(), num_blocks=10)
    world.submit(make_order("a", 8, max_tokens=20))  # 7 blocks in the end
    world.submit(make_order("b", 8, max_tokens=8))  # 4, of which 3 are left
    while world.live:
        step(world)
        assert world.core.snapshot(world.now_ns).running <= 1
    assert world.core.snapshot(world.now_ns).preemptions_total == 0


def test_orcas_batch_is_eight() -> None:
    """The published size, as far as the executor has rows."""
    assert Orca().limits(view()).max_running == 8
    narrow = make_capacity(max_batch_requests=4)
    assert Orca().limits(view(capacity=narrow)).max_running == 4


# sarathi


def test_sarathi_prefers_prompts_under_way_then_arrival_or_length() -> None:
    """Its SLAI fork adds shortest first among new prompts; what was begun goes first in both."""
    begun = prefilling("begun", 90)
    old, new = waiting("old", 50, arrival_ns=1), waiting("new", 10, arrival_ns=2)
    by_arrival, by_length = Sarathi(), Sarathi(shortest_first=True)
    for policy, expected in ((by_arrival, ["begun", "old", "new"]), (by_length, None)):
        ranked = sorted((begun, old, new), key=lambda r: policy.prefill_rank(r, view()))
        assert [r.id for r in ranked] == (expected or ["begun", "new", "old"])


def test_sarathi_spf_counts_an_evicted_answer_as_prompt() -> None:
    """The prompt of an evicted request is all it has so far."""
    evicted = decoding("evicted", 10, generated=30)
    evicted.move_to(Status.WAITING, 5)
    evicted.num_computed = 0
    fresh = waiting("fresh", 20, arrival_ns=7)
    policy = Sarathi(shortest_first=True)
    assert policy.prefill_rank(fresh, view()) < policy.prefill_rank(evicted, view())


def test_sarathi_admits_whole_prompts_above_the_watermark() -> None:
    """A hundredth of the blocks stays free when a prompt is started."""
    room = Sarathi().room(waiting("a", 20), view())
    assert (room.claim_tokens, room.spare_blocks) == (20, 10)
    world = small_world(Sarathi(token_budget=8), num_blocks=20)
    world.submit(make_order("a", 40, max_tokens=2))
    step(world)
    assert world.core.snapshot(world.now_ns).free_blocks == 10


@pytest.mark.parametrize("shortest_first", [False, True])
def test_sarathi_stalls_no_decode(shortest_first: bool) -> None:
    """Whatever prompts arrive, every running request gets a token in every step."""
    world = small_world(Sarathi(token_budget=8, shortest_first=shortest_first))
    world.submit(make_order("a", 4, max_tokens=12))
    step(world)
    for number in range(6):
        world.submit(make_order(f"p{number}", 10 + number, max_tokens=12))
        rows = dict(step(world))
        assert rows["a"] == 1
        assert sum(rows.values()) <= 8
