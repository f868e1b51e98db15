"""Random schedules of forced parks under a late, faulty copier; and proof that they would tell."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from engine.core.batch import Batch, Chunk, Copy, StepResult
from engine.core.executor import Capacity
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.request import Request, RequestOrder, SamplingParams
from engine.core.scheduler import Scheduler
from engine.sim.contents import ContentExecutor, CopierDice, right_answer
from engine.sim.executor import SimulatedFault
from engine.sim.schedules import Schedule

ROOT = Path(__file__).resolve().parents[2]
CAPACITY = Capacity(6, 2, 12, 16, 4, num_host_blocks=4)


def run(seeds: range) -> Counter[str]:
    counts = Counter[str]()
    for seed in seeds:
        counts.update(Schedule(seed).run())
    return counts


def test_no_schedule_leaks_hangs_or_lies() -> None:
    """Two thousand of them; a million are run by benchmarks/swap/random_schedules.py."""
    counts = run(range(10**6, 10**6 + 2000))
    assert counts["schedules"] == 2000
    assert counts["requests"] == sum(n for name, n in counts.items() if name.startswith("ended_"))
    # They mean something: everything that can happen to a context happens to many.
    for what in ("parks", "returns", "copies_lost", "late_copies", "waiting_steps", "faults"):
        assert counts[what] > 100, what
    for place in ("queued", "mid_prompt", "decoding", "copying_out", "parked", "copying_in"):
        assert counts[f"aborts_{place}"] > 10, place
    assert counts["parked_answers_checked"] > 500


def test_equal_seeds_are_equal_schedules() -> None:
    """Law L37: so a failure is found again by its seed."""
    assert Schedule(7).run() == Schedule(7).run()
    assert [Schedule(seed).run() for seed in range(9)] != [Schedule(7).run()] * 9


def _broken(seeds: range) -> int:
    """How many schedules fail."""
    count = 0
    for seed in seeds:
        try:
            Schedule(seed).run()
        except AssertionError:
            count += 1
    return count


def test_a_park_without_a_fence_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law L5: the device's side given away before the copy is over makes wrong tokens."""
    park = KVCacheManager.park

    def hasty(self: KVCacheManager, request: Request) -> Copy:
        copy = park(self, request)
        entry = next(entry for entry in self.copies if entry.copy is copy)
        self._pool.release(entry.blocks)
        self.copies.num_held_blocks -= len(entry.blocks)
        entry.blocks = ()
        return copy

    monkeypatch.setattr(KVCacheManager, "park", hasty)
    monkeypatch.setattr(KVCacheManager, "check_integrity", lambda *_: None)  # by tokens alone
    assert _broken(range(600)) > 5


def test_a_lost_copy_taken_for_arrived_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law L33: garbage that is computed on gives wrong tokens."""
    end_copies = Scheduler._end_copies

    def trusting(self: Scheduler, result: StepResult, now_ns: int) -> object:
        every = (*result.copied, *result.lost_copies)
        return end_copies(self, dataclasses.replace(result, copied=every, lost_copies=()), now_ns)

    monkeypatch.setattr(Scheduler, "_end_copies", trusting)
    assert _broken(range(200)) > 5


def chunk(name: str, start: int, tokens: tuple[int, ...], *blocks: int, is_last: bool) -> Chunk:
    sampling = SamplingParams(max_tokens=3) if is_last else None
    return Chunk(name, start, tokens, blocks, sampling)


class TestContentExecutor:
    """A memory whose answers show what happened to it."""

    order = RequestOrder("a", (4, 4, 5), SamplingParams(max_tokens=3), 0)

    def make(self, capacity: Capacity = CAPACITY, **dice: float) -> ContentExecutor:
        return ContentExecutor(capacity, random.Random(0), CopierDice(**dice))

    def prompt(self, executor: ContentExecutor) -> int:
        """Compute the prompt in two pieces; returns the first token."""
        executor.execute(Batch(1, (chunk("a", 0, (4,), 3, is_last=False),)))
        made = executor.execute(Batch(2, (chunk("a", 1, (4, 5), 3, 1, is_last=True),)))
        return made.tokens[0].token_id

    def second(self, executor: ContentExecutor, *blocks: int) -> int:
        made = executor.execute(
            Batch(9, (chunk("a", 3, (right_answer(self.order)[0],), *blocks, is_last=True),))
        )
        return made.tokens[0].token_id

    def test_an_undisturbed_context_gives_the_right_answer(self) -> None:
        """However it is cut into chunks."""
        executor = self.make()
        answer = right_answer(self.order)
        assert len(answer) == 3
        assert self.prompt(executor) == answer[0]
        assert self.second(executor, 3, 1) == answer[1]

    def test_another_block_or_another_content_gives_another_answer(self) -> None:
        """A wrong table, and a block that somebody wrote in between."""
        executor = self.make()
        self.prompt(executor)
        executor.execute(Batch(3, (chunk("b", 0, (9,), 3, is_last=False),)))
        assert self.second(executor, 3, 1) != right_answer(self.order)[1]
        executor = self.make()
        self.prompt(executor)
        assert self.second(executor, 1, 3) != right_answer(self.order)[1]

    def test_a_context_comes_back_when_the_copy_is_over(self) -> None:
        """Carried out and in to other blocks; before its end a copy gives nothing to rely on."""
        executor = self.make()
        self.prompt(executor)
        assert executor.execute(Batch(3, (), (Copy("a", (3, 1), (2, 4), 1, 3),))).copied == (1,)
        executor.execute(Batch(4, (chunk("b", 0, (9, 9, 9, 9), 1, 3, is_last=False),)))
        back = Batch(5, (), (), (Copy("a", (5, 6), (2, 4), 2, 3),))
        assert executor.execute(back).copied == (2,)
        assert self.second(executor, 5, 6) == right_answer(self.order)[1]

    def test_a_lost_copy_and_a_fault_leave_garbage(self) -> None:
        """They are told, and what arrived is no context."""
        executor = self.make(lost_share=1.0)
        self.prompt(executor)
        result = executor.execute(Batch(3, (), (Copy("a", (3, 1), (2, 4), 1, 3),)))
        assert (result.copied, result.lost_copies) == ((), (1,))
        executor = self.make(fault_share=1.0)
        with pytest.raises(SimulatedFault):
            executor.execute(Batch(1, (), (Copy("a", (3, 1), (2, 4), 1, 3),)))
        assert executor.num_copies == 0

    def test_an_inexact_host_changes_what_it_gives_back(self) -> None:
        """So that a block of it under another's prefix would show."""
        executor = self.make(dataclasses.replace(CAPACITY, host_is_exact=False))
        self.prompt(executor)
        executor.execute(Batch(3, (), (Copy("a", (3, 1), (2, 4), 1, 3),)))
        executor.execute(Batch(4, (), (), (Copy("a", (5, 6), (2, 4), 2, 3),)))
        assert self.second(executor, 5, 6) != right_answer(self.order)[1]

    def test_waiting_for_nothing_is_an_error(self) -> None:
        """A batch without chunks is only sent while a copy is under way."""
        with pytest.raises(AssertionError, match="nothing to wait for"):
            self.make().execute(Batch(1, ()))


def test_the_script_counts_what_its_workers_ran() -> None:
    """In two pieces on two processes the same as in one."""
    command = [sys.executable, "-m", "benchmarks.swap.random_schedules", "--dry-run"]
    made = [
        json.loads(
            subprocess.run(
                [*command, "--schedules", "520", "--seed", "3", "--jobs", jobs],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for jobs in ("1", "2")
    ]
    assert made[0]["counts"] == made[1]["counts"]
    assert made[0]["counts"]["schedules"] == 520
    assert (made[0]["failed"], made[0]["failures"]) == (0, [])
