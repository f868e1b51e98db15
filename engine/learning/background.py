"""The thread that learns while the gateway serves: answers in, fits begun and ended, state saved.

It knows no request path: whoever serves only appends to its queue. It does a little at a time;
what takes long, the fit, happens in a process of its own with a niceness of its own. The thread
itself has none: it holds Python's lock while it works, and were it made to wait for a core then,
every stream would wait with it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from engine.core.clock import NS_PER_S, Clock
from engine.learning.fit_process import FitFailed, FitProcess
from engine.learning.learner import DueFit, Learner
from engine.learning.scope import Ended

MOST_PENDING = 4096  # answers not yet learned from; more are dropped
BATCH_S = 0.2  # answers are taken in together that end within so long
LOOK_S = 0.5  # how often a fit under way is looked at
IDLE_S = 5.0
SAVE_NS = 300 * NS_PER_S
RETRY_NS = 60 * NS_PER_S  # after a fit that failed
PAUSE_S = 5.0  # after a turn that failed
REST = 9  # times as long as a fit took nothing is fitted: a busy gateway's cores are for answers
JOIN_S = 10.0
MOST_TOLD = 32  # kinds of failures that are told

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _UnderWay:
    due: DueFit
    process: FitProcess
    began_ns: int
    is_early: bool  # begun while there should have been rest, because it was urgent


class BackgroundLearner:
    """Drives a learner from a thread; `start` once, `close` once."""

    def __init__(self, learner: Learner, clock: Clock, save: Callable[[], None]) -> None:
        self._learner = learner
        self._clock = clock
        self._save = save
        self._pending: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lengths", daemon=True)
        self._fit: _UnderWay | None = None
        self._retry_ns = self._rest_ns = 0
        self._saved_ns = clock.now_ns()
        self._is_changed = False
        self.num_dropped = 0
        self._told: set[str] = set()  # kinds of failures told so far
        self.num_failed_fits = 0
        self.num_failures = 0

    @property
    def is_fitting(self) -> bool:
        """True while a fit's process runs."""
        return self._fit is not None

    @property
    def is_alive(self) -> bool:
        """True from `start` to `close`."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to learn."""
        self._thread.start()

    def put(self, ended: Ended) -> None:
        """Hand in an answer that ended; takes no time. Dropped where too many are pending."""
        if self._pending.qsize() >= MOST_PENDING:
            self.num_dropped += 1
        else:
            self._pending.put(ended)

    def close(self) -> None:
        """Learn what is pending, save, and end; a fit under way is given up."""
        self._stopping.set()
        self._pending.put(None)
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._guarded(self._turn):
                self._stopping.wait(PAUSE_S)
        for last in (self._give_up_fit, self._take_all, self._save_if_changed):
            self._guarded(last)

    def _guarded(self, step: Callable[[], None]) -> bool:
        """Take a step; return False where it failed: a fault in here must not end the learning.

        Without this thread lengths would be guessed from ever older answers, and nobody told.
        """
        try:
            step()
        except Exception as error:
            self.num_failures += 1
            kind = type(error).__name__
            if kind not in self._told and len(self._told) < MOST_TOLD:
                self._told.add(kind)
                log.exception("output lengths: learning failed and goes on; told once for %s", kind)
            return False
        return True

    def _turn(self) -> None:
        try:
            first = self._pending.get(timeout=LOOK_S if self._fit is not None else IDLE_S)
        except queue.Empty:
            first = None
        if first is not None:
            self._stopping.wait(BATCH_S)
            self._take([first, *self._drain()])
        now_ns = self._clock.now_ns()
        if self._fit is not None:
            self._look_at_fit(self._fit, now_ns)
        elif now_ns >= self._retry_ns:
            self._begin_fit(now_ns)
        if now_ns - self._saved_ns >= SAVE_NS:
            self._save_if_changed()

    def _drain(self) -> list[Ended]:
        found: list[Ended] = []
        while True:
            try:
                one = self._pending.get_nowait()
            except queue.Empty:
                return found
            if one is not None:
                found.append(one)

    def _take_all(self) -> None:
        self._take(self._drain())

    def _take(self, ended: list[Ended]) -> None:
        if ended:
            self._is_changed = True
            self._learner.learn(ended)

    def _begin_fit(self, now_ns: int) -> None:
        self._retry_ns = now_ns + RETRY_NS  # unless it goes well
        is_early = now_ns < self._rest_ns
        due = self._learner.due_fit(now_ns, only_urgent=is_early)
        if due is not None:
            try:
                self._fit = _UnderWay(due, FitProcess(due.rows, now_ns), now_ns, is_early)
            except OSError as error:
                self._fail(f"no process for a fit: {error}", now_ns)
                return
        self._retry_ns = 0

    def _look_at_fit(self, fit: _UnderWay, now_ns: int) -> None:
        try:
            model = fit.process.poll(now_ns)
        except FitFailed as error:
            self._fit = None
            self._fail(str(error), now_ns)
            return
        except BaseException:
            self._retry_ns = now_ns + RETRY_NS
            self._give_up_fit()
            raise
        if model is not None:
            self._fit = None
            rest_ns = now_ns + REST * (now_ns - fit.began_ns)
            if not fit.is_early:  # else whoever is always urgent would put off all others
                self._rest_ns = rest_ns
            if fit.due.is_urgent:
                fit.due.scope.not_urgent_until_ns = rest_ns
            self._is_changed = True
            self._learner.install(fit.due, model)

    def _give_up_fit(self) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            fit.process.close()

    def _fail(self, why: str, now_ns: int) -> None:
        self.num_failed_fits += 1
        self._retry_ns = now_ns + RETRY_NS
        log.warning("output lengths: %s; guessing goes on with what is known", why)

    def _save_if_changed(self) -> None:
        self._saved_ns = self._clock.now_ns()
        if self._is_changed:
            self._save()
            self._is_changed = False
