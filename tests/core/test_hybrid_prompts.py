"""Prompts without a token: in order of due times, a few per step, forgotten in the end."""

from __future__ import annotations

import random

from core_scenes import view
from hybrid_scenes import MS, ROUND, S, free, hybrid, offer

from engine.core.latency_model import LatencyModel
from engine.core.policies.hybrid import LEAST_JOBS, MOST_JOBS
from engine.core.policies.open_prompts import FIRST, LOST, MOST_MOVED, SECOND, OpenPrompts
from engine.core.request import Request, Status


def prompts(*requests: Request, second_s: float = 22) -> OpenPrompts:
    made = OpenPrompts(LatencyModel(ROUND), int(second_s * S), second_weight=2.0)
    for request in requests:
        made.enter(request, 0.0)
    return made


def names(book: OpenPrompts, now_ns: int = 0, *, speed: float = 1.0, most: int = 100) -> str:
    return "".join(job.id for job in book.jobs(1, now_ns, speed, most))


def test_the_first_due_come_first_however_they_were_entered() -> None:
    """And no more of them than were asked for."""
    requests = [free(name, 20, number * MS) for number, name in enumerate("abcdef")]
    random.Random(1).shuffle(requests)
    book = prompts(*requests)
    assert names(book) == "abcdef"
    assert names(book, most=2) == "ab"
    assert [job.due_ns for job in book.jobs(1, 0, 1.0, 2)] == [2 * S, 2 * S + MS]


def test_a_job_is_as_long_as_what_is_left_of_it_at_the_speed_of_prompts() -> None:
    """A quarter of a prompt of forty is done: thirty milliseconds, sixty at half speed."""
    request = free("a", 40)
    book = prompts(request)
    request.move_to(Status.RUNNING, 0)
    request.num_computed = 10
    job = book.jobs(1, 0, 0.5, 9)[0]
    assert (job.length_ns, job.is_fixed, job.num_tokens) == (60 * MS, True, 40)


def test_who_cannot_be_on_time_is_due_again_and_then_lost() -> None:
    """At the very moment at which it would end too late, and its second time counts double."""
    request = free("a", 100)
    book = prompts(request)
    weight = book.jobs(1, 1900 * MS, 1.0, 9)[0].weight
    assert request.note == (2 * S, FIRST)
    assert book.jobs(1, 1900 * MS + 1, 1.0, 9)[0].weight == 2 * weight
    assert request.note == (22 * S, SECOND)
    assert names(book, 22 * S) == ""
    assert request.note == (22 * S, LOST)
    assert book.classes == []
    assert book.oldest_lost() is request


def test_who_was_due_again_stands_where_that_puts_it() -> None:
    """Behind those whose first time comes before its second."""
    early, late = free("e"), free("l", 20, 5 * S)
    assert names(prompts(early, late), 6 * S) == "le"


def test_the_oldest_of_the_lost_is_the_first_that_was() -> None:
    """Whoever has left or has its token is passed over."""
    requests = [free(name, 20, number) for number, name in enumerate("abc")]
    book = prompts(*requests, second_s=0)
    assert names(book, 9 * S) == ""
    oldest = book.oldest_lost()
    assert oldest is requests[0]
    requests[0].move_to(Status.FINISHED, 9 * S)
    requests[1].move_to(Status.RUNNING, 9 * S)
    assert book.oldest_lost() is requests[1]  # until it has its token
    requests[1].add_token(0, 9 * S)
    assert book.oldest_lost() is requests[2]


def test_a_crowd_is_looked_at_a_few_at_a_time() -> None:
    """Thousands missed at once: each step moves some, and in the end all are where they belong."""
    requests = [free(f"r{number:04}") for number in range(1000)]
    book = prompts(*requests, second_s=0)
    steps = 0
    while book.classes:
        num_lost = sum(r.note[1] == LOST for r in requests)
        assert len(book.jobs(1, 9 * S, 1.0, 50)) <= 50
        assert sum(r.note[1] == LOST for r in requests) - num_lost <= MOST_MOVED
        steps += 1
    assert steps <= 1000 // MOST_MOVED + 1
    assert all(r.note[1] == LOST for r in requests)


def test_a_step_of_the_hybrid_weighs_no_more_than_so_many() -> None:
    """Whatever waits, in whatever class: the rest keeps its order by due time."""
    policy = hybrid(decode_weight=0)
    requests = [free(f"r{number:04}", 1000, number) for number in range(500)]
    offer(policy, *requests)
    policy.limits(view(500))
    assert len(policy._given_up) == MOST_JOBS - 1  # one of them can be on time
    assert 0 < LEAST_JOBS <= MOST_JOBS


def test_those_who_left_are_swept_out_when_they_are_many() -> None:
    """Nobody looks for them one by one, and they never outnumber the living by much."""
    requests = [free(f"r{number:04}", 20, number * S) for number in range(300)]
    book = prompts(*requests)
    for request in requests[10:]:
        request.move_to(Status.FINISHED, request.order.arrival_ns)
    book.sweep(300)
    assert len(book) == 300
    book.sweep(10)
    assert len(book) == 10
    assert names(book, most=100) == "".join(r.id for r in requests[:10])
