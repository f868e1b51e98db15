"""The engine as a supervised child process, seen by the door as an EngineClient.

It knows streams and the supervisor, and of the environment only what the child must find there
before it imports torch.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.core.clock import Clock
from engine.serving.config import EngineConfig
from engine.serving.cores import usable_cores
from engine.serving.messages import Command, Progress
from engine.serving.remote import CLOSED, RemoteEngine
from engine.serving.supervisor import Supervisor

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


def inherited_environment(config: EngineConfig) -> dict[str, str]:
    """Return the environment of an engine's process that is started by this one."""
    return child_environment(config, os.environ)


class EngineProcess(RemoteEngine):
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
        super().__init__(
            max_open_requests=config.max_open_requests,
            max_inbox_bytes=config.max_inbox_bytes,
            clock=clock,
        )
        self._progress = on_progress
        self._supervisor = Supervisor(config, inherited_environment(config), self._clock, self)

    @property
    def ready(self) -> bool:
        """See EngineClient."""
        return self._supervisor.ready

    @property
    def restarts(self) -> int:
        """How many times another engine had to be started."""
        return self._supervisor.restarts

    @property
    def _backlog_bytes(self) -> int:
        return self._supervisor.backlog_bytes

    def _send(self, command: Command) -> None:
        self._supervisor.send(command)

    async def start(self) -> None:
        """See EngineClient."""
        await self._supervisor.start()

    async def close(self) -> None:
        """See EngineClient."""
        self._closing = True
        await self._supervisor.close()
        self._streams.fail_all(CLOSED, self._clock.now_ns())
        await asyncio.sleep(0)  # the finish listeners have run when this returns

    def on_progress(self, progress: Progress) -> None:
        """Supervisor: an engine is loading."""
        if self._progress is not None:
            self._progress(progress.stage, progress.fraction)

    def busy_since_ns(self) -> int | None:
        """Supervisor: since when requests have been open."""
        return self._busy_since_ns
