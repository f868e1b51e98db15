"""The load that a snapshot carries says what stands in the queues, and costs little."""

from __future__ import annotations

from typing import Any

import pytest
from core_orders import make_order, make_world

from engine.core.engine_core import CoreConfig
from engine.core.load import EngineLoad
from engine.core.load_meter import EVERY_NS, MOST_PROMPTS
from engine.core.request import Slo

S = 1_000_000_000
FREE = Slo(rank=1, ttft_ns=2 * S, ttft_ns_per_1k_prompt_tokens=0)


def load_of(world: Any) -> EngineLoad:
    """The load of a new snapshot."""
    load = world.core.snapshot(world.now_ns).load
    assert load is not None
    return load


def test_an_empty_engine_is_idle() -> None:
    """Nobody waits, nothing runs, all blocks are free."""
    load = load_of(make_world("hybrid"))
    assert load.is_idle
    assert load.classes == ()
    assert load.free_blocks == load.num_blocks == 100
    assert load.future_peak_tokens == 0


def test_it_tells_classes_apart_and_counts_all() -> None:
    """Waiting prompts stand in their class with their tokens, the first class first."""
    world = make_world("hybrid")
    for number in range(5):
        world.submit(make_order(f"f{number}", 10 + number, tier="free", slo=FREE))
    world.submit(make_order("p", 7, tier="premium", slo=Slo()))
    world.wait(EVERY_NS)
    load = load_of(world)
    assert [c.tier for c in load.classes] == ["premium", "free"]
    free = load.of("free")
    assert free is not None
    assert (free.num_open, free.open_tokens) == (5, 10 + 11 + 12 + 13 + 14)
    assert load.open_tokens == free.open_tokens + 7
    assert not load.is_idle


@pytest.mark.parametrize("policy", ["hybrid", "sarathi", "sarathi-spf", "slai", "fcfs", "alise"])
def test_at_every_step_it_agrees_with_the_queues(policy: str) -> None:
    """Open prompts are those without a first token, decodes those that decode."""
    world = make_world(policy)
    for number in range(12):
        world.submit(make_order(f"r{number}", 3 + 5 * number, max_tokens=6, tier="free", slo=FREE))
    while world.core.has_work:
        world.wait(EVERY_NS)
        load, snapshot = load_of(world), world.core.snapshot(world.now_ns)
        standing = snapshot.waiting + snapshot.running
        free = load.of("free")
        assert free is not None
        assert free.num_open + free.decodes == standing
        assert sum(r.num_requests for r in load.releases) == snapshot.running
        world.start()
        world.finish()
    world.wait(EVERY_NS)
    assert load_of(world).classes == ()


def test_far_behind_they_are_added_up() -> None:
    """The value stays small, however many wait."""
    world = make_world("fcfs", CoreConfig(max_waiting_requests=1000))
    for number in range(200):
        world.submit(make_order(f"r{number}", 4, tier="free", slo=FREE))
    world.wait(S)
    free = load_of(world).of("free")
    assert free is not None
    assert len(free.prompts) == MOST_PROMPTS
    assert (free.more, free.more_tokens) == (200 - MOST_PROMPTS, 4 * (200 - MOST_PROMPTS))
    assert free.num_open == 200


def test_it_is_read_now_and_then_only() -> None:
    """Two snapshots within the interval carry the same value."""
    world = make_world("fcfs")
    first = load_of(world)
    world.submit(make_order("a", 4))
    world.wait(EVERY_NS - 1)
    assert load_of(world) is first
    world.wait(1)
    later = load_of(world)
    assert later is not first
    assert later.last_arrival_ns == 0
    assert not later.is_idle


def test_it_says_at_once_that_nobody_is_left() -> None:
    """There is no step after the last one that could say it later."""
    world = make_world("fcfs")
    world.submit(make_order("a", 4, max_tokens=1))
    world.wait(EVERY_NS)
    assert not load_of(world).is_idle
    while world.core.has_work:
        world.start()
        world.finish()
    load = load_of(world)
    assert load.classes == ()
    assert load_of(world) is load


def test_it_says_that_the_engine_drains() -> None:
    """At once: the door must refuse at once."""
    world = make_world("fcfs")
    assert not load_of(world).draining
    world.core.drain()
    assert load_of(world).draining


def test_shorter_first_lists_the_shorter_first() -> None:
    """The list is in the policy's own order."""
    world = make_world("sarathi-spf", num_blocks=200)
    for number, tokens in enumerate((30, 5, 20)):
        world.submit(make_order(f"r{number}", tokens, tier="free", slo=FREE))
    world.wait(EVERY_NS)
    free = load_of(world).of("free")
    assert free is not None
    assert [p.num_tokens for p in free.prompts] == [5, 20, 30]


def test_what_the_prefix_cache_holds_is_not_to_compute() -> None:
    """Of a waiting prompt only what is not there yet counts, by whole blocks."""
    world = make_world("fcfs")
    world.submit(make_order("first", tuple(range(40)), max_tokens=1))
    while world.core.has_work:
        world.wait(EVERY_NS)
        world.start()
        world.finish()
    world.submit(make_order("again", tuple(range(40)), tier="free", slo=FREE))
    world.wait(EVERY_NS)
    free = load_of(world).of("free")
    assert free is not None
    size = load_of(world).block_size
    assert [p.num_tokens for p in free.prompts] == [40 - 39 // size * size]


def test_time_between_steps_counts_as_well() -> None:
    """Prompts wait while the loop is busy: rates are over time, not over steps alone."""
    rates = []
    for pause_ns in (0, S):
        world = make_world("fcfs", num_blocks=500)
        for number in range(60):
            world.submit(make_order(f"r{number}", 30, max_tokens=1))
        while world.core.has_work and len(world.core._scheduler.queues.waiting):
            world.start()
            world.finish()
            world.wait(pause_ns)
        world.wait(EVERY_NS)
        rates.append(load_of(world).start_rate)
    assert rates[0] > 1.5 * rates[1] > 0
