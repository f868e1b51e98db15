"""Whom to give up, against every choice there is: nobody could keep more and be on time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.core.policies.triage import Job, give_up

MANY = settings(max_examples=5 * settings().max_examples)


def job(name: str, due: float, length: float, *, weight: float | None = None) -> Job:
    return Job(name, due, length, length if weight is None else weight)


@st.composite
def job_sets(draw: st.DrawFn, *, weighted: bool, with_fixed: bool) -> list[Job]:
    """Up to eight jobs in the order of their due times, lengths and due times often equal."""
    jobs = []
    for number in range(draw(st.integers(0, 8))):
        length = draw(st.integers(1, 6))
        weight = draw(st.integers(1, 9)) if weighted else length
        is_fixed = with_fixed and draw(st.integers(0, 3)) == 0
        jobs.append(Job(f"j{number}", draw(st.integers(0, 20)), length, weight, is_fixed))
    return sorted(jobs, key=lambda j: (j.due_ns, j.id))


def is_on_time(jobs: Sequence[Job], now_ns: float) -> bool:
    """Served one after the other, in the order given, all end in time."""
    ends = accumulate([j.length_ns for j in jobs], initial=now_ns)
    next(ends)
    return all(end <= j.due_ns for j, end in zip(jobs, ends, strict=True))


def most_kept(jobs: Sequence[Job], now_ns: float) -> int:
    """Try every subset with all of the fixed jobs; in any order due times first is best."""
    for count in range(len(jobs), -1, -1):
        for chosen in combinations(jobs, count):
            has_fixed = all(j in chosen for j in jobs if j.is_fixed)
            if has_fixed and is_on_time(chosen, now_ns):
                return count
    return 0


@MANY
@given(jobs=job_sets(weighted=False, with_fixed=False), now_ns=st.integers(0, 4))
def test_no_choice_keeps_more(jobs: list[Job], now_ns: int) -> None:
    """Moore's theorem: where the dear are the long, the fewest are given up."""
    given_up = give_up(jobs, now_ns)
    kept = [j for j in jobs if j.id not in given_up]
    assert is_on_time(kept, now_ns)
    assert len(kept) == most_kept(jobs, now_ns)


@MANY
@given(jobs=job_sets(weighted=False, with_fixed=True), now_ns=st.integers(0, 4))
def test_no_choice_keeps_more_beside_what_is_under_way(jobs: list[Job], now_ns: int) -> None:
    """The same with jobs that nobody can take back, as long as those can be on time themselves."""
    assume(is_on_time([j for j in jobs if j.is_fixed], now_ns))
    given_up = give_up(jobs, now_ns)
    kept = [j for j in jobs if j.id not in given_up]
    assert is_on_time(kept, now_ns)
    assert len(kept) == most_kept(jobs, now_ns)


@MANY
@given(jobs=job_sets(weighted=True, with_fixed=True), now_ns=st.integers(0, 4))
def test_whatever_the_weights_the_kept_are_on_time_and_the_fixed_kept(
    jobs: list[Job], now_ns: int
) -> None:
    """Weights choose whom, never whether: the kept can all be served, and nobody leaves twice."""
    given_up = give_up(jobs, now_ns)
    assert given_up <= {j.id for j in jobs if not j.is_fixed}
    if is_on_time([j for j in jobs if j.is_fixed], now_ns):
        assert is_on_time([j for j in jobs if j.id not in given_up], now_ns)
    assert give_up(iter(jobs), now_ns) == given_up


def test_the_dearest_goes_first() -> None:
    """Two fit of three: the one with the greatest weight leaves, though it is the shortest."""
    jobs = [job("a", 10, 5), job("b", 11, 2, weight=9), job("c", 12, 6)]
    assert give_up(jobs, 0) == {"b"}
    assert give_up([job(j.id, j.due_ns, j.length_ns) for j in jobs], 0) == {"c"}


def test_nobody_is_given_up_in_vain() -> None:
    """What nothing can save costs nobody his place: a late job under way, and one behind it."""
    late = Job("late", 5, 10, 10, is_fixed=True)
    jobs = [job("before", 3, 1), late, job("hopeless", 6, 2, weight=0), job("after", 13, 2)]
    assert give_up(jobs, 0) == {"hopeless"}
    assert give_up([job("long", 3, 4, weight=1), job("short", 3, 1, weight=2)], 0) == {"long"}


def test_equal_jobs_are_told_apart_by_their_names() -> None:
    """Law L37: of equals the first by name leaves, wherever it stands."""
    assert give_up([job(name, 10, 5) for name in "cab"], 0) == {"a"}
    assert give_up([job(name, 10, 5) for name in "bca"], 0) == {"a"}


def test_who_ends_when_it_is_due_is_on_time() -> None:
    """The due time belongs to the time before it; the present counts from now on."""
    assert give_up([job("a", 10, 5), job("b", 10, 5)], 0) == set()
    assert give_up([job("a", 10, 5), job("b", 10, 5)], 0.5) == {"a"}
    assert give_up([], 5) == set()
