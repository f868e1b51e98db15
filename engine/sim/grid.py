"""Many independent pieces of work on all cores; it knows processes and not what they compute.

Results come back in the order of the work, whatever ends first, and each worker is a fresh
interpreter (spawn): the number of cores changes nothing but the time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_JOBS = 1024


class GridError(Exception):
    """The work could not be done for a reason of the machine; one sentence says which."""


def default_jobs() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Grid(Generic[Item, Result]):
    """Runs `work`, a function of a module's top level, on lists of values; a context manager.

    With one job everything runs in this process. Workers are kept from one `run` to the next.
    """

    def __init__(self, work: Callable[[Item], Result], jobs: int | None = None) -> None:
        jobs = default_jobs() if jobs is None else jobs
        if not 1 <= jobs <= MOST_JOBS:
            raise GridError(f"jobs must be 1 to {MOST_JOBS}, not {jobs}")
        self._work = work
        self._jobs = jobs
        self._pool: ProcessPoolExecutor | None = None
        self._others = frozenset[int | None]()

    def __enter__(self) -> Grid[Item, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(at_once=error is not None)

    def run(
        self, items: Sequence[Item], on_done: Callable[[int, Result], None] | None = None
    ) -> list[Result]:
        """Return one result an item, in the items' order; `on_done` hears of each as it ends.

        The first exception of the work is raised here and ends all that is under way.
        """
        if self._jobs == 1 or (len(items) == 1 and self._pool is None):
            return self._run_here(items, on_done)
        pool = self._open()
        is_whole = False
        try:
            futures = {pool.submit(self._work, item): i for i, item in enumerate(items)}
            results = self._collect(futures, on_done)
            is_whole = True
        except BrokenProcessPool as error:
            raise GridError(
                "a worker process died, most likely for lack of memory; try fewer jobs"
            ) from error
        finally:
            if not is_whole:  # an error of the work, or Ctrl-C
                self._close(at_once=True)
        return results

    def _run_here(
        self, items: Sequence[Item], on_done: Callable[[int, Result], None] | None
    ) -> list[Result]:
        results = []
        for index, item in enumerate(items):
            results.append(self._work(item))
            if on_done is not None:
                on_done(index, results[-1])
        return results

    def _collect(
        self,
        futures: dict[Future[Result], int],
        on_done: Callable[[int, Result], None] | None,
    ) -> list[Result]:
        for future in as_completed(futures):
            result = future.result()
            if on_done is not None:
                on_done(futures[future], result)
        return [future.result() for future in futures]  # a dict keeps the order of submission

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._others = frozenset(p.pid for p in multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(
                self._jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare
            )
        return self._pool

    def _close(self, *, at_once: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if at_once:
            # A point may take a minute: what is under way is ended, not waited for.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process.pid not in self._others:
                    process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare() -> None:
    """Make a worker end when it should, and only then."""
    # Ctrl-C reaches the whole group; the parent ends its workers: one message, not one from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, name="parent-watch", daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when its parent is gone: killed, it could not say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
