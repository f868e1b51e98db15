"""A step's time budget: what the latency model says the step takes, and who is left for later."""

from __future__ import annotations

from core_orders import make_order, make_world
from core_policies import Tiered
from core_world import World

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.policy import StepLimits


def plain_model(**prices: float) -> LatencyModel:
    """Ten for a step and one for each of its tokens, and what the test adds."""
    return LatencyModel(LatencyProfile(name="plain", base_ns=10.0, token_ns=1.0, **prices))


def timed_world(max_step_ns: int, model: LatencyModel | None = None) -> tuple[World, Tiered]:
    policy = Tiered(limits=StepLimits(max_step_ns=max_step_ns))
    return make_world(policy, enable_prefix_cache=False, model=model or plain_model()), policy


def step(world: World) -> list[tuple[str, int]]:
    batch = world.start()
    assert batch is not None
    world.finish()
    return [(chunk.request_id, chunk.num_tokens) for chunk in batch.chunks]


def forget_learning(world: World) -> None:
    """The fake executor's time has nothing to do with the model's: let it teach nothing."""
    world.core._scheduler._began_ns = None


def decoding(max_step_ns: int, names: str, model: LatencyModel | None = None) -> World:
    """A world where all of `names` decode, the first to keep first, under a budget from now on."""
    world, policy = timed_world(10**6, model)
    world.wait(9)
    for index, name in enumerate(names):
        world.submit(make_order(name, 4, max_tokens=20, arrival_ns=index))
    step(world)
    forget_learning(world)
    policy.shape = StepLimits(max_step_ns=max_step_ns)
    return world


def test_a_prompt_is_cut_where_the_budget_ends() -> None:
    """Ten for the step leave twenty tokens of thirty, and all thirty are predicted."""
    world, _ = timed_world(30)
    world.submit(make_order("a", 45))
    world.start()
    assert world.core._scheduler.predicted_ns == 30
    assert [chunk.num_tokens for chunk in world.batches[-1].chunks] == [20]
    world.finish()
    world.drain()


def test_prompts_get_the_time_that_due_decodes_leave() -> None:
    """Three decodes are served first; seven tokens of the prompt make the twenty full."""
    world = decoding(20, "abc")
    world.submit(make_order("long", 30, arrival_ns=1))
    assert step(world) == [("a", 1), ("b", 1), ("c", 1), ("long", 7)]
    world.drain()


def test_due_decodes_beyond_the_budget_wait_for_the_next_step() -> None:
    """Seats go to those who keep first; nobody computes more than there is time for."""
    world = decoding(12, "abcd")
    assert step(world) == [("a", 1), ("b", 1)]
    world.drain()


def test_the_first_due_decode_is_served_whatever_it_takes() -> None:
    """No budget may stop every answer; but nothing is added to a step that is late already."""
    world = decoding(3, "abc")
    world.submit(make_order("prompt", 9, arrival_ns=1))
    assert step(world) == [("a", 1)]
    world.drain()


def test_decodes_that_are_not_due_never_make_a_step_late() -> None:
    """They take the time left over, one by one."""
    world = decoding(13, "abcd")
    policy = world.core.policy
    assert isinstance(policy, Tiered)
    policy.not_due = ("a", "b", "c", "d")
    world.submit(make_order("prompt", 2, max_tokens=1, arrival_ns=1))
    assert step(world) == [("a", 1), ("prompt", 2)]
    world.drain()


def test_a_budget_that_lets_nobody_in_is_not_kept() -> None:
    """Law L11: where the step would be empty, decodes run, and then anything."""
    world, policy = timed_world(5)
    world.submit(make_order("a", 9, max_tokens=4))
    assert step(world) == [("a", 9)]
    policy.not_due = ("a",)
    assert step(world) == [("a", 1)]
    world.drain()


def test_decodes_are_dearer_beside_a_prompt() -> None:
    """The attention of decodes costs more in a mixed step: the prompt that makes it so pays."""
    model = plain_model(decode_kv_ns=1.0, mixed_kv_factor=2.0)
    world = decoding(30, "ab", model)
    # Two decodes over eight cached tokens: 10 + 2 + 8, and 8 more as soon as there is a prompt.
    world.submit(make_order("prompt", 9, arrival_ns=1))
    assert step(world) == [("a", 1), ("b", 1), ("prompt", 2)]
    world.drain()


def test_what_a_victim_gives_back_includes_its_time() -> None:
    """A newcomer's displacement takes the victim's decode out of the plan, and out of its cost."""
    policy = Tiered()
    world = make_world(policy, num_blocks=6, enable_prefix_cache=False, model=plain_model())
    world.wait(9)
    world.submit(make_order("old", 7, max_tokens=9, arrival_ns=1))
    world.submit(make_order("young", 11, max_tokens=9, arrival_ns=2))
    step(world)
    forget_learning(world)
    world.submit(make_order("first", 7, max_tokens=2, arrival_ns=0))
    world.start()
    assert [(c.request_id, c.num_tokens) for c in world.batches[-1].chunks] == [
        ("old", 1),
        ("first", 7),
    ]
    assert world.core._scheduler.predicted_ns == 18
    world.finish()
    world.drain()


def test_without_a_model_there_is_no_budget() -> None:
    """Nothing is known about time, so nothing is left out for it."""
    policy = Tiered(limits=StepLimits(max_step_ns=1))
    world = make_world(policy, enable_prefix_cache=False)
    world.submit(make_order("a", 40))
    assert step(world) == [("a", 40)]
    world.drain()


def test_a_slow_machine_is_given_less() -> None:
    """The learnt factor scales what fits: twice as slow, and twenty time units hold no prompt."""
    world, _ = timed_world(30)
    model = world.core._scheduler.model
    assert model is not None
    model.factor = 2.0
    world.submit(make_order("a", 45))
    assert step(world) == [("a", 5)]
    world.drain()
