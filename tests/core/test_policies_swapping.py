"""Who travels when jobs are served by priority: the batch, the reserve, the newcomer's place."""

from __future__ import annotations

from core_orders import make_capacity
from core_scenes import decoding, parked, view, waiting

from engine.core.policies.swapping import host_is_full, num_blocks, num_growing, swap
from engine.core.policy import Rank, Traffic, View
from engine.core.request import Request

SMALL = make_capacity(num_blocks=20, block_size=4, num_host_blocks=100)


def by_name(job: Request) -> Rank:
    return (job.id,)


def asked(present: View, newcomer: Request | None = None, *, seats: int = 16) -> Traffic:
    """The traffic where everyone may leave; the alphabet is the order."""
    return swap(present, by_name, newcomer, seats=seats, may_leave=lambda job, wanted: True)


def names(requests: object) -> list[str]:
    assert isinstance(requests, (list, tuple))
    return [request.id for request in requests]


def test_nobody_travels_while_there_is_room() -> None:
    """No parked job, and blocks for everyone's growth: nothing to decide."""
    jobs = [decoding("a", 10), decoding("b", 10)]
    traffic = asked(view(decoding=jobs, free_blocks=14, capacity=SMALL))
    assert (traffic.park, traffic.back) == ((), ())


def test_the_last_of_the_order_leaves_when_blocks_run_short() -> None:
    """The reserve is one block per running job: as many may ask for one in the next step."""
    jobs = [decoding(name, 14) for name in "abcd"]  # 4 blocks each, 5 at their end
    assert num_blocks(jobs[0], view(capacity=SMALL)) == 4
    short = view(decoding=jobs, free_blocks=3, capacity=SMALL)
    assert names(asked(short).park) == []  # all four fit into what the reserve leaves
    jobs = [decoding(name, 14) for name in "abcde"]
    short = view(decoding=jobs, free_blocks=0, capacity=SMALL)
    assert names(asked(short).park) == ["e", "d"]


def test_a_parked_job_of_the_batch_comes_back_into_free_blocks() -> None:
    """In order, and nobody past the first that finds no room."""
    jobs = [decoding("c", 10)]
    away = [parked("a", 10), parked("b", 30), parked("d", 6)]
    present = view(decoding=jobs, parked=away, free_blocks=13, capacity=SMALL)
    assert names(asked(present).back) == ["a", "b"]
    tight = view(decoding=jobs, parked=away, free_blocks=9, capacity=SMALL)
    assert names(asked(tight).back) == ["a"]


def test_a_better_job_on_the_host_sends_the_worst_away() -> None:
    """It comes back in the next step, into the blocks that are free then."""
    jobs = [decoding("b", 30), decoding("c", 30)]  # 8 blocks each
    away = [parked("a", 30)]
    present = view(decoding=jobs, parked=away, free_blocks=4, capacity=SMALL)
    traffic = asked(present)
    assert (names(traffic.park), names(traffic.back)) == (["c"], [])
    after = view(decoding=jobs[:1], parked=[*away, parked("c", 30)], free_blocks=12, capacity=SMALL)
    traffic = asked(after)
    assert (names(traffic.park), names(traffic.back)) == ([], ["a"])


def test_the_newcomer_keeps_the_room_that_was_made_for_it() -> None:
    """Who left for it does not come straight back; behind it, whoever fits besides does."""
    newcomer = waiting("a", 30)
    away = [parked("b", 30), parked("z", 30)]
    jobs = [decoding("c", 18)]
    present = view(decoding=jobs, parked=away, free_blocks=14, capacity=SMALL)
    assert names(asked(present, newcomer).back) == []
    assert names(asked(present).back) == ["b"]
    gone = decoding("a", 30)
    assert names(asked(present, gone).back) == ["b"]


def test_seats_bound_the_batch_as_blocks_do() -> None:
    """Jobs beyond the largest batch are outside of it."""
    jobs = [decoding("b", 2), decoding("c", 2)]
    present = view(decoding=jobs, parked=[parked("a", 2)], free_blocks=2, capacity=SMALL)
    assert names(asked(present, seats=2).park) == ["c"]
    assert names(asked(present, seats=3).park) == []


def test_only_who_may_leave_leaves() -> None:
    """The policy is asked, and told for whom: None where blocks merely run out."""
    seen: list[tuple[str, str | None]] = []

    def never(job: Request, wanted: Request | None) -> bool:
        seen.append((job.id, None if wanted is None else wanted.id))
        return False

    jobs = [decoding(name, 14) for name in "bcdef"]
    full = view(decoding=jobs, free_blocks=0, capacity=SMALL)
    assert swap(full, by_name, None, seats=16, may_leave=never).park == []
    wanted = view(decoding=jobs, parked=[parked("a", 2)], free_blocks=0, capacity=SMALL)
    assert swap(wanted, by_name, None, seats=16, may_leave=never).park == []
    assert ("f", None) in seen
    assert ("f", "a") in seen


def test_the_host_is_full_below_a_tenth_and_only_with_somebody_there() -> None:
    """No new prompt is begun then."""
    away = [parked("a")]
    assert host_is_full(view(parked=away, free_host_blocks=9, capacity=SMALL))
    assert not host_is_full(view(parked=away, free_host_blocks=10, capacity=SMALL))
    assert not host_is_full(view(free_host_blocks=0, capacity=SMALL))


def test_growth_counts_the_decodes_at_the_end_of_a_block() -> None:
    """Those whose next token has no place yet."""
    jobs = [decoding("full", 8), decoding("roomy", 9), decoding("too", 12)]
    assert num_growing(view(decoding=jobs, capacity=SMALL)) == 2
