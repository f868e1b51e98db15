"""RAD's rules: two modes, full tiles, never more than b_col decodes, cycles."""

from __future__ import annotations

import pytest
from core_orders import make_order, make_world
from core_scenes import decoding, find, prefilling, step, view
from core_world import World
from hypothesis import given
from hypothesis import strategies as st

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile, load_profile
from engine.core.policies import make_policy
from engine.core.policies.rad import Rad, default_tile
from engine.core.request import Status

TILE = 4


def rad_world(policy: Rad, **capacity: int) -> World:
    return make_world(policy, enable_prefix_cache=False, **capacity)


def is_decode_step(world: World, rows: list[tuple[str, int]]) -> bool:
    decode_names = {c.request_id for c in world.batches[-1].chunks if c.is_decode}
    assert not decode_names or decode_names == {name for name, _ in rows}, "a mixed step"
    return bool(decode_names)


@given(
    prompts=st.lists(st.integers(1, 5), min_size=5, max_size=14),
    outputs=st.lists(st.integers(1, 9), min_size=5, max_size=14),
)
def test_every_step_is_a_full_tile_while_prompts_are_left(
    prompts: list[int], outputs: list[int]
) -> None:
    """Optimal tiling with N infinite: b_lcm prompt tokens, or b_col decodes; never more decode."""
    world = rad_world(Rad(tile_columns=TILE), num_blocks=200)
    for number, tiles in enumerate(prompts):
        max_tokens = outputs[number % len(outputs)]
        world.submit(make_order(f"r{number:02}", tiles * TILE, max_tokens=max_tokens))
    while world.live:
        queues = world.core._scheduler.queues
        has_prompts = bool(queues.prefilling or len(queues.waiting))
        assert len(queues.decoding) <= TILE
        rows = step(world)
        tokens = sum(count for _, count in rows)
        assert tokens == TILE if has_prompts else tokens <= TILE
        is_decode_step(world, rows)


def test_decodes_wait_until_the_tile_is_full_of_them() -> None:
    """Prefill mode while fewer than b_col decode, whoever waits for its next token."""
    world = rad_world(Rad(tile_columns=3))
    for name in "abcd":
        world.submit(make_order(name, 3, max_tokens=3))
    assert [step(world) for _ in range(5)] == [
        [("a", 3)],
        [("b", 3)],
        [("c", 3)],
        [("a", 1), ("b", 1), ("c", 1)],
        [("a", 1), ("b", 1), ("c", 1)],
    ]
    assert step(world) == [("d", 3)]
    assert step(world) == [("d", 1)]  # no prompt is left: decode mode with what there is


def test_a_chunk_is_one_of_the_oldest_prompt_and_its_remainder_runs_alone() -> None:
    """A prompt that is no multiple of the tile wastes the rest of its last one."""
    world = rad_world(Rad(tile_columns=8, tile_lcm=4))
    world.wait(5)
    world.submit(make_order("young", 4, max_tokens=2, arrival_ns=3))
    world.submit(make_order("old", 10, max_tokens=2, arrival_ns=1))
    assert [step(world) for _ in range(4)] == [
        [("old", 4)],
        [("old", 4)],
        [("old", 2)],
        [("young", 4)],
    ]


def test_the_modes_follow_the_number_of_decodes() -> None:
    """Decode mode at b_col of them or without prompts, prefill mode else."""
    policy = Rad(tile_columns=2, tile_lcm=6)
    one, two = decoding("one"), decoding("two")
    assert policy.limits(view(decoding=[one, two], num_waiting=3)).max_prefills == 0
    assert policy.limits(view(decoding=[one])).max_prefills == 0
    for present in (view(decoding=[one], num_waiting=3), view(prefilling=[prefilling("p")])):
        limits = policy.limits(present)
        assert (limits.max_decodes, limits.max_prefills, limits.max_tokens) == (0, 1, 6)


def test_a_cycle_ends_before_the_next_prompts_begin() -> None:
    """N prompts, then everyone to the end in tiles as full as they come, then N more."""
    world = rad_world(Rad(tile_columns=4, cycle=2))
    for name in "abc":
        world.submit(make_order(name, 4, max_tokens=3))
    assert [step(world) for _ in range(6)] == [
        [("a", 4)],
        [("b", 4)],
        [("a", 1), ("b", 1)],
        [("a", 1), ("b", 1)],
        [("c", 4)],
        [("c", 1)],
    ]


def test_a_cycle_ends_with_the_last_abort_too() -> None:
    """Whoever leaves by themselves ends a cycle like the others."""
    world = rad_world(Rad(tile_columns=4, cycle=1))
    for name in "ab":
        world.submit(make_order(name, 4, max_tokens=9))
    assert step(world) == [("a", 4)]
    assert step(world) == [("a", 1)]
    world.abort("a")
    assert step(world) == [("b", 4)]


def test_without_room_for_the_oldest_prompt_the_decodes_run() -> None:
    """Assumption 4 does not hold: memory, not the tile, bounds the decodes then."""
    world = rad_world(Rad(tile_columns=8), num_blocks=10)
    world.submit(make_order("a", 8, max_tokens=4))
    world.submit(make_order("b", 30, max_tokens=4))
    step(world)
    assert step(world) == [("a", 1)]
    assert find(world, "b").status is Status.WAITING
    world.drain()


def test_tile_sizes_come_from_the_profile() -> None:
    """The profile's tile, or the 128 that fit the authors' measurements."""
    tiled = LatencyModel(LatencyProfile("tiled", tile_tokens=64, tile_ns=5.0))
    plain = LatencyModel(load_profile("mistral-7b-rtx6000ada"))
    assert (default_tile(tiled), default_tile(plain)) == (64, 128)
    roomy = view(num_waiting=1)
    assert make_policy("rad", model=tiled).limits(roomy).max_tokens == 64
    assert make_policy("rad", [("b_col", 32)], tiled).limits(roomy).max_tokens == 32
    with pytest.raises(ValueError, match="option 'cycle' must be at least 1"):
        make_policy("rad", [("cycle", 0)])
