"""A worker from the inside, started by its parent (child.py).

It serves the parent's listening socket with a gateway of its own: application, ledger connections,
limiter, a link to the engine that all share. What it may not do alone (load a model, make a
database, print a banner) the parent has done. It ends when it is told to, or when its parent ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket

import msgspec
import uvloop

from engine.core.errors import EngineError
from engine.serving.link import EngineLink
from gateway import logging as gateway_logging
from gateway.app import create_app
from gateway.cli.output import note
from gateway.door_run import DoorRun
from gateway.ledger import Ledger, open_ledger
from gateway.process import prepare_process
from gateway.services import Services
from gateway.settings import Settings
from gateway.workers.accepting import Acceptor, LoadTable
from gateway.workers.place import Place, engine_socket, load_file
from gateway.workers.words import (
    Cut,
    Drain,
    Draining,
    Failed,
    Hurry,
    Order,
    Ping,
    Pong,
    Started,
    ToParent,
    ToWorker,
    encode,
    restored,
)
from tenants.errors import DatabaseUnavailable, LedgerError

logger = logging.getLogger(__name__)

LEDGER_PAUSE_S = 0.5
EXIT_FAILED = 2
EXIT_ORPHANED = 71
# Without a parent: as long as the last rows need to reach the ledger, or the disk.
ORPHAN_S = 20.0
_STDIN = 0


class Worker:
    """One run of a worker."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._settings: Settings = restored(order.settings)
        self._bound = socket(fileno=order.http_fd)
        self._control = socket(fileno=order.control_fd)
        self._run: DoorRun | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._is_told = 0  # to stop, so many times

    async def run(self) -> int:
        """Serve until told to end; return the exit code."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._control)
        listening = asyncio.create_task(self._listen(reader), name="parent")
        try:
            await self._serve()
        except (LedgerError, EngineError) as error:
            self._say(Failed(str(error)))
            return EXIT_FAILED
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._writer.close()
        return 0

    async def _serve(self) -> None:
        settings, folder = self._settings, Path(self._order.folder)
        place = Place(self._order.index, settings.workers, folder)
        async with AsyncExitStack() as held:
            opened = await self._open_ledger()
            held.push_async_callback(opened.database.close)
            tiers = await opened.repository.list_tiers()
            app = create_app(
                settings,
                EngineLink(engine_socket(folder)),
                opened,
                tiers,
                admin_token=self._order.admin_token,
                place=place,
            )
            # Stop signals are the parent's to answer: it drains all workers at once.
            services: Services = app.state.services
            table = LoadTable(load_file(folder))

            def accept(bound: socket, make: Callable[[], asyncio.Protocol]) -> Acceptor:
                def is_ready() -> bool:
                    return services.host.is_ready and not services.admission.draining

                return Acceptor(bound, table, place.index, make=make, is_ready=is_ready)

            self._run = DoorRun(app, lambda: None, accept)
            for _ in range(self._is_told):
                self._run.stop()
            await self._run.run(
                self._bound,
                on_started=lambda: self._say(Started()),
                on_drain=lambda count: self._say(Draining(count)),
                on_cut=lambda count: self._say(Cut(count)),
            )

    async def _open_ledger(self) -> Ledger:
        while True:
            try:
                return await open_ledger(self._settings, note)
            except DatabaseUnavailable as error:
                if not self._order.is_patient or self._is_told:
                    raise
                logger.info("waiting for the ledger: %s", error)
                await asyncio.sleep(LEDGER_PAUSE_S)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Do what the parent says; without a parent there is nothing left to do."""
        decoder: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
        try:
            while line := await reader.readline():
                match decoder.decode(line):
                    case Drain():
                        self._stop()
                    case Hurry():
                        self._stop()
                        self._stop()
                    case Ping():
                        self._say(Pong())
        except (OSError, ValueError):  # msgspec's errors are ValueErrors
            logger.exception("the parent cannot be understood")
        for _ in range(2):
            self._stop()

    def _stop(self) -> None:
        self._is_told += 1
        if self._run is not None:
            self._run.stop()

    def _say(self, word: ToParent) -> None:
        assert self._writer is not None
        if not self._writer.is_closing():
            self._writer.write(encode(word))


def main() -> None:
    """Read the order from standard input and carry it out."""
    # Service managers signal a whole group; the parent says what is to be done.
    for group_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(group_signal, signal.SIG_IGN)
    # Unbuffered: a thread blocked inside a buffered reader would break the interpreter's exit.
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:
        order = msgspec.json.decode(stdin.readline(), type=Order)
    end_without_parent(_STDIN)
    gateway_logging.set_up(order.settings["log_level"])
    prepare_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(Worker(order).run())
    sys.exit(code)


def end_without_parent(lifeline: int) -> None:
    """End this process some time after the pipe `lifeline` has, whatever the event loop does."""

    def wait_for_the_end() -> None:
        while os.read(lifeline, 1):
            pass
        threading.Event().wait(ORPHAN_S)
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True).start()
