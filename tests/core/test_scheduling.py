"""What a step holds and who makes room: the scheduler's rules, one situation each."""

from __future__ import annotations

import pytest
from core_fakes import expected_output
from core_orders import make_order, make_world
from core_world import World

from engine.core.engine_core import CoreConfig
from engine.core.memory_moves import MAX_PREEMPTIONS
from engine.core.policies.fcfs import Fcfs
from engine.core.policies.sarathi import Sarathi
from engine.core.policy import Rank, Room, StepLimits, View
from engine.core.request import Request, Status


def shape(world: World) -> list[tuple[str, int]]:
    """Start a step and say who computes how many tokens, in the batch's order."""
    batch = world.start()
    return [] if batch is None else [(c.request_id, c.num_tokens) for c in batch.chunks]


def step(world: World) -> list[tuple[str, int]]:
    rows = shape(world)
    world.finish()
    return rows


def find(world: World, name: str) -> Request:
    request = world.core._scheduler.find(name)
    assert request is not None
    return request


# The shape of a step


def test_a_long_prompt_is_cut_and_decodes_go_first() -> None:
    """Stall-free batching: decodes take their tokens first, the prompt gets the rest."""
    world = make_world(max_batch_tokens=8)
    world.submit(make_order("short", 3, max_tokens=10))
    assert step(world) == [("short", 3)]
    world.submit(make_order("long", 20, max_tokens=10, arrival_ns=1))
    assert step(world) == [("short", 1), ("long", 7)]
    assert step(world) == [("short", 1), ("long", 7)]
    assert step(world) == [("short", 1), ("long", 6)]
    assert step(world) == [("short", 1), ("long", 1)]
    world.drain()


def test_prompts_share_a_step_in_order_of_arrival() -> None:
    """First come, first served, until the tokens of the step are gone."""
    world = make_world(max_batch_tokens=10)
    world.wait(10)
    for name, arrival_ns in [("c", 3), ("a", 1), ("b", 2)]:
        world.submit(make_order(name, 4, arrival_ns=arrival_ns))
    assert step(world) == [("a", 4), ("b", 4), ("c", 2)]
    assert step(world) == [("a", 1), ("b", 1), ("c", 2)]
    world.drain()


def test_sarathi_never_exceeds_its_budget() -> None:
    """The fixed budget binds before the executor's capacity does."""
    world = make_world(Sarathi(token_budget=5), max_batch_tokens=64)
    for name in "abcdefgh":
        world.submit(make_order(name, 7, max_tokens=6))
    while world.live:
        assert sum(tokens for _, tokens in step(world)) <= 5
    world.drain()


def test_a_batch_has_no_more_rows_than_the_executor_takes() -> None:
    """The others wait, and come when a row is free."""
    world = make_world(max_batch_requests=2)
    for name in "abc":
        world.submit(make_order(name, max_tokens=3))
    assert step(world) == [("a", 4), ("b", 4)]
    assert step(world) == [("a", 1), ("b", 1)]
    assert step(world) == [("a", 1), ("b", 1)]
    assert step(world) == [("c", 4)]
    world.drain()


def test_a_known_prefix_is_not_computed_again() -> None:
    """Full blocks of an earlier request are shared, and the stats say how many tokens."""
    world = make_world()
    world.submit(make_order("a", tuple(range(5)) * 2, max_tokens=2))
    world.drain()
    world.submit(make_order("b", tuple(range(5)) * 2, max_tokens=2))
    assert step(world) == [("b", 2)]
    world.drain()
    assert [t.end.num_cached_tokens for t in world.ended if t.end] == [0, 8]


def test_a_prefix_being_computed_is_not_found_yet() -> None:
    """Only a finished step makes blocks findable; an abandoned one makes none."""
    world = make_world()
    world.submit(make_order("a", (1,) * 9))
    world.start()
    world.submit(make_order("b", (1,) * 9))
    world.fault()
    assert step(world) == [("a", 9), ("b", 9)]
    world.submit(make_order("c", (1,) * 9))
    assert step(world)[-1] == ("c", 1)
    world.drain()


# Admission


def test_nobody_overtakes_the_first_that_waits_for_room() -> None:
    """Law L19: a small one behind a large one waits, although it would fit."""
    world = make_world(num_blocks=10, enable_prefix_cache=False)
    world.submit(make_order("running", 20, max_tokens=4))
    step(world)
    world.submit(make_order("large", 20, max_tokens=4))
    world.submit(make_order("small", 2, max_tokens=2))
    assert step(world) == [("running", 1)]
    world.drain()
    assert [t.order.id for t in world.ended] == ["running", "small", "large"]


def test_starting_leaves_blocks_for_those_who_run() -> None:
    """A hundredth of the pool stays free, at least one block: the newcomer waits for more."""
    world = make_world(num_blocks=6, enable_prefix_cache=False)
    world.submit(make_order("a", 7, max_tokens=8))
    step(world)
    world.submit(make_order("b", 15, max_tokens=4))  # four blocks are free, it needs all of them
    assert step(world) == [("a", 1)]
    world.submit(make_order("c", 4))
    world.abort("b")
    assert step(world) == [("a", 1), ("c", 4)]
    world.drain()


def test_the_spare_is_waived_when_nobody_runs() -> None:
    """A request that needs the whole pool runs alone (law L13: it fits, so it is served)."""
    world = make_world(num_blocks=4, enable_prefix_cache=False)
    world.submit(make_order("whole", 12, max_tokens=4))
    assert step(world) == [("whole", 12)]
    world.drain()


def test_sarathi_starts_a_prompt_only_with_room_for_all_of_it() -> None:
    """Where fcfs starts with the next chunk, Sarathi claims every block of the prompt."""
    for policy, started in [(Fcfs(), True), (Sarathi(), False)]:
        world = make_world(policy, num_blocks=10, max_batch_tokens=9, enable_prefix_cache=False)
        world.submit(make_order("a", 7, max_tokens=8))
        step(world)
        world.submit(make_order("b", 30, max_tokens=4))
        assert (("b", 8) in step(world)) == started
        world.drain()


# Making room


def test_the_latest_arrival_makes_room_and_the_first_one_stays() -> None:
    """Laws L15 and L31: the survivor is never touched, the victim answers the same in the end."""
    world = make_world(num_blocks=6, enable_prefix_cache=False)
    world.wait(2)
    world.submit(make_order("new", 7, max_tokens=16, arrival_ns=2))
    world.submit(make_order("old", 7, max_tokens=16, arrival_ns=1))
    while world.live:
        step(world)
    preemptions = {t.order.id: t.end.preemptions for t in world.ended if t.end}
    assert preemptions["old"] == 0
    assert preemptions["new"] > 0
    assert [t.order.id for t in world.ended] == ["old", "new"]
    assert all(tuple(t.output) == expected_output(t.order) for t in world.ended)
    world.drain()


def test_a_resumed_request_computes_its_whole_history_before_it_samples() -> None:
    """Law L31: prompt and all generated tokens, in chunks, and no token before the last chunk."""
    world = make_world(num_blocks=5, max_batch_tokens=6, enable_prefix_cache=False)
    world.wait(2)
    world.submit(make_order("old", 4, max_tokens=14, arrival_ns=1))
    world.submit(make_order("new", 4, max_tokens=10, arrival_ns=2))
    while "old" in world.live:
        step(world)
    truth = world.live["new"]
    known = len(truth.history)
    assert len(truth.output) > 0
    assert find(world, "new").status is Status.WAITING
    assert step(world) == [("new", 6)]
    assert len(truth.history) == known
    assert step(world) == [("new", known - 6)]
    assert len(truth.history) == known + 1
    world.drain()
    snapshot = world.core.snapshot(world.now_ns)
    assert snapshot.recomputed_tokens_total == known - 1
    assert sum(s.num_recomputed_tokens for s in world.recorder.steps) == known - 1


def test_a_decode_that_finds_no_block_waits_in_place_when_nobody_ranks_behind_it() -> None:
    """The last one keeps what it has: waiting a step costs less than computing again."""
    world = make_world(Shaped(room=Room()), num_blocks=5, enable_prefix_cache=False)
    world.submit(make_order("a", 9, max_tokens=3))
    world.submit(make_order("b", 7, max_tokens=8))
    assert step(world) == [("a", 9), ("b", 7)]
    assert step(world) == [("a", 1), ("b", 1)]
    assert step(world) == [("a", 1)]  # b would need a sixth block
    assert step(world) == [("b", 1)]
    world.drain()
    assert world.core.snapshot(world.now_ns).preemptions_total == 0


def test_a_victim_that_frees_nothing_is_passed_over() -> None:
    """Law L14: the last to keep holds only shared blocks, so the one before it makes room."""
    world = make_world(Shaped(StepLimits(max_decodes=1), room=Room()), num_blocks=4)
    world.wait(9)
    last = make_order("last", (1,) * 7, max_tokens=9, arrival_ns=9)
    world.submit(last)
    step(world)
    world.submit(make_order("first", (2, 3, 4), max_tokens=9, arrival_ns=1))
    assert step(world) == [("last", 1), ("first", 3)]
    turn = (*last.prompt, *world.live["last"].output)  # nine tokens, eight of them computed
    world.submit(make_order("sharer", turn, max_tokens=5, arrival_ns=2))
    assert step(world) == [("first", 1), ("sharer", 1)]
    assert world.core.snapshot(world.now_ns).free_blocks == 0
    assert step(world) == [("first", 1)]
    assert [r.id for r in world.core._scheduler.planner.preempted] == ["sharer"]
    world.drain()


def test_a_victim_that_had_a_seat_in_this_step_loses_it() -> None:
    """Law L9: the first to keep takes a block from a decode planned a moment before."""
    world = make_world(
        Shaped(room=Room()), num_blocks=6, max_batch_tokens=9, enable_prefix_cache=False
    )
    world.wait(5)
    world.submit(make_order("young", 7, max_tokens=9, arrival_ns=5))
    assert step(world) == [("young", 7)]
    world.submit(make_order("old", 20, max_tokens=1, arrival_ns=1))
    assert step(world) == [("young", 1), ("old", 8)]
    assert step(world) == [("young", 1), ("old", 4)]
    assert world.core.snapshot(world.now_ns).free_blocks == 0
    assert step(world) == [("old", 8)]
    world.drain()


def test_a_step_that_preempts_starts_nobody() -> None:
    """What a victim gave is for those who run; whoever waits is looked at in the next step."""
    world = make_world(Shaped(room=Room()), num_blocks=5, enable_prefix_cache=False)
    world.wait(5)
    world.submit(make_order("a", 7, max_tokens=9, arrival_ns=1))
    world.submit(make_order("victim", 9, max_tokens=9, arrival_ns=2))
    step(world)
    assert step(world) == [("a", 1), ("victim", 1)]
    world.submit(make_order("small", 2, arrival_ns=0))
    assert step(world) == [("a", 1)]
    assert step(world) == [("a", 1), ("small", 2)]
    world.drain()


def test_a_request_preempted_too_often_gets_room_for_its_worst_case() -> None:
    """Law L16: its next start claims everything it could need, and nobody can take it away."""
    world = make_world(num_blocks=10, enable_prefix_cache=False)
    world.wait(5)
    world.submit(make_order("tried", 4, max_tokens=12, arrival_ns=3))
    find(world, "tried").preemption_count = MAX_PREEMPTIONS
    step(world)
    assert len(world.core._scheduler.kv.block_ids(find(world, "tried"))) == 4
    world.submit(make_order("older", 16, max_tokens=20, arrival_ns=1))
    while world.live:
        step(world)
    assert [t.order.id for t in world.ended] == ["tried", "older"]
    assert world.core.snapshot(world.now_ns).preemptions_total == 0


def test_a_started_prompt_leaves_the_spare_to_decodes() -> None:
    """A prompt under way does not take the last block from a decode, only to be its victim."""
    world = make_world(num_blocks=8, max_batch_tokens=9, enable_prefix_cache=False)
    world.submit(make_order("a", 4, max_tokens=8))
    step(world)
    world.submit(make_order("b", 24, max_tokens=4))
    while "a" in world.live:
        step(world)
    world.drain()
    assert world.core.snapshot(world.now_ns).preemptions_total == 0


# Policies that misbehave, and policies of other shapes


class Shaped(Fcfs):
    """First come, first served with other answers, for one test each."""

    def __init__(
        self,
        limits: StepLimits | None = None,
        *,
        never_due: bool = False,
        room: Room | None = None,
        shortest_first: bool = False,
    ) -> None:
        super().__init__()
        self.shape = limits or StepLimits()
        self.never_due = never_due
        self.claimed = room
        self.shortest_first = shortest_first

    def limits(self, view: View) -> StepLimits:
        return self.shape

    def due(self, request: Request, view: View) -> bool:
        return not self.never_due

    def room(self, request: Request, view: View) -> Room:
        return self.claimed or super().room(request, view)

    def prefill_rank(self, request: Request, view: View) -> Rank:
        rank = super().prefill_rank(request, view)
        return (request.num_prompt_tokens, *rank) if self.shortest_first else rank


@pytest.mark.parametrize(
    "limits",
    [
        StepLimits(max_tokens=0),
        StepLimits(max_decodes=0),
        StepLimits(max_prefills=0),
        StepLimits(max_decodes=0, max_prefills=0),
        StepLimits(max_running=1),
        StepLimits(whole_prompts=True),
        StepLimits(max_tokens=1, whole_prompts=True),
    ],
)
def test_no_limits_of_a_policy_can_stall_the_engine(limits: StepLimits) -> None:
    """Laws L11 and L12: World asserts that a step is never empty while anybody is there."""
    world = make_world(Shaped(limits), max_batch_tokens=8)
    for name in "abcd":
        world.submit(make_order(name, 11))
    world.drain()
    assert len(world.ended) == 4


def test_decodes_that_are_not_due_take_the_seats_left_over() -> None:
    """Deferred decodes come after prompts, and run when the step has tokens left (SLAI, step 4)."""
    world = make_world(Shaped(never_due=True), max_batch_tokens=6)
    world.submit(make_order("a", 4, max_tokens=9))
    step(world)
    world.submit(make_order("b", 9))
    assert step(world) == [("b", 6)]
    assert step(world) == [("a", 1), ("b", 3)]
    world.drain()


def test_whole_prompts_are_not_cut_while_there_is_another_way() -> None:
    """A prompt that does not fit the step waits for the next one rather than be cut."""
    world = make_world(Shaped(StepLimits(whole_prompts=True)), max_batch_tokens=10)
    world.submit(make_order("a", 7))
    world.submit(make_order("b", 7))
    assert step(world) == [("a", 7)]
    assert step(world) == [("a", 1), ("b", 7)]
    world.drain()


def test_prompts_only_or_decodes_only() -> None:
    """A policy that forbids decodes while prompts run gets prompts alone (vLLM 0.x)."""
    world = make_world(Shaped(StepLimits(max_decodes=0)), max_batch_tokens=10)
    world.submit(make_order("a", 7))
    step(world)
    world.submit(make_order("b", 7))
    assert step(world) == [("b", 7)]
    assert step(world) == [("a", 1), ("b", 1)]
    world.drain()


def test_decodes_run_when_the_prompts_in_their_way_cannot() -> None:
    """The prompt waits for memory, so the step it was given goes to decodes; it is not cut."""
    limits = StepLimits(max_decodes=0, whole_prompts=True)
    world = make_world(Shaped(limits), num_blocks=6, enable_prefix_cache=False)
    world.submit(make_order("a", 15, max_tokens=3))
    step(world)
    world.submit(make_order("b", 15))
    assert step(world) == [("a", 1)]
    assert step(world) == [("a", 1)]
    assert step(world) == [("b", 15)]
    world.drain()


def test_room_for_the_longest_answer_can_be_claimed_at_the_start() -> None:
    """A claim is cut to what the request could ever use (Orca reserves that much)."""
    world = make_world(Shaped(room=Room(claim_tokens=10**9)), num_blocks=10)
    world.submit(make_order("a", 9, max_tokens=8))
    step(world)
    assert len(world.core._scheduler.kv.block_ids(find(world, "a"))) == 5
    world.drain()


def test_a_spare_larger_than_the_pool_stops_nobody_for_ever() -> None:
    """An unreasonable spare means one at a time, not never."""
    world = make_world(Shaped(room=Room(spare_blocks=10**9)))
    for name in "abc":
        world.submit(make_order(name))
    while world.live:
        assert len(step(world)) == 1
    world.drain()


def test_prompts_under_way_are_ranked_again_every_step() -> None:
    """A better-ranked newcomer goes before the rest of a prompt that was begun."""
    world = make_world(Shaped(shortest_first=True), max_batch_tokens=6)
    world.submit(make_order("long", 20))
    assert step(world) == [("long", 6)]
    world.submit(make_order("short", 5))
    assert step(world) == [("short", 5), ("long", 1)]
    world.drain()


def test_seats_go_to_those_who_keep_first() -> None:
    """Where a step has fewer seats than decodes, the order is that of memory."""
    world = make_world(Shaped(StepLimits(max_decodes=1)), max_batch_requests=3)
    world.wait(3)
    for arrival_ns, name in [(2, "b"), (1, "a")]:
        world.submit(make_order(name, 4, max_tokens=3, arrival_ns=arrival_ns))
    step(world)
    assert step(world) == [("a", 1)]
    world.drain()
    assert [t.order.id for t in world.ended] == ["a", "b"]


# The queue's bounds


def test_the_waiting_queue_is_bounded_in_requests_and_in_tokens() -> None:
    """Law L39: each bound on its own; a place is free again once somebody was started."""
    world = make_world(config=CoreConfig(max_waiting_requests=2, max_waiting_prompt_tokens=50))
    assert world.submit(make_order("a", 4))
    assert world.submit(make_order("b", 46))
    assert not world.submit(make_order("c", 1))
    world.abort("a")
    assert not world.submit(make_order("d", 5))
    assert world.submit(make_order("e", 4))
    step(world)
    assert world.submit(make_order("f", 4))
    assert world.refused == ["queue_full", "queue_full"]
    world.drain()


def test_a_prompt_longer_than_the_bound_is_taken_when_nobody_waits() -> None:
    """It fits the model, so telling it to come back later would be a lie."""
    world = make_world(config=CoreConfig(max_waiting_requests=5, max_waiting_prompt_tokens=10))
    assert world.submit(make_order("long", 100))
    assert not world.submit(make_order("next", 1))
    world.drain()


def test_preempted_requests_come_back_to_a_full_queue() -> None:
    """The bound is for newcomers: nobody who was taken is dropped."""
    config = CoreConfig(max_waiting_requests=1)
    world = make_world(config=config, num_blocks=4, enable_prefix_cache=False)
    world.wait(2)
    world.submit(make_order("old", 7, max_tokens=9, arrival_ns=1))
    step(world)
    world.submit(make_order("new", 2, max_tokens=12, arrival_ns=2))
    step(world)
    world.submit(make_order("waits", 7, max_tokens=8))
    world.drain()
    assert len(world.ended) == 3


def test_a_flood_of_one_tier_refuses_nobody_of_another() -> None:
    """Laws L39 and F10: each tier has both bounds to itself, and is told of its own queue."""
    world = make_world(config=CoreConfig(max_waiting_requests=2, max_waiting_prompt_tokens=50))
    for name in "abcd":
        world.submit(make_order(name, 20, tier="free"))
    assert world.refused == ["queue_full"] * 2
    assert world.submit(make_order("e", 30, tier="premium"))
    assert not world.submit(make_order("f", 21, tier="premium"))
    assert world.submit(make_order("g", 20, tier="premium"))
    assert not world.submit(make_order("h", 1, tier="premium"))
    assert world.core.snapshot(world.now_ns).waiting_by_tier == (("free", 2), ("premium", 2))
    world.drain()


def test_a_tier_that_is_served_has_its_places_back() -> None:
    """Starts, aborts and ends count for the tier that they belong to."""
    world = make_world(config=CoreConfig(max_waiting_requests=1), max_batch_requests=1)
    assert world.submit(make_order("a", tier="free"))
    assert world.submit(make_order("b", tier="premium"))
    assert not world.submit(make_order("c", tier="free"))
    step(world)
    assert world.submit(make_order("d", tier="free"))
    assert not world.submit(make_order("e", tier="premium"))
    world.abort("d")
    assert world.submit(make_order("f", tier="free"))
    world.abort("b")
    assert world.submit(make_order("g", tier="premium"))
    world.drain()
