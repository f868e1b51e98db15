"""A paced answer in virtual time: whoever reads it, however it ends, and however slowly it is read.

The answer itself is a script of (milliseconds, choice) here; the pacers are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_loop import run_virtually

from engine.core.clock import NS_PER_MS, VirtualClock
from engine.core.request import Slo, TbtMode
from gateway.answer import Answer
from gateway.errors import ApiError, Problem, unauthenticated
from gateway.pacing import PacedAnswer

PACE_MS = 50
SLO = Slo(tbt_ns=120 * NS_PER_MS, tbt_mode=TbtMode.GAP, pace_ns=PACE_MS * NS_PER_MS)
FAULT = ApiError(Problem.ENGINE_FAILED, "The engine could not finish this request.")

scripts = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 7, 50, 400]), st.integers(0, 2)), min_size=1, max_size=40
)


class Script:
    """What stands where an Answer would: pieces at their times, and the two ends from outside."""

    def __init__(self, script: Sequence[tuple[int, int]], ends_with: ApiError | None) -> None:
        self.plan = SimpleNamespace(slo=SLO)
        self.choices = [SimpleNamespace(index=index) for index in range(3)]
        self.client_left = False
        self.cut_by: ApiError | None = None
        self.has_withheld = False
        self.on_end: Any = None
        self.num_taken = 0
        self._script = script
        self._ends_with = ends_with
        self._ended = asyncio.Event()

    async def deltas(self) -> AsyncGenerator[tuple[Any, list[int], int]]:
        for number, (wait_ms, index) in enumerate(self._script):
            if wait_ms:
                try:
                    async with asyncio.timeout(wait_ms / 1000):
                        await self._ended.wait()
                except TimeoutError:
                    pass
                if self.client_left:
                    return
                if self.cut_by is not None:
                    raise self.cut_by
            self.num_taken += 1
            yield self.choices[index], [number], 1
        if self._ends_with is not None:
            raise self._ends_with

    def leave(self) -> None:
        self.client_left = True
        self._ended.set()
        if self.on_end is not None:
            self.on_end()

    def cut(self, error: ApiError) -> None:
        self.cut_by = error
        self._ended.set()
        if self.on_end is not None:
            self.on_end()


class Reading:
    """What a reader saw: (milliseconds, choice, number of the piece), and how it ended."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, int]] = []
        self.error: ApiError | None = None
        self.ended_ms = 0.0
        self.num_taken = 0
        self.most_held = 0


def read(
    script: Sequence[tuple[int, int]],
    *,
    ends_with: ApiError | None = None,
    leave_ms: int | None = None,
    cut_ms: int | None = None,
    cut_with: ApiError = FAULT,
    each_takes_ms: int = 0,
    most_held: int = 1000,
) -> Reading:
    """Read a paced script to its end."""
    clock = VirtualClock()
    reading = Reading()

    async def work() -> None:
        answer = Script(script, ends_with)
        paced = PacedAnswer(cast(Answer, answer), clock, most_held)
        loop = asyncio.get_running_loop()
        if leave_ms is not None:
            loop.call_later(leave_ms / 1000, answer.leave)
        if cut_ms is not None:
            loop.call_later(cut_ms / 1000, answer.cut, cut_with)
        try:
            async with aclosing(paced.deltas()) as deltas:
                async for choice, [number], _ in deltas:
                    reading.seen.append((clock.now_ns() / NS_PER_MS, choice.index, number))
                    if each_takes_ms:
                        await asyncio.sleep(each_takes_ms / 1000)
                    reading.most_held = max(reading.most_held, answer.num_taken - len(reading.seen))
        except ApiError as error:
            reading.error = error
        reading.ended_ms = clock.now_ns() / NS_PER_MS
        reading.num_taken = answer.num_taken
        assert answer.on_end is None
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"

    run_virtually(clock, work())
    return reading


def made_ms(script: Sequence[tuple[int, int]], index: int) -> list[tuple[int, int]]:
    """Return (time, number) of a choice's pieces."""
    at_ms, made = 0, []
    for number, (wait_ms, whose) in enumerate(script):
        at_ms += wait_ms
        if whose == index:
            made.append((at_ms, number))
    return made


@given(script=scripts, ends_with=st.sampled_from([None, FAULT]))
def test_each_choice_leaves_at_its_own_pace_and_whole(
    script: list[tuple[int, int]], ends_with: ApiError | None
) -> None:
    """Every piece once, in order, to the millisecond when the pacer says; a failure lets what is
    held go at once, and follows it."""
    reading = read(script, ends_with=ends_with)
    end_ms = sum(wait_ms for wait_ms, _ in script)
    assert reading.error is ends_with
    for index in range(3):
        expected = []
        before = None
        for at_ms, number in made_ms(script, index):
            before = at_ms if before is None else max(at_ms, before + PACE_MS)
            seen_ms = before if ends_with is None else min(before, end_ms)
            expected.append((pytest.approx(seen_ms, abs=1.1), index, number))
        assert [seen for seen in reading.seen if seen[1] == index] == expected


@given(script=scripts, leave_ms=st.integers(0, 3000))
def test_a_client_that_leaves_ends_it_at_once(script: list[tuple[int, int]], leave_ms: int) -> None:
    """Nothing is said to who has left, and nobody waits for a pace."""
    reading = read(script, leave_ms=leave_ms)
    undisturbed = read(script)
    assert reading.error is None
    assert reading.ended_ms <= min(leave_ms, undisturbed.ended_ms) + 1.1
    assert reading.seen == undisturbed.seen[: len(reading.seen)]
    assert len(reading.seen) >= sum(at_ms < leave_ms - 1.1 for at_ms, _, _ in undisturbed.seen)


@given(script=scripts, cut_ms=st.integers(0, 3000))
def test_an_answer_that_is_cut_says_what_it_has(script: list[tuple[int, int]], cut_ms: int) -> None:
    """Everything made by then is seen at once. If that was all of it the answer is whole."""
    reading = read(script, cut_ms=cut_ms)
    assert reading.ended_ms <= min(cut_ms, read(script).ended_ms) + 1.1
    assert len(reading.seen) == reading.num_taken
    is_whole = reading.num_taken == len(script)
    assert reading.error is (None if is_whole else FAULT)


@given(script=scripts, cut_ms=st.integers(0, 3000))
def test_a_key_that_is_revoked_gets_nothing_more(
    script: list[tuple[int, int]], cut_ms: int
) -> None:
    """What is held back is dropped, and the error follows, unless all had been seen by then."""
    revoked = unauthenticated()
    reading = read(script, cut_ms=cut_ms, cut_with=revoked)
    undisturbed = read(script)
    assert reading.ended_ms <= min(cut_ms, undisturbed.ended_ms) + 1.1
    assert reading.seen == undisturbed.seen[: len(reading.seen)]
    assert len(reading.seen) >= sum(at_ms < cut_ms - 1.1 for at_ms, _, _ in undisturbed.seen)
    assert reading.error is (None if len(reading.seen) == len(script) else revoked)


@given(script=scripts, most_held=st.integers(0, 5), each_takes_ms=st.sampled_from([0, 3, 200]))
def test_a_slow_reader_and_a_small_bound_lose_nothing(
    script: list[tuple[int, int]], most_held: int, each_takes_ms: int
) -> None:
    """Each pacer holds no more than its bound and the one too many; the rest waits where it came
    from, and all of it is read in order."""
    reading = read(script, most_held=most_held, each_takes_ms=each_takes_ms)
    assert reading.error is None
    for index in range(3):
        numbers = [number for _, whose, number in reading.seen if whose == index]
        assert numbers == [number for _, number in made_ms(script, index)]
    # Of three choices; one more is in the filler's hands, and up to three were just let go.
    assert reading.most_held <= 3 * (most_held + 1) + 1 + 3


def test_a_reader_that_stops_reading_leaves_no_task() -> None:
    """Closing the generator half-way ends the task that fills it."""
    clock = VirtualClock()

    async def work() -> None:
        paced = PacedAnswer(cast(Answer, Script([(0, 0)] * 5, None)), clock)
        async with aclosing(paced.deltas()) as deltas:
            async for _ in deltas:
                break
        assert len(asyncio.all_tasks()) == 1

    run_virtually(clock, work())


def test_a_fault_of_ours_comes_through() -> None:
    """What is no ApiError is not swallowed by the task in between."""
    clock = VirtualClock()
    fault = cast(ApiError, ZeroDivisionError("ours"))

    async def work() -> None:
        paced = PacedAnswer(cast(Answer, Script([(0, 0)], fault)), clock)
        async with aclosing(paced.deltas()) as deltas:
            async for _ in deltas:
                pass

    with pytest.raises(ZeroDivisionError, match="ours"):
        run_virtually(clock, work())
