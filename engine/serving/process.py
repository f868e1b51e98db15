"""The engine as a supervised child process, seen by the door as an EngineClient.

It knows streams and the supervisor, and of the environment only what the child must find there
before it imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.core.clock import Clock, MonotonicClock
from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from engine.core.request import RequestOrder
from engine.core.stats import Snapshot
from engine.serving.client import EngineInfo, FinishListener, StepListener
from engine.serving.config import EngineConfig
from engine.serving.cores import usable_cores
from engine.serving.messages import (
    Abort,
    Command,
    Explained,
    Progress,
    Ready,
    StepOutput,
    Stop,
    Submit,
)
from engine.serving.questions import OpenQuestions
from engine.serving.streams import EventStream, StreamTable
from engine.serving.supervisor import Supervisor

RESTARTED = "engine restarted"
CLOSED = "engine closed"

_FOUND_ANYWAY = ("site-packages", "dist-packages")

# glibc returns big temporaries to the system and faults them in again, every step, unless told
# to keep them.
_KEEP_BELOW_BYTES = 1 << 30
_TRIM_ABOVE_BYTES = 1 << 31


def child_environment(config: EngineConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the engine's process: what it inherits, and how torch shall run.

    OpenMP and malloc read theirs once, when their libraries are loaded; hence here, and not in the
    child. Values that the operator has set win over the defaults, never over `config.threads`.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    search = [*config.import_paths, inherited.get("PYTHONPATH", "")]
    if Path(package_root).name not in _FOUND_ANYWAY:  # first in line would hide the stdlib
        search.insert(0, package_root)
    defaults = {
        "GOMP_SPINCOUNT": str(config.spin),
        "MALLOC_MMAP_THRESHOLD_": str(_KEEP_BELOW_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_TRIM_ABOVE_BYTES),
        "TOKENIZERS_PARALLELISM": "false",
        # Last words must get out, also those of a segmentation fault.
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    chosen = {"PYTHONPATH": os.pathsep.join(filter(None, search))}
    if config.threads is not None or "OMP_NUM_THREADS" not in inherited:
        chosen["OMP_NUM_THREADS"] = str(config.threads or usable_cores())
    return {**defaults, **inherited, **chosen}


class EngineProcess:
    """An EngineClient whose engine lives in a process of its own; made inside an event loop.

    `on_progress` hears how loading goes. All methods belong to that event loop's thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: Clock | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock if clock is not None else MonotonicClock()
        self._progress = on_progress
        self._streams = StreamTable(config.max_open_requests)
        self._questions = OpenQuestions()
        self._info: EngineInfo | None = None
        self._snapshot: Snapshot | None = None
        self._busy_since_ns: int | None = None
        self._closing = False
        environment = child_environment(config, os.environ)
        self._supervisor = Supervisor(config, environment, self._clock, self)

    @property
    def info(self) -> EngineInfo | None:
        """See EngineClient."""
        return self._info

    @property
    def ready(self) -> bool:
        """See EngineClient."""
        return self._supervisor.ready

    @property
    def snapshot(self) -> Snapshot | None:
        """See EngineClient; the last one of a dead engine stays until the next is ready."""
        return self._snapshot

    @property
    def restarts(self) -> int:
        """How many times another engine had to be started."""
        return self._supervisor.restarts

    def __contains__(self, request_id: str) -> bool:
        """True while the request's end has not been seen."""
        return request_id in self._streams

    async def start(self) -> None:
        """See EngineClient."""
        await self._supervisor.start()

    async def close(self) -> None:
        """See EngineClient."""
        self._closing = True
        await self._supervisor.close()
        self._streams.fail_all(CLOSED, self._clock.now_ns())
        await asyncio.sleep(0)  # the finish listeners have run when this returns

    def submit(self, order: RequestOrder) -> EventStream:
        """See EngineClient. Raises RequestRefused for an id that is open already."""
        if not self.ready:
            raise EngineUnavailable("the engine is starting or restarting")
        self._streams.check_unused(order.id)
        now_ns = self._clock.now_ns()
        if self._streams.full:
            return self._streams.refuse(order, "too many requests are open", now_ns)
        if self._supervisor.backlog_bytes > self._config.max_inbox_bytes:
            return self._streams.refuse(order, "the engine's inbox is full", now_ns)
        # Sent before the stream is opened: what cannot be sent must not be billed.
        self._supervisor.send(Submit(order))
        if self._busy_since_ns is None:
            self._busy_since_ns = now_ns
        return self._streams.open(order)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        self._tell(request_id, Abort(request_id))

    def stop(self, request_id: str, num_output_tokens: int) -> None:
        """See EngineClient."""
        self._tell(request_id, Stop(request_id, num_output_tokens))

    async def explain(self, request_id: str) -> RequestRecord | None:
        """See EngineClient."""
        return await self._questions.ask(request_id, self._supervisor.send)

    def add_finish_listener(self, listener: FinishListener) -> None:
        """See EngineClient."""
        self._streams.add_finish_listener(listener)

    def add_step_listener(self, listener: StepListener) -> None:
        """See EngineClient."""
        self._streams.add_step_listener(listener)

    def _tell(self, request_id: str, command: Command) -> None:
        """Send a command about an open request; without an engine its end is on the way anyway."""
        if request_id in self._streams:
            with contextlib.suppress(EngineUnavailable):
                self._supervisor.send(command)

    def on_ready(self, ready: Ready) -> None:
        """Supervisor: an engine takes requests."""
        self._info = ready.info
        self._snapshot = ready.snapshot

    def on_step(self, output: StepOutput) -> None:
        """Supervisor: an engine finished a step."""
        self._snapshot = output.snapshot
        self._streams.dispatch(output.events, output.stats)
        if not self._streams:
            self._busy_since_ns = None

    def on_explained(self, explained: Explained) -> None:
        """Supervisor: an engine answered a question."""
        self._questions.answer(explained)

    def on_progress(self, progress: Progress) -> None:
        """Supervisor: an engine is loading."""
        if self._progress is not None:
            self._progress(progress.stage, progress.fraction)

    def on_down(self) -> None:
        """Supervisor: the engine that was ready is gone."""
        detail = CLOSED if self._closing else RESTARTED
        self._streams.fail_all(detail, self._clock.now_ns())
        self._questions.fail_all(detail)
        self._busy_since_ns = None

    def busy_since_ns(self) -> int | None:
        """Supervisor: since when requests have been open."""
        return self._busy_since_ns
