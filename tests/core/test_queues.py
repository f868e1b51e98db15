"""Where requests stand: one place each, and the counts of every tier agree with it."""

from __future__ import annotations

import pytest
from core_orders import make_order
from hypothesis import event, given
from hypothesis import strategies as st

from engine.core.queues import Queues
from engine.core.request import Request, Status


def make_request(name: str, *, tier: str = "free", prompt: int = 4) -> Request:
    return Request(make_order(name, prompt, tier=tier, max_tokens=9), now_ns=0)


def started(queues: Queues, request: Request, num_computed: int = 4) -> Request:
    queues.wait(request, (0, request.id))
    queues.start(request, 1)
    request.num_computed = num_computed
    return request


def test_a_request_parks_and_resumes_where_it_was() -> None:
    """A prompt under way comes back as one, an answer under way as a decode."""
    queues = Queues()
    prompt = started(queues, make_request("prompt"), 2)
    answer = started(queues, make_request("answer"), 4)
    answer.output.append(5)
    queues.refile(answer)
    for request in (prompt, answer):
        queues.park(request, 2)
        assert (request.status, request.num_computed > 0) == (Status.PARKED, True)
    assert list(queues.parked) == ["prompt", "answer"]
    assert (queues.num_running, len(queues), dict(queues.running_by_tier)) == (0, 2, {})
    queues.check_integrity()
    for request in (prompt, answer):
        queues.resume(request, 3)
    assert list(queues.prefilling) == ["prompt"]
    assert list(queues.decoding) == ["answer"]
    assert (queues.num_running, dict(queues.running_by_tier)) == (2, {"free": 2})
    queues.check_integrity()


def test_a_parked_request_may_start_over_or_end() -> None:
    """Its copy was lost, or its client left: it stands nowhere else afterwards."""
    queues = Queues()
    lost = started(queues, make_request("lost"))
    left = started(queues, make_request("left"))
    for request in (lost, left):
        queues.park(request, 2)
    queues.interrupt(lost, 3)
    assert (lost.status, lost.num_computed, lost.high_water) == (Status.WAITING, 0, 4)
    queues.wait(lost, (0, "lost"))
    queues.end(left, 3)
    assert left.status is Status.FINISHED
    assert [r.id for r in queues] == ["lost"]
    queues.check_integrity()


def test_only_the_running_are_parked_and_only_the_parked_resume() -> None:
    """The table of transitions holds here too (law L2)."""
    queues = Queues()
    request = make_request("a")
    queues.wait(request, (0, "a"))
    with pytest.raises(KeyError):
        queues.park(request, 1)
    queues.start(request, 1)
    request.num_computed = 1
    with pytest.raises(AssertionError, match=r"RUNNING -> Status\.RUNNING"):
        queues.resume(request, 2)


MOVES = {
    "start": {Status.WAITING},
    "park": {Status.RUNNING},
    "resume": {Status.PARKED},
    "interrupt": {Status.RUNNING, Status.PARKED},
    "end": {Status.WAITING, Status.RUNNING, Status.PARKED},
}


@given(
    script=st.lists(
        st.tuples(st.sampled_from(["add", *MOVES]), st.integers(0, 30)), min_size=10, max_size=60
    )
)
def test_any_walk_keeps_one_place_each(script: list[tuple[str, int]]) -> None:
    """Laws L1 and L2: after every move each request stands in one place, and the counts agree."""
    queues, live, num_moves = Queues(), list[Request](), 0
    for now_ns, (move, number) in enumerate(script, 1):
        if move == "add":
            live.append(make_request(str(now_ns), tier=f"tier-{number % 3}", prompt=1 + number % 5))
            queues.wait(live[-1], (number, str(now_ns)))
        able = [r for r in live if move != "add" and r.status in MOVES[move]]
        if not able:
            continue
        request = able[number % len(able)]
        num_moves += 1
        getattr(queues, move)(request, now_ns)
        if move == "start":
            request.num_computed = 1
        if move == "interrupt":
            queues.wait(request, (number, request.id))
        if move == "end":
            live.remove(request)
        queues.check_integrity()
        assert {r.id for r in queues} == {r.id for r in live}
        assert len(queues) == len(live)
        waiting = [r for r in live if r.status is Status.WAITING]
        prompts = sum(r.num_prompt_tokens for r in waiting)
        assert queues.waiting_tokens_by_tier.total() == prompts
    event(f"moves made: {num_moves // 10 * 10}")
