"""Copies that outlast their step: fences, room on its way, waiting, loss, leaving; case by case."""

from __future__ import annotations

import pytest
from core_orders import make_order, make_world
from core_policies import Tiered, tiny_model
from core_world import World

from engine.core.batch import Batch
from engine.core.policy import StepLimits
from engine.core.request import FinishReason, Request, RequestOrder, Slo, Status, TbtMode
from engine.core.scheduler import MAX_FAULTS


def premium(name: str, prompt: int = 4, *, max_tokens: int = 4) -> RequestOrder:
    return make_order(name, prompt, max_tokens=max_tokens, slo=Slo(rank=0), tier="premium")


def free(name: str, prompt: int = 4, *, max_tokens: int = 4, arrival_ns: int = 0) -> RequestOrder:
    return make_order(
        name, prompt, max_tokens=max_tokens, arrival_ns=arrival_ns, slo=Slo(rank=1), tier="free"
    )


def step(world: World, *copied: int, lost: tuple[int, ...] = ()) -> list[str]:
    """Make a step in which just these copies end; say who computed."""
    batch = start(world)
    world.finish(copied=copied, lost=lost)
    return [chunk.request_id for chunk in batch.chunks]


def start(world: World) -> Batch:
    batch = world.start()
    assert batch is not None
    return batch


def under_way(world: World) -> list[int]:
    return list(world.executor.under_way)


def find(world: World, name: str) -> Request:
    request = world.core._scheduler.find(name)
    assert request is not None
    return request


def crowded(policy: Tiered, **options: object) -> World:
    """Four blocks of 16, three of them held by decodes of rank 1 that came one by one."""
    world = make_world(
        policy,
        num_blocks=4,
        block_size=16,
        max_model_len=64,
        enable_prefix_cache=False,
        model=tiny_model(),
        **options,
    )
    world.wait(9)
    for index, name in enumerate("abc"):
        world.submit(free(name, 8, max_tokens=8, arrival_ns=index))
    assert step(world) == ["a", "b", "c"]
    return world


def pair(policy: Tiered, **options: object) -> World:
    """Two decodes, one step old, where `b` is on its way out (three blocks, copy 1)."""
    world = make_world(policy, num_host_blocks=20, enable_prefix_cache=False, **options)
    for name in "ab":
        world.submit(free(name, 10, max_tokens=30))
    step(world)
    policy.park = ("b",)
    assert step(world) == ["a"]
    policy.park = ()
    assert under_way(world) == [1]
    return world


def test_a_park_holds_its_blocks_until_it_is_reported() -> None:
    """Law L5: step after step neither side is handed out; then the device's side is free."""
    world = pair(Tiered())
    kv = world.core._scheduler.kv
    for _ in range(3):
        assert step(world) == ["a"]
        assert kv.num_free == 100 - len(kv.block_ids(find(world, "a"))) - 3
        assert (kv.count_coming(), kv.num_free_host) == (3, 17)
    assert step(world, 1) == ["a"]
    assert kv.num_free == 100 - len(kv.block_ids(find(world, "a")))
    assert (kv.count_coming(), kv.num_free_host) == (0, 17)
    world.drain()


def test_whoever_is_not_there_yet_does_not_come_back() -> None:
    """A return begins only after its park was reported, however much the policy wants it."""
    policy = Tiered()
    world = pair(policy)
    policy.back = ("b",)
    for _ in range(3):
        assert step(world) == ["a"]
        assert under_way(world) == [1]
    assert step(world, 1) == ["a"]
    assert step(world) == ["a"]
    assert under_way(world) == [2]
    assert find(world, "b").is_returning
    for _ in range(3):
        assert step(world) == ["a"]  # it holds blocks on both sides, and runs not yet
    assert step(world, 2) == ["a"]
    assert step(world) == ["a", "b"]
    world.drain()


def test_copies_end_in_any_order() -> None:
    """The second is over before the first; each frees what is its own."""
    policy = Tiered()
    world = make_world(policy, num_host_blocks=20, enable_prefix_cache=False)
    for name, length in [("a", 4), ("b", 10), ("c", 20)]:
        world.submit(free(name, length, max_tokens=30))
    step(world)
    policy.park = ("b", "c")
    step(world)
    policy.park, policy.back = (), ("b", "c")
    assert world.core._scheduler.kv.count_coming() == 8
    step(world, 2)
    assert world.core._scheduler.kv.count_coming() == 3
    assert [copy.request_id for copy in start(world).returns] == ["c"]
    world.finish(copied=(3, 1))
    assert step(world) == ["a", "c"]
    world.drain()


def test_room_on_its_way_is_waited_for_step_after_step() -> None:
    """Laws L14, L20: the newcomer's victim is read for long; nobody else falls meanwhile."""
    world = crowded(Tiered(), num_host_blocks=20)
    world.submit(premium("p", 20, max_tokens=2))
    for _ in range(4):
        assert step(world) == ["a", "b"]
        assert under_way(world) == [1]
    assert step(world, 1) == ["a", "b"]
    assert "p" in step(world)
    snapshot = world.core.snapshot(world.now_ns)
    assert (snapshot.parks_total, snapshot.preemptions_total) == (1, 0)
    world.drain()


def test_what_others_will_grow_by_is_displaced_once() -> None:
    """Room for the newcomer and for two decodes is coming; it is not made again in each step."""
    world = make_world(
        Tiered(), num_blocks=13, enable_prefix_cache=False, model=tiny_model(), num_host_blocks=20
    )
    world.wait(9)
    world.submit(premium("z", 1, max_tokens=9))
    for index, (name, length) in enumerate([("a", 11), ("b", 11), ("c", 22)]):
        world.submit(free(name, length, max_tokens=9, arrival_ns=index))
    step(world)
    world.submit(premium("p", 12, max_tokens=2))
    assert step(world) == ["z", "a", "b"]
    for _ in range(2):
        assert step(world) == ["z"]  # the others need a block each of those that `c` gives up
        assert under_way(world) == [1]
    step(world, 1)
    assert step(world) == ["z", "a", "b", "p"]
    assert world.core.snapshot(world.now_ns).preemptions_total == 0
    world.drain()


def test_a_decode_waits_for_a_block_on_its_way_however_long() -> None:
    """One victim for both of them; the step waits with them, without chunks, until it is over."""
    world = make_world(
        Tiered(), num_blocks=6, enable_prefix_cache=False, model=tiny_model(), num_host_blocks=9
    )
    world.wait(9)
    for index, name in enumerate("abc"):
        world.submit(free(name, 8, max_tokens=8, arrival_ns=index))
    assert step(world) == ["a", "b", "c"]
    batch = start(world)
    assert (batch.chunks, [copy.request_id for copy in batch.parks]) == ((), ["c"])
    world.finish(copied=(1,))
    assert step(world) == ["a", "b"]
    world.drain()


def test_a_wish_to_park_counts_as_room_on_its_way() -> None:
    """A newcomer displaces nobody for what the policy's own park is about to free."""
    policy = Tiered()
    world = crowded(policy, num_host_blocks=20)
    policy.park = ("c",)
    world.submit(premium("p", 20, max_tokens=2))
    step(world)
    policy.park = ()
    step(world)
    assert under_way(world) == [1]
    snapshot = world.core.snapshot(world.now_ns)
    assert (snapshot.parks_total, snapshot.preemptions_total) == (1, 0)
    world.drain()


def test_a_step_waits_where_everybody_does() -> None:
    """Law L12: all are carried; steps without chunks follow until somebody can run."""
    policy = Tiered()
    world = make_world(policy, num_host_blocks=20)
    world.submit(free("a", 10, max_tokens=3))
    world.submit(free("b", 10, max_tokens=20))
    world.submit(free("c", 10, max_tokens=20))
    step(world)
    policy.park = ("b", "c")
    assert step(world) == ["a"]
    policy.park = ()
    assert step(world) == ["a"]  # and that was its last token
    batch = start(world)
    assert (batch.chunks, batch.parks, batch.returns) == ((), (), ())
    world.finish(copied=(2,))
    batch = start(world)  # `c` is there, and comes back unasked
    assert ([copy.request_id for copy in batch.returns], batch.chunks) == (["c"], ())
    world.finish(copied=(1,))
    batch = start(world)  # somebody is on the way already: the other does not follow
    assert (batch.chunks, batch.returns) == ((), ())
    world.finish(copied=(3,))
    assert step(world) == ["c"]
    world.drain()


def test_the_links_queue_is_bounded() -> None:
    """What is under way from earlier steps counts; one may exceed the limit when nothing is."""
    policy = Tiered(limits=StepLimits(max_copy_tokens=25))
    world = make_world(policy, num_host_blocks=40)
    for name, length in [("a", 10), ("b", 30), ("c", 5), ("d", 5)]:
        world.submit(free(name, length, max_tokens=30))
    step(world)
    policy.park = ("b", "c", "d")
    for _ in range(3):
        step(world)
        assert under_way(world) == [1]
    step(world, 1)
    step(world)
    assert under_way(world) == [2, 3]
    step(world, 2, 3)
    policy.park, policy.back = (), ("b", "c", "d")
    for _ in range(3):
        step(world)
        assert under_way(world) == [4]
    step(world, 4)
    step(world)
    assert under_way(world) == [5, 6]
    world.drain()


# Loss


def test_a_lost_park_is_computed_again() -> None:
    """Law L33: also where it fails long after its step; both sides are free at once."""
    world = pair(Tiered())
    step(world)
    step(world, lost=(1,))
    assert find(world, "b").status is Status.WAITING
    snapshot = world.core.snapshot(world.now_ns)
    assert (snapshot.free_host_blocks, snapshot.lost_copies_total) == (20, 1)
    assert snapshot.coming_blocks == 0
    assert "b" in step(world)
    world.drain()
    ends = [truth.end for truth in world.ended if truth.end]
    assert [end.finish_reason for end in ends] == ["length"] * 2
    assert sum(end.preemptions for end in ends) == 0


def test_a_lost_return_is_computed_again() -> None:
    """Law L33: never from what arrived."""
    policy = Tiered()
    world = pair(policy)
    step(world, 1)
    policy.back = ("b",)
    step(world)
    policy.back = ()
    step(world)
    step(world, lost=(2,))
    assert find(world, "b").status is Status.WAITING
    assert find(world, "b").num_computed == 0
    snapshot = world.core.snapshot(world.now_ns)
    assert (snapshot.free_host_blocks, snapshot.returning, snapshot.parked) == (20, 0, 0)
    world.drain()
    assert [truth.end.finish_reason for truth in world.ended if truth.end] == ["length"] * 2


def test_a_context_that_is_lost_each_time_ends_with_an_error() -> None:
    """Faults in a row without a token in between: no livelock, and the reason is told."""
    policy = Tiered(limits=StepLimits(max_tokens=12))
    world = make_world(policy, num_host_blocks=20, enable_prefix_cache=False)
    world.submit(free("a", 10, max_tokens=30))
    world.submit(free("b", 40, max_tokens=9))
    policy.park = ("b",)
    while "b" in world.live:
        start(world)
        world.finish(lost=under_way(world))
    assert world.num_lost == MAX_FAULTS + 1
    (gone,) = [truth.end for truth in world.ended]
    assert gone is not None
    assert gone.finish_reason is FinishReason.FAILED
    assert "lost" in gone.detail
    world.drain()


def test_a_fault_loses_every_copy_under_way() -> None:
    """Also those of earlier steps: after it nothing is under way (F1)."""
    policy = Tiered()
    world = pair(policy)
    policy.park = ("a",)  # the last one running is not parked
    step(world)
    start(world)
    world.fault()
    assert under_way(world) == []
    assert {find(world, name).status for name in "ab"} == {Status.WAITING}
    snapshot = world.core.snapshot(world.now_ns)
    assert snapshot.free_blocks == 100
    assert (snapshot.free_host_blocks, snapshot.lost_copies_total) == (20, 1)
    world.drain()


def test_a_fault_leaves_those_alone_who_are_there() -> None:
    """Whose copy is over has nothing to lose on the device."""
    world = pair(Tiered())
    step(world, 1)
    start(world)
    world.fault()
    assert find(world, "a").status is Status.WAITING
    assert find(world, "b").status is Status.PARKED
    world.drain()


# Leaving


@pytest.mark.parametrize("is_lost", [False, True], ids=["arrives", "is lost"])
@pytest.mark.parametrize("state", ["copying out", "copying in"])
@pytest.mark.parametrize("is_alone", [False, True], ids=["among others", "the last"])
def test_who_leaves_on_the_way_frees_both_sides_with_the_report(
    state: str, is_lost: bool, is_alone: bool
) -> None:
    """Laws L5, L7: not before, whoever else runs; where nobody is left the step waits for it."""
    policy = Tiered()
    world = pair(policy)
    number = 1
    if state == "copying in":
        step(world, 1)
        policy.back = ("b",)
        step(world)
        number = 2
    step(world)
    world.abort("b")
    kv = world.core._scheduler.kv
    device, host = {"copying out": (3, 3), "copying in": (4, 3)}[state]
    assert (kv.num_fenced, kv.count_coming()) == (device + host, device)
    if is_alone:
        world.abort("a")
        assert world.core.has_work
        batch = start(world)
        assert (batch.chunks, batch.parks, batch.returns) == ((), (), ())
    else:
        assert step(world) == ["a"]
        start(world)
    assert (kv.num_fenced, kv.num_free_host) == (device + host, 20 - host)
    world.finish(copied=() if is_lost else (number,), lost=(number,) if is_lost else ())
    assert (kv.num_fenced, kv.num_free_host) == (0, 20)
    assert world.core.has_work == (not is_alone)
    world.drain()


def test_an_id_used_again_while_a_copy_of_its_last_bearer_goes_on() -> None:
    """The end of the old copy concerns its blocks alone, even where the new one travels too."""
    policy = Tiered()
    world = pair(policy)
    world.abort("b")
    world.submit(free("b", 6, max_tokens=9))
    assert step(world) == ["a", "b"]
    policy.park = ("b",)
    step(world)
    policy.park = ()
    assert under_way(world) == [1, 2]
    step(world, lost=(1,))
    assert find(world, "b").status is Status.PARKED
    assert find(world, "b").fault_count == 0
    step(world, 2)
    world.drain()
    reasons = [truth.end.finish_reason for truth in world.ended if truth.end]
    assert sorted(reasons) == ["cancelled", "length", "length"]


def test_when_the_executor_is_gone_nothing_is_under_way() -> None:
    """Everybody ends, and all blocks of late copies are free."""
    policy = Tiered()
    world = pair(policy)
    step(world)
    world.abort("b")
    world.fail_all()
    assert not world.core.has_work
    assert world.core.snapshot(world.now_ns).lost_copies_total == 1
    world.drain()


# What is told of them


def test_a_snapshot_counts_who_is_on_the_way_and_what_arrived() -> None:
    """By direction; tokens when they have arrived, those of lost copies never."""
    policy = Tiered()
    world = pair(policy)

    def seen() -> tuple[int, ...]:
        now = world.core.snapshot(world.now_ns)
        ways = (now.leaving, now.returning, now.parked, now.parked_tokens, now.coming_blocks)
        return (*ways, now.copied_out_tokens_total, now.copied_in_tokens_total)

    assert seen() == (1, 0, 1, 10, 3, 0, 0)
    step(world, 1)
    assert world.recorder.steps[-1].num_copied_tokens == 10
    assert seen() == (0, 0, 1, 10, 0, 10, 0)
    policy.back = ("b",)
    step(world)
    assert world.recorder.steps[-1].num_copied_tokens == 0
    assert seen() == (0, 1, 1, 10, 0, 10, 0)
    step(world, 2)
    assert seen() == (0, 0, 0, 0, 0, 10, 10)
    world.drain()


def test_a_snapshot_tells_the_banks_of_streams() -> None:
    """By how much tokens are early, over who runs and who is parked; looked at now and then."""
    ms = 10**6
    stream = Slo(rank=1, tbt_ns=100 * ms, tbt_mode=TbtMode.STREAM)
    paced = Slo(rank=1, tbt_ns=80 * ms, pace_ns=50 * ms)
    policy = Tiered()
    world = make_world(policy, num_host_blocks=20, enable_prefix_cache=False)
    assert world.core.snapshot(0).least_bank_ms is None
    world.wait(250 * ms)
    world.submit(make_order("stream", 8, max_tokens=9, slo=stream, arrival_ns=world.now_ns))
    world.submit(make_order("paced", 8, max_tokens=9, slo=paced, arrival_ns=world.now_ns))
    world.submit(make_order("plain", 8, max_tokens=9, arrival_ns=world.now_ns))
    first_ns = world.now_ns + 7
    for _ in range(3):
        step(world)
    policy.park = ("stream",)
    step(world)
    assert world.core.snapshot(world.now_ns).bank_ms == 0.0  # as when the last look was taken
    world.wait(first_ns + 250 * ms - world.now_ns)
    # Three tokens are there and the fourth is due 300 ms after the first: 50 ms ahead. Of the
    # paced one the client sees the fourth token at 150 ms, so the fifth is due at 230 ms: late.
    seen = world.core.snapshot(world.now_ns)
    assert seen.bank_ms == pytest.approx(50.0, abs=0.001)
    assert seen.least_bank_ms == pytest.approx(-20.0, abs=0.001)
    world.drain()
