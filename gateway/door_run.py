"""Serves one gateway on a listening socket until it is told to stop, then drains it.

Whoever tells it (signals of a process that is alone, the parent of a worker) and what is to be said
when it is ready, it does not know.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from socket import socket

from fastapi import FastAPI

from gateway.server import Accept, Server, server_config
from gateway.services import Services


class DoorRun:
    """One run; made inside an event loop. `on_signal` hears of every stop signal.

    `accept` takes the connections where the socket is shared with others.
    """

    def __init__(
        self, app: FastAPI, on_signal: Callable[[], None], accept: Accept | None = None
    ) -> None:
        self.services: Services = app.state.services
        self._hurry = asyncio.Event()
        self._stopping = asyncio.Event()
        self._server = Server(server_config(app), lambda _count: on_signal(), accept)
        self._server.loop = asyncio.get_running_loop()

    @property
    def is_stopping(self) -> bool:
        """True once it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """The first time: drain. Again: end what runs."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(
        self,
        bound: socket,
        *,
        on_started: Callable[[], None],
        on_drain: Callable[[int], None],
        on_cut: Callable[[int], None],
    ) -> None:
        """Serve until `stop`, or until the server ends by itself.

        `on_started`: the first request could be answered. `on_drain` and `on_cut` hear how many
        answers are running, and were ended before they were done, if any.
        """
        serving = asyncio.create_task(self._server.serve(sockets=[bound]))
        stopping = asyncio.create_task(self._stopping.wait())
        started = asyncio.create_task(self.services.host.started.wait())
        try:
            await asyncio.wait((serving, stopping, started), return_when=asyncio.FIRST_COMPLETED)
            if started.done() and not self._stopping.is_set():
                settle_memory()
                on_started()
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            await self._drain(on_drain, on_cut)
        finally:
            self._server.should_exit = True
            for task in (stopping, started):
                task.cancel()
            await asyncio.gather(stopping, started, return_exceptions=True)
            await serving

    async def _drain(self, on_drain: Callable[[int], None], on_cut: Callable[[int], None]) -> None:
        """Refuse what is new, let what runs finish, end the rest with an error."""
        services = self.services
        services.admission.draining = True
        if len(services.live):
            on_drain(len(services.live))
        cut = await services.live.drain(services.settings.drain_timeout_s, self._hurry)
        if cut:
            on_cut(cut)


def settle_memory() -> None:
    """Take what start-up has made out of the garbage collector's rounds.

    It stays for the life of the process, and looking through it would stop all streams for tens
    of milliseconds each time.
    """
    gc.collect()
    gc.freeze()
