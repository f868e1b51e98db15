"""The engine's process for many doors: started, watched and ended here, used through `EngineLink`.

It hands every engine the same listening socket, so doors find the next engine where they found the
last one; a connection made in between waits there. It submits nothing and sees no token.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from engine.core.clock import Clock, MonotonicClock
from engine.serving.client import EngineInfo
from engine.serving.config import EngineConfig
from engine.serving.messages import Explained, Progress, Ready, StepOutput
from engine.serving.process import inherited_environment
from engine.serving.supervisor import Supervisor

BACKLOG = 128


def listen_for_doors(path: Path) -> socket.socket:
    """Return a listening socket at `path`, whose folder only its owner may enter; raises OSError.

    The caller removes the file.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class EngineHost:
    """One engine process at a time, restarted until `close`; made inside an event loop.

    `on_progress` hears how loading goes.
    """

    def __init__(
        self,
        config: EngineConfig,
        listener: socket.socket,
        *,
        clock: Clock | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self._info: EngineInfo | None = None
        self._progress = on_progress
        environment = inherited_environment(config)
        self._supervisor = Supervisor(
            config, environment, clock or MonotonicClock(), self, listener
        )

    @property
    def info(self) -> EngineInfo | None:
        """What the engine said at its last start; None before the first."""
        return self._info

    @property
    def ready(self) -> bool:
        """True while an engine answers."""
        return self._supervisor.ready

    @property
    def restarts(self) -> int:
        """How many times another engine had to be started."""
        return self._supervisor.restarts

    async def start(self) -> None:
        """Start the first engine and return when it is ready; raises ModelLoadError."""
        await self._supervisor.start()

    async def close(self) -> None:
        """End the engine; every door's open streams fail."""
        await self._supervisor.close()

    def on_ready(self, ready: Ready) -> None:
        """Supervisor: an engine takes requests."""
        self._info = ready.info

    def on_step(self, _output: StepOutput) -> None:
        """Supervisor: never called, steps are told to doors only."""

    def on_explained(self, _explained: Explained) -> None:
        """Supervisor: never called, nothing is asked from here."""

    def on_progress(self, progress: Progress) -> None:
        """Supervisor: an engine is loading."""
        if self._progress is not None:
            self._progress(progress.stage, progress.fraction)

    def on_down(self) -> None:
        """Supervisor: the engine that was ready is gone; the doors see it by themselves."""

    def busy_since_ns(self) -> int | None:
        """Supervisor: whether requests are open is not known here, so it is asked all the time."""
        return 0
