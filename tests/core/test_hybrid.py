"""The hybrid's decisions, one small scene each; the whole of it stands in tests/sim."""

from __future__ import annotations

import dataclasses

import pytest
from core_orders import make_order, make_world
from core_scenes import decoding, find, step, view, waiting
from core_world import World
from hybrid_scenes import FREE, MS, PREMIUM, ROUND, STREAM, S, free, hybrid, in_turn, offer

from engine.core.latency_model import LatencyModel
from engine.core.policies import make_policy
from engine.core.policies.hybrid import Hybrid
from engine.core.policies.hybrid_options import HybridOptions
from engine.core.policy import NO_LIMIT
from engine.core.request import Request, Status


class TestTimeOfAStep:
    """How long a step may last."""

    def budget(self, *requests: Request, now_ns: int = 0, **options: float) -> int:
        return hybrid(**options).limits(view(now_ns, decoding=requests)).max_step_ns

    def test_it_is_a_share_of_the_tightest_gap_now_decoding(self) -> None:
        """Nobody's next token may be late because of the step before it."""
        one, other = decoding("a", slo=FREE), decoding("b", slo=PREMIUM)
        assert self.budget(one, other) == 100 * MS
        assert self.budget(one, other, step_share=0.5) == 50 * MS

    def test_without_a_tight_promise_it_is_the_longest(self) -> None:
        """Half a second between tokens leaves room for the usual step."""
        assert self.budget(decoding("a", slo=FREE)) == self.budget() == 200 * MS
        assert self.budget(max_step_ms=150) == 150 * MS

    def test_a_promise_that_cannot_be_kept_leaves_time_for_prompts(self) -> None:
        """A gap of 1 ms on a device of 11 ms a step: two bare steps, else nobody ever starts."""
        hopeless = decoding("a", slo=dataclasses.replace(PREMIUM, tbt_ns=MS))
        assert self.budget(hopeless) == 22 * MS

    def test_a_device_slower_than_the_longest_step_still_gets_two(self) -> None:
        """Else each step would hold one decode and never a prompt."""
        policy = hybrid(max_step_ms=5)
        assert policy.limits(view()).max_step_ns == 22 * MS

    def test_a_stream_with_a_bank_is_in_no_hurry(self) -> None:
        """Its gap counts only when what it has in hand is nearly spent."""
        slo = dataclasses.replace(STREAM, tbt_ns=50 * MS)
        rich = decoding("a", slo=slo, generated=100)
        assert self.budget(rich) == 200 * MS
        assert self.budget(rich, now_ns=5 * S - 300 * MS) == 50 * MS

    def test_it_ends_before_a_decode_that_was_put_off_is_due(self) -> None:
        """Skipped under short steps, it must not be made late by a long one."""
        put_off = decoding("a", slo=FREE)
        assert self.budget(put_off, now_ns=400 * MS) == 100 * MS


class TestDue:
    """Which decodes cannot wait for the next step."""

    def is_due(self, request: Request, now_ns: int, *, free_blocks: int = 1000, **o: float) -> bool:
        policy = hybrid(**o)
        present = view(now_ns, decoding=[request], free_blocks=free_blocks)
        policy.limits(present)
        return policy.due(request, present)

    def test_who_would_be_late_after_two_more_steps_is_due(self) -> None:
        """Due at 500 ms, steps of 200: on time still at 100, not a moment later."""
        request = decoding("a", slo=FREE)
        assert not self.is_due(request, 100 * MS)
        assert self.is_due(request, 100 * MS + 1)

    def test_the_fuller_the_memory_the_sooner(self) -> None:
        """Up to half of it in use, decodes wait; from four fifths on none does."""
        request = decoding("a", slo=dataclasses.replace(FREE, tbt_ns=2 * S))
        assert not self.is_due(request, 700 * MS, free_blocks=500)
        assert self.is_due(request, 700 * MS, free_blocks=350)  # half of its time is left to it
        assert not self.is_due(request, 500 * MS, free_blocks=350)
        assert self.is_due(request, 0, free_blocks=200)

    def test_a_stream_waits_as_long_as_its_bank(self) -> None:
        """Thirty tokens of half a second each, all at the beginning."""
        request = decoding("a", slo=STREAM, generated=30)
        assert not self.is_due(request, 14 * S)
        assert self.is_due(request, 15 * S - 300 * MS)

    def test_beside_an_open_prompt_of_a_class_ahead_memory_has_no_say(self) -> None:
        """The prompt has the first claim on the time that others can wait."""
        policy, request = hybrid(), decoding("a", slo=FREE)
        present = view(0, decoding=[request], free_blocks=100)
        policy.limits(present)
        assert policy.due(request, present)
        offer(policy, waiting("p", slo=PREMIUM))
        policy.limits(present)
        assert not policy.due(request, present)

    def test_switches(self) -> None:
        """Without deferral all are due; without memory's pace each waits until the last moment."""
        request = decoding("a", slo=dataclasses.replace(FREE, tbt_ns=2 * S))
        assert self.is_due(request, 0, defer=0)
        assert not self.is_due(request, S, free_blocks=0, memory_pace=0)


class TestPrompts:
    """Who is next."""

    def test_class_then_due_time(self) -> None:
        """A class ahead goes first, whoever came when; within one the first due."""
        early, late = free("a"), free("b", arrival_ns=5)
        assert in_turn(hybrid(), late, early, waiting("p", arrival_ns=9, slo=PREMIUM)) == "pab"

    def test_a_longer_prompt_may_be_due_later(self) -> None:
        """Due times count, not arrivals, unless the switch says arrivals."""
        slo = dataclasses.replace(FREE, ttft_ns_per_1k_prompt_tokens=10 * S)
        long, short = waiting("l", 90, slo=slo), waiting("s", 10, arrival_ns=5, slo=slo)
        assert in_turn(hybrid(), long, short) == "sl"
        assert in_turn(hybrid(deadlines=0), long, short) == "ls"

    def test_the_dearest_is_given_up_where_not_all_can_be_on_time(self) -> None:
        """A second's work twice, and a little one, in two seconds' time: one has to go behind."""
        policy = hybrid(decode_weight=0)
        a, b, c = free("a", 1000), free("b", 1100, 1), free("c", 200, 2)
        offer(policy, a, b, c)
        policy.limits(view(2))
        assert in_turn(policy, a, b, c, now_ns=2) == "acb"
        keen = hybrid(triage=0)
        again = free("a", 1000), free("b", 1100, 1), free("c", 200, 2)
        offer(keen, *again)
        keen.limits(view(2))
        assert in_turn(keen, *again, now_ns=2) == "abc"

    def test_what_it_will_decode_belongs_to_what_a_prompt_costs(self) -> None:
        """Of equal prompts the one with the longer answer goes behind."""
        policy = hybrid()
        a, b = free("a", 1100, guess=10.0), free("b", 1100, guess=900.0)
        offer(policy, b, a)
        policy.limits(view(0))
        assert in_turn(policy, b, a) == "ab"

    def test_who_is_under_way_is_not_given_up(self) -> None:
        """Its work is not thrown away for one that has not begun."""
        policy = hybrid(decode_weight=0)
        a, b = free("a", 1500), free("b", 1000, 1)
        offer(policy, a, b)
        a.move_to(Status.RUNNING, 2)
        a.num_computed = 10
        policy.limits(view(2))
        assert in_turn(policy, a, b, now_ns=2) == "ab"

    def test_who_missed_is_due_again_behind_those_who_have_not(self) -> None:
        """Its second due time is 22 s after it came; to be on time again it stays in order."""
        policy = hybrid()
        missed = free("m")
        offer(policy, missed)
        policy.limits(view(3 * S))
        assert missed.note[0] == 22 * S
        fresh, later = free("f", 20, 19 * S), free("l", 20, 21 * S)
        assert in_turn(policy, missed, fresh, later, now_ns=21 * S) == "fml"

    def test_the_lost_go_behind_shortest_first_with_age(self) -> None:
        """Each may be overtaken for twenty times its own length."""
        policy = hybrid()
        long, short = free("l", 1000), free("s", 10, 15 * S)
        late_short = free("t", 10, 25 * S)
        offer(policy, long, short, late_short)
        policy.limits(view(60 * S))
        assert in_turn(policy, long, short, late_short, now_ns=60 * S) == "slt"
        assert in_turn(policy, long, free("f", 900, 60 * S), now_ns=60 * S) == "fl"

    def test_a_lost_context_goes_by_its_next_token(self) -> None:
        """Who has its first token and starts over is due as a decode is."""
        request = decoding("d", slo=FREE, now_ns=7)
        request.move_to(Status.WAITING, 8)
        assert hybrid().prefill_rank(request, view(9))[2] == 7 + 500 * MS


class TestMemory:
    """Who keeps it, who gets it."""

    def test_class_then_nearest_its_end(self) -> None:
        """Predicted lengths order victims, and nothing does where the switch is off."""
        near, far = (
            decoding("a", slo=FREE, arrival_ns=5, guess=10.0),
            decoding("b", slo=FREE, guess=900.0),
        )
        ahead = decoding("p", slo=PREMIUM, guess=999.0)
        for policy, order in ((hybrid(), "pab"), (hybrid(predict=0), "pba")):
            ranked = sorted((near, far, ahead), key=lambda r: policy.keep_rank(r, view()))
            assert "".join(r.id for r in ranked) == order

    def test_only_a_class_ahead_displaces(self) -> None:
        """Equals never push each other out."""
        policy, newcomer = hybrid(), waiting("p", slo=PREMIUM)
        assert policy.may_displace(newcomer, decoding("f", slo=FREE), view())
        assert not policy.may_displace(newcomer, decoding("q", slo=PREMIUM), view())
        assert not policy.may_displace(free("f"), decoding("q", slo=PREMIUM), view())
        assert not hybrid(displace=0).may_displace(newcomer, decoding("f", slo=FREE), view())

    def test_the_last_blocks_are_the_first_class_s(self) -> None:
        """Free leaves three hundredths, premium one for the growth of decodes."""
        assert hybrid().room(free("f", 30), view()).spare_blocks == 30
        room = hybrid().room(waiting("p", 30, slo=PREMIUM), view())
        assert (room.claim_tokens, room.spare_blocks) == (30, 10)


def model_world(policy: Hybrid, **capacity: int) -> World:
    model = policy._model
    return make_world(policy, enable_prefix_cache=False, model=model, **capacity)


def test_a_prompt_fills_the_time_of_a_step_and_not_more() -> None:
    """Through the planner: 200 ms less 10 for the step are 190 tokens of a prompt of 300."""
    policy = hybrid()
    world = model_world(policy, max_model_len=600, max_batch_tokens=1000, num_blocks=300)
    world.submit(make_order("a", 300, slo=FREE))
    assert step(world) == [("a", 190)]
    assert step(world)[0][0] == "a"
    assert find(world, "a").first_token_ns is not None
    world.drain()


def test_a_premium_prompt_displaces_free_through_the_planner() -> None:
    """The pool is full of free; premium starts in the step in which it came."""
    world = model_world(hybrid(park=0), num_blocks=10)
    world.submit(make_order("f", 30, max_tokens=9, slo=FREE))
    step(world)
    world.submit(make_order("g", 8, max_tokens=4, slo=FREE))
    assert [name for name, _ in step(world)] == ["f"]
    world.submit(make_order("p", 8, max_tokens=4, slo=PREMIUM))
    assert ("p", 8) in step(world)
    assert find(world, "f").preemption_count == 1
    world.drain()


BAD = [
    ("step_share", 0), ("step_share", 1.5), ("max_step_ms", 0), ("reserve", -0.1),
    ("pace_low", 0.9), ("growth", 0.6), ("second_s", float("nan")), ("ageing", float("inf")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_senseless_option_is_refused_by_name(name: str, value: float) -> None:
    """One sentence that says which option of which policy."""
    with pytest.raises(ValueError, match=rf"^hybrid: .*\b{name}\b[^\n]*$"):
        make_policy("hybrid", [(name, value)])


def test_an_option_nobody_knows_is_refused() -> None:
    """A mistyped switch must not be a silent default."""
    with pytest.raises(ValueError, match="policy 'hybrid' has no option parks"):
        make_policy("hybrid", [("parks", 1)])


def test_without_the_time_budget_steps_count_tokens() -> None:
    """The switch leaves Sarathi's and SLAI's 512 tokens."""
    limits = hybrid(time_budget=0).limits(view())
    assert (limits.max_tokens, limits.max_step_ns) == (512, NO_LIMIT)


def test_the_link_s_queue_is_two_shares_of_a_step() -> None:
    """What is under way may be carried in 0.8 of two steps of 200 ms: at 1 ms a token, 320."""
    profile = dataclasses.replace(ROUND, link_out_ns_per_token=MS, link_in_ns_per_token=MS / 2)
    policy = Hybrid(LatencyModel(profile), HybridOptions(step_share=1.0))
    assert policy.limits(view()).max_copy_tokens == 320


def test_what_the_door_holds_of_a_paced_stream_is_a_bank() -> None:
    """Its next token is due a gap after the client sees the last one, not after it was made."""
    paced = dataclasses.replace(FREE, pace_ns=300 * MS)  # a gap of 500 ms is promised
    usual, banked = decoding("f", 40, slo=FREE), decoding("g", 40, slo=paced)
    banked.shown_ns += 5 * S
    policy = hybrid(pace_low=1.0, pace_high=1.0)
    now_ns = usual.shown_ns + 400 * MS
    present = view(now_ns, decoding=[usual, banked])
    policy.limits(present)
    assert policy.split_due(present) == ([usual], [banked])
    assert [policy.due(r, present) for r in (usual, banked)] == [True, False]


def test_a_way_back_begins_as_much_sooner_as_it_takes() -> None:
    """Due in 600 ms, a step of 200 ms: carried at once where the way takes 400 ms, not 390."""
    request = decoding("f", 40, slo=FREE)
    for ns_per_token, is_time in ((400 * MS // 40, True), (390 * MS // 40, False)):
        profile = dataclasses.replace(ROUND, link_in_ns_per_token=ns_per_token)
        policy = Hybrid(LatencyModel(profile), HybridOptions(step_share=1.0))
        policy.limits(view())
        policy._back_at_ns[request.id] = 600 * MS
        assert policy._must_return(request, 0) is is_time
