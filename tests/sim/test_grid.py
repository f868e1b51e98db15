"""The grid gives the same results in the same order on any number of cores, or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.sim.grid import Grid, GridError, default_jobs

ROOT = Path(__file__).parents[2]


def slow_square(number: int) -> tuple[int, int]:
    """The first items take longest, so that they end last."""
    time.sleep(0.2 / (1 + number))
    return number * number, os.getpid()


def refuse_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is not welcome")
    time.sleep(0.01)
    return number


def die(number: int) -> int:
    if number == 1:
        os._exit(9)
    return number


def test_results_come_in_the_order_of_the_work() -> None:
    """Whatever ends first; and the work ran in other processes."""
    seen = []
    with Grid(slow_square, jobs=2) as grid:
        results = grid.run(range(6), lambda index, result: seen.append((index, result[0])))
        again = grid.run(range(2))
    assert [square for square, _ in results] == [0, 1, 4, 9, 16, 25]
    assert sorted(seen) == [(i, i * i) for i in range(6)]
    assert os.getpid() not in {pid for _, pid in results}
    assert {pid for _, pid in again} <= {pid for _, pid in results}


def test_one_job_needs_no_other_process() -> None:
    with Grid(slow_square, jobs=1) as grid:
        assert grid.run([2, 1]) == [(4, os.getpid()), (1, os.getpid())]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_work_is_raised_as_it_is(jobs: int) -> None:
    with Grid(refuse_three, jobs) as grid, pytest.raises(ValueError, match="not welcome"):
        grid.run(range(50))


def test_a_worker_that_dies_is_told_in_one_sentence() -> None:
    with Grid(die, jobs=2) as grid, pytest.raises(GridError, match="a worker process died"):
        grid.run(range(4))


def test_workers_leave_when_their_parent_is_killed() -> None:
    """A killed parent cannot tell them; nobody may be left behind to hold memory."""
    script = (
        "import os, time\n"
        "from engine.sim.grid import Grid\n"
        "if __name__ == '__main__':\n"
        "    with Grid(os.getpgid, jobs=2) as grid:\n"
        "        grid.run([0, 0, 0])\n"
        "        print([p.pid for p in __import__('multiprocessing').active_children()],"
        " flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
    assert workers
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_jobs_are_bounded() -> None:
    assert default_jobs() >= 1
    for jobs in (0, 5000):
        with pytest.raises(GridError, match="jobs must be"):
            Grid(refuse_three, jobs)
