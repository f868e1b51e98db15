"""The hybrid over many steps: whose turn comes at last, who is away, who is forgotten."""

from __future__ import annotations

import dataclasses

import pytest
from core_orders import make_capacity
from core_scenes import decoding, view, waiting
from hybrid_scenes import FREE, MS, PREMIUM, STREAM, S, free, hybrid, in_turn, offer

from engine.core.policies.hybrid import Hybrid
from engine.core.policy import View
from engine.core.request import Request, Slo, Status


class TestTurn:
    """The oldest of the lost is started once in so many starts."""

    def lost_one(self, **options: float) -> tuple[Hybrid, Request]:
        policy, lost = hybrid(**options), free("lost")
        offer(policy, lost)
        policy.limits(view(60 * S))
        assert in_turn(policy, lost, free("f", 20, 60 * S), now_ns=60 * S) == "flost"
        return policy, lost

    def start(self, policy: Hybrid, count: int, now_ns: int) -> None:
        """That many others are started in this step, and one that finds no room is asked for."""
        for number in range(count + 1):
            other = free(f"s{number}", 20, now_ns)
            policy.room(other, view(now_ns))
            if number < count:
                other.move_to(Status.RUNNING, now_ns)

    def test_after_so_many_starts_it_goes_before_its_class_and_stays_there(self) -> None:
        """Started in one chunk or many, everyone counts; its room is made like that of others."""
        policy, lost = self.lost_one(oldest_every=3)
        fresh, ahead = free("f", 20, 60 * S), waiting("p", 20, arrival_ns=60 * S, slo=PREMIUM)
        self.start(policy, 2, 60 * S)
        policy.limits(view(61 * S))
        assert in_turn(policy, lost, fresh, now_ns=61 * S) == "flost"
        self.start(policy, 1, 61 * S)
        policy.limits(view(62 * S))
        assert in_turn(policy, lost, fresh, ahead, now_ns=62 * S) == "plostf"
        lost.move_to(Status.RUNNING, 62 * S)  # and between its chunks
        policy.limits(view(63 * S))
        assert in_turn(policy, lost, fresh, now_ns=63 * S) == "lostf"

    def test_the_next_turn_begins_with_its_first_token(self) -> None:
        """Then the next of the lost is the oldest, and the count begins again."""
        policy, lost = self.lost_one(oldest_every=1)
        offer(policy, second := free("second", 20, 1))
        policy.limits(view(61 * S))
        self.start(policy, 1, 61 * S)
        policy.limits(view(62 * S))
        assert policy.prefill_rank(lost, view())[1] == -1
        lost.move_to(Status.RUNNING, 62 * S)
        lost.add_token(0, 63 * S)
        policy.limits(view(63 * S))
        assert policy.prefill_rank(second, view())[1] == 1
        self.start(policy, 1, 63 * S)
        policy.limits(view(64 * S))
        assert policy.prefill_rank(second, view())[1] == -1

    @pytest.mark.parametrize("options", [{"oldest_every": 0}, {"oldest_s": 100}])
    def test_nobody_has_a_turn_without_waiting_for_it(self, options: dict[str, float]) -> None:
        """The switch, and the least wait."""
        policy, lost = self.lost_one(**{"oldest_every": 1, **options})
        self.start(policy, 5, 60 * S)
        policy.limits(view(61 * S))
        assert policy.prefill_rank(lost, view())[1] == 1

    def test_those_who_left_are_forgotten(self) -> None:
        """Aborted while they wait, lost or not: what is kept is bounded by those who live."""
        policy = hybrid()
        for number in range(3000):
            request = free(f"r{number}", 20, number * S // 100)
            offer(policy, request)
            policy.limits(view(number * S // 100, num_waiting=1))
            if number:
                request.move_to(Status.FINISHED, number * S // 100)
            assert len(policy._prompts) <= 70
        assert len(policy._asked) == len(policy._given_up) == len(policy._back_at_ns) == 0


class TestParking:
    """Who leaves the device for a while, and when it is back."""

    def crowd(self, *decodes: Request, parked: tuple[Request, ...] = ()) -> View:
        """A full pool of forty blocks, at one second."""
        capacity = make_capacity(num_blocks=40, num_host_blocks=40)
        return view(S, decoding=decodes, parked=parked, free_blocks=0, capacity=capacity)

    def wish(self, policy: Hybrid, present: View) -> tuple[str, str]:
        policy.limits(present)
        traffic = policy.traffic(present)
        return ("".join(r.id for r in traffic.park), "".join(r.id for r in traffic.back))

    def rich(self, name: str, guess: float = 100.0, slo: Slo = STREAM) -> Request:
        """It has forty tokens of half a second each, in its first second."""
        return decoding(name, slo=slo, generated=40, now_ns=S, guess=guess)

    def test_only_for_a_prompt_that_can_be_on_time(self) -> None:
        """Nobody waits, nobody is parked; a lost one is no reason either."""
        policy, a = hybrid(), self.rich("a")
        assert self.wish(policy, self.crowd(a)) == ("", "")
        offer(policy, free("w", 20, S))
        assert self.wish(policy, self.crowd(a)) == ("a", "")
        policy = hybrid(second_s=0)
        offer(policy, free("w", 20, -9 * S))
        assert self.wish(policy, self.crowd(a)) == ("", "")

    def test_the_longest_to_go_leaves_and_no_more_than_are_needed(self) -> None:
        """A prompt of twenty tokens needs less than what one of them holds."""
        policy = hybrid()
        offer(policy, free("w", 20, S))
        assert self.wish(policy, self.crowd(self.rich("a"), self.rich("b", 900.0))) == ("b", "")

    def test_who_has_no_bank_stays(self) -> None:
        """Nor does one in gap mode without a hundred tokens on time."""
        policy = hybrid()
        offer(policy, free("w", 20, S))
        poor = decoding("p", slo=STREAM, generated=5, now_ns=S)
        assert self.wish(policy, self.crowd(poor, self.rich("g", slo=FREE))) == ("", "")

    def test_the_first_class_is_not_paused_on_late_tokens(self) -> None:
        """Two hundred tokens on time earn it none; a stream of its own bank may go."""
        policy = hybrid()
        offer(policy, free("w", 20, S))
        earned = decoding("p", slo=PREMIUM, generated=200, now_ns=S)
        assert self.wish(policy, self.crowd(earned)) == ("", "")
        banked = self.rich("s", slo=dataclasses.replace(STREAM, rank=0))
        assert self.wish(policy, self.crowd(earned, banked)) == ("s", "")

    def test_it_is_back_when_its_promise_asks_for_it_or_at_leisure(self) -> None:
        """Eighteen seconds in a full pool, at once in an empty one where nobody waits."""
        policy, away = hybrid(), self.rich("a")
        offer(policy, prompt := free("w", 20, S))
        assert self.wish(policy, self.crowd(away)) == ("a", "")
        away.move_to(Status.PARKED, S)
        prompt.move_to(Status.FINISHED, S)
        full = self.crowd(parked=(away,))
        assert self.wish(policy, full) == ("", "")
        assert self.wish(policy, dataclasses.replace(full, free_blocks=40)) == ("", "a")
        assert self.wish(policy, dataclasses.replace(full, now_ns=18 * S + 700 * MS)) == ("", "")
        assert self.wish(policy, dataclasses.replace(full, now_ns=18 * S + 800 * MS)) == ("", "a")

    def test_a_wish_that_was_not_granted_is_forgotten(self) -> None:
        """Parked later for another reason, it comes back at once: it never had that long to go."""
        policy, away = hybrid(), self.rich("a")
        offer(policy, prompt := free("w", 20, S))
        assert self.wish(policy, self.crowd(away)) == ("a", "")
        prompt.move_to(Status.FINISHED, S)
        assert self.wish(policy, self.crowd(away)) == ("", "")  # it stayed: the host was full
        away.move_to(Status.PARKED, S)
        assert self.wish(policy, self.crowd(parked=(away,))) == ("", "a")

    def test_switch(self) -> None:
        """Without parking victims are recomputed."""
        assert hybrid().swaps
        assert not hybrid(park=0).swaps
