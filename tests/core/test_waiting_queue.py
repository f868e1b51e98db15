"""The waiting queue against a plain sorted list."""

from __future__ import annotations

import random

from core_orders import make_order
from hypothesis import given
from hypothesis import strategies as st

from engine.core.policy import Rank
from engine.core.request import Request
from engine.core.waiting_queue import (
    MOVED_PER_LEAVING,
    MOVED_PER_REFRESH,
    RERANKED_PER_STEP,
    WaitingQueue,
)


def make_request(name: str, length: int = 1) -> Request:
    return Request(make_order(name, length), now_ns=0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "push", "take", "discard"]), st.integers(0, 9)),
        max_size=300,
    )
)
def test_the_head_is_always_the_best_rank(script: list[tuple[str, int]]) -> None:
    """Any order of arrivals and departures, ids coming back included; garbage stays bounded."""
    queue, model = WaitingQueue(), dict[str, tuple[Rank, Request]]()
    for verb, number in script:
        name = str(number)
        if verb == "push" and name not in model:
            request, rank = make_request(name, number + 1), (number * 7 % 3, 0, name)
            queue.push(request, rank)
            model[name] = (rank, request)
        elif verb == "discard" and name in model:
            queue.discard(model.pop(name)[1])
        elif verb == "take" and (head := queue.head()) is not None:
            queue.discard(head[1])
            del model[head[1].id]
        best = min(model.values(), key=lambda entry: entry[0], default=None)
        assert queue.head() == best
        assert len(queue) == len(model)
        assert set(queue) == {request for _, request in model.values()}
        assert len(queue._heap) + len(queue._aside) <= 4 * len(queue) + 130
        queue.check_integrity()


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=60), delays=st.integers(0, 200))
def test_moving_ranks_are_right_soon_and_at_the_head_at_once(
    lengths: list[int], delays: int
) -> None:
    """A rank that worsened never leads; one that improved leads once its turn has come."""
    queue = WaitingQueue()
    requests = [make_request(str(i), 1 + length) for i, length in enumerate(lengths)]
    ranks: dict[str, Rank] = {r.id: (r.num_prompt_tokens, 0, r.id) for r in requests}
    for request in requests:
        queue.push(request, ranks[request.id])
    first = queue.head()
    assert first is not None
    ranks[first[1].id] = (100, 0, first[1].id)
    queue.refresh(lambda r: ranks[r.id])
    queue.check_integrity()
    assert queue.head() == min((ranks[r.id], r) for r in requests)
    last = requests[delays % len(requests)]
    ranks[last.id] = (-1, 0, last.id)
    for _ in range(-(-len(requests) // RERANKED_PER_STEP) + 1):
        queue.refresh(lambda r: ranks[r.id])
    assert queue.head() == (ranks[last.id], last)
    queue.check_integrity()


def test_a_refresh_looks_at_a_bounded_number() -> None:
    """However many wait, a step ranks a few of them again (no full sorts)."""
    queue, asked = WaitingQueue(), list[str]()

    def rank(request: Request) -> Rank:
        asked.append(request.id)
        return (0, 0, request.id)

    for i in range(1000):
        request = make_request(str(i))
        queue.push(request, (0, 0, request.id))
    queue.refresh(rank)
    assert len(asked) <= 2 * RERANKED_PER_STEP
    for _ in range(1000 // RERANKED_PER_STEP + 1):
        queue.refresh(rank)
    assert len(set(asked)) == 1000


@given(st.integers(0, 2**32 - 1))
def test_dead_entries_are_cleared_out_a_few_at_a_time(seed: int) -> None:
    """However many ranks move, no call touches more than its share, and the head is the best."""
    rng, queue = random.Random(seed), WaitingQueue()
    requests = [make_request(str(i)) for i in range(300)]
    ranks: dict[str, Rank] = {r.id: (rng.randrange(50), 0, r.id) for r in requests}
    for request in requests:
        queue.push(request, ranks[request.id])
    asides, most = 0, 0
    for _ in range(120):
        for request in rng.sample(requests, 20):
            ranks[request.id] = (rng.randrange(50), 0, request.id)
        before = len(queue._aside) or len(queue._heap)
        queue.refresh(lambda r: ranks[r.id])
        if queue._aside:
            asides += 1
            assert before - len(queue._aside) <= MOVED_PER_REFRESH + 2 * RERANKED_PER_STEP
        most = max(most, len(queue._heap) + len(queue._aside))
        if rng.random() < 0.3 and len(requests) > 1:
            gone = requests.pop(rng.randrange(len(requests)))
            before = len(queue._aside)
            queue.discard(gone)
            if before > MOVED_PER_LEAVING and queue._aside:
                assert before - len(queue._aside) <= MOVED_PER_LEAVING
        queue.check_integrity()
        assert queue.head() == min((entry[0], entry[2]) for entry in queue._entries.values())
    assert asides
    assert most <= 4 * 300 + 130
