"""A client that leaves, in every state a request can be in: all its blocks are free in two steps.

Where a copy is under way neither side may be given to anybody before the copier is done with it:
there the two steps begin with the step that reports it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_orders import make_order, make_world
from core_policies import Tiered
from core_world import World

from engine.core.request import FinishReason, Status

MOST_STEPS = 2
HOST_BLOCKS = 20


class Scene:
    """A neighbour `a` that goes on, and `v`, whose client leaves."""

    def __init__(self, *, cached: bool, rows: int = 8, tokens: int = 64) -> None:
        self.policy = Tiered()
        self.world: World = make_world(
            self.policy,
            num_host_blocks=HOST_BLOCKS,
            enable_prefix_cache=cached,
            max_batch_requests=rows,
            max_batch_tokens=tokens,
        )
        self.world.submit(make_order("a", 9, max_tokens=90))
        self.run()

    def submit(self, prompt: int, max_tokens: int) -> None:
        self.world.wait(1)
        order = make_order("v", prompt, max_tokens=max_tokens, arrival_ns=self.world.now_ns)
        self.world.submit(order)

    def run(self, steps: int = 1) -> None:
        """Make steps in which no copy ends."""
        for _ in range(steps):
            assert self.world.start() is not None
            self.world.finish(copied=())

    def land(self) -> None:
        """Make a step in which every copy ends."""
        assert self.world.start() is not None
        self.world.finish()

    @property
    def status(self) -> Status | None:
        request = self.world.core._scheduler.find("v")
        return None if request is None else request.status

    @property
    def num_held(self) -> int:
        """Blocks of both sides that are neither free nor the neighbour's."""
        now = self.world.core.snapshot(self.world.now_ns)
        neighbour = self.world.core._scheduler.find("a")
        kept = 0
        if neighbour is not None:
            kept = len(self.world.core._scheduler.kv.block_ids(neighbour))
        device = now.num_blocks - now.free_blocks - kept
        return device + now.num_host_blocks - now.free_host_blocks


def queued(cached: bool) -> Scene:
    scene = Scene(cached=cached, rows=1)
    scene.submit(11, 5)
    scene.run()
    assert scene.status is Status.WAITING
    return scene


def mid_chunk(cached: bool) -> Scene:
    scene = Scene(cached=cached, tokens=5)
    scene.submit(30, 5)
    scene.run(3)
    request = scene.world.core._scheduler.find("v")
    assert request is not None
    assert 0 < request.num_computed < request.num_prompt_tokens
    return scene


def decoding(cached: bool) -> Scene:
    scene = Scene(cached=cached)
    scene.submit(11, 30)
    scene.run(4)
    assert scene.status is Status.RUNNING
    return scene


def copying_out(cached: bool) -> Scene:
    scene = decoding(cached)
    scene.policy.park = ("v",)
    scene.run()
    assert scene.world.executor.under_way
    return scene


def parked(cached: bool) -> Scene:
    scene = copying_out(cached)
    scene.land()
    assert scene.status is Status.PARKED
    assert not scene.world.executor.under_way
    return scene


def copying_in(cached: bool) -> Scene:
    scene = parked(cached)
    scene.policy.park, scene.policy.back = (), ("v",)
    scene.run()
    assert [entry.is_return for entry in scene.world.executor.under_way.values()] == [True]
    return scene


def last_token(cached: bool) -> Scene:
    """The step that is computed next makes its last token."""
    scene = Scene(cached=cached)
    scene.submit(11, 4)
    scene.run(3)
    request = scene.world.core._scheduler.find("v")
    assert request is not None
    assert len(request.output) == request.order.sampling.max_tokens - 1
    return scene


STATES = [queued, mid_chunk, decoding, copying_out, parked, copying_in, last_token]
Reach = Callable[[bool], Scene]


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "prefix-cache"])
@pytest.mark.parametrize("during", [False, True], ids=["between-steps", "step-out"])
@pytest.mark.parametrize("all_leave", [False, True], ids=["alone", "all-leave"])
@pytest.mark.parametrize("late_steps", [0, 1, 3])
@pytest.mark.parametrize("reach", STATES, ids=lambda reach: reach.__name__)
def test_who_leaves_gives_all_blocks_back_within_two_steps(
    reach: Reach, late_steps: int, all_leave: bool, during: bool, cached: bool
) -> None:
    """Fenced while a step or a copy uses them, free at most two steps after; then all goes on."""
    scene = reach(cached)
    world = scene.world
    scene.policy.back = ()
    held = scene.num_held
    assert (held > 0) == (reach is not queued), "a state that holds nothing proves nothing"
    if during:
        assert world.start() is not None
    held = scene.num_held
    (event,) = world.abort("v")
    assert event.finish_reason is FinishReason.CANCELLED
    if all_leave:
        world.abort("a")
    copies = [e.copy for e in world.executor.under_way.values() if e.copy.request_id == "v"]
    in_copies = {block for copy in copies for block in copy.block_ids}
    num_fenced = len(in_copies) + sum(len(copy.host_block_ids) for copy in copies)
    if during:
        world.finish(copied=())
    for _ in range(late_steps if copies else 0):
        assert scene.num_held >= num_fenced > 0, "law L5: freed under the copier"
        # With everybody gone nothing computes: the step is for the copy alone.
        batch = world.start()
        assert batch is not None
        assert bool(batch.chunks) != all_leave
        if not batch.chunks:
            break  # such a step ends with a copy, not before
        world.finish(copied=())
    steps = 0
    while scene.num_held or world.executor.under_way:
        assert steps < MOST_STEPS, f"{scene.num_held} of {held} blocks are held"
        if world.out is None:
            assert world.start() is not None, "blocks are held and the engine has nothing to do"
        world.finish()
        steps += 1
    world.drain()


def test_who_leaves_after_the_last_token_has_nothing_to_give_back() -> None:
    """The answer's end came first: its blocks went with it, and the abort is ignored."""
    scene = last_token(False)
    scene.run()
    assert scene.status is None
    assert scene.num_held == 0
    assert scene.world.abort("v") == []
    scene.world.drain()
