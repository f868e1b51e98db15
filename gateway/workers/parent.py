"""The parent of several workers: the engine's process, theirs, and the signals that end them all.

It answers no request itself. A first stop signal drains every worker, then the engine ends; a
second one ends what runs. Whatever way it ends, no process and no file of it stays.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any

from engine.serving.client import EngineInfo
from engine.serving.config import EngineConfig
from engine.serving.host import EngineHost, listen_for_doors
from gateway.cli.output import note
from gateway.settings import Settings
from gateway.workers.accepting import make_table
from gateway.workers.place import engine_socket, load_file, meeting_folder
from gateway.workers.pool import WorkerPool

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkersRun:
    """One run of a gateway with several workers; made inside an event loop."""

    def __init__(
        self,
        settings: Settings,
        config: EngineConfig,
        admin_token: str,
        bound: socket,
        on_progress: Callable[[str, float], None],
    ) -> None:
        self._settings = settings
        self._config = config
        self._admin_token = admin_token
        self._bound = bound
        self._on_progress = on_progress
        self.host: EngineHost | None = None
        self.pool: WorkerPool | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, *, on_started: Callable[[EngineInfo | None], None]) -> None:
        """Serve until a stop signal; `on_started` hears when all workers can answer.

        Raises EngineError or WorkerError where the first engine or a first worker cannot be
        started, and OSError where no socket can be made.
        """
        with (
            meeting_folder(self._settings.data_dir) as folder,
            listen_for_doors(engine_socket(folder)) as listener,
            self._signals(),
        ):
            make_table(load_file(folder), self._settings.workers)
            host = self.host = EngineHost(self._config, listener, on_progress=self._on_progress)
            pool = self.pool = WorkerPool(
                self._settings, self._admin_token, folder, self._bound, say=note
            )
            try:
                await self._serve(host, pool, on_started)
            finally:
                await pool.drain(self._hurry)
                await host.close()

    async def _serve(
        self, host: EngineHost, pool: WorkerPool, on_started: Callable[[EngineInfo | None], None]
    ) -> None:
        pool.start()
        loading = asyncio.create_task(host.start())
        stopping = asyncio.create_task(self._stopping.wait())
        started = asyncio.create_task(pool.started.wait())
        try:
            waits: set[asyncio.Future[Any]] = {loading, started}
            while waits:
                done, _ = await asyncio.wait(
                    {*waits, stopping, pool.failed}, return_when=asyncio.FIRST_COMPLETED
                )
                if stopping in done:
                    return
                for one in done:
                    one.result()  # raises what went wrong
                waits -= done
            on_started(host.info)
            ends: set[asyncio.Future[Any]] = {stopping, pool.failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                pool.failed.result()  # raises what went wrong
        finally:
            if not self._stopping.is_set():
                self._hurry.set()  # it failed: nobody is being answered
            for task in (loading, stopping, started):
                task.cancel()
            await asyncio.gather(loading, stopping, started, return_exceptions=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """The first time: drain. Again: end what runs."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
