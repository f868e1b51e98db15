"""An EngineClient whose engine belongs to another process and serves several doors over one socket.

It connects, waits for the engine's Ready, and when the connection ends it fails what is open and
connects again; it neither starts an engine nor ends one.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

from engine.core.clock import Clock
from engine.core.errors import EngineUnavailable
from engine.serving.messages import (
    ChannelClosed,
    Command,
    Explained,
    Output,
    Ready,
    StepOutput,
    command_codec,
    output_codec,
)
from engine.serving.remote import CLOSED, RemoteEngine

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
MAX_OPEN_REQUESTS = 8192
MAX_INBOX_BYTES = 64 * 1024 * 1024


class Connection(asyncio.Protocol):
    """One connection to an engine, from its making to its end; see `EngineLink`."""

    def __init__(self, owner: EngineLink) -> None:
        self.closed = asyncio.Event()
        self.answers = False  # its Ready has come
        self._owner = owner
        self._commands = command_codec()
        self._outputs = output_codec()
        self._channel: asyncio.WriteTransport | None = None

    @property
    def backlog_bytes(self) -> int:
        """Bytes of commands that the engine has not taken yet, as far as they are queued here."""
        return 0 if self._channel is None else self._channel.get_write_buffer_size()

    def send(self, command: Command) -> None:
        """Queue one command; never waits. Raises EngineUnavailable after the end."""
        if self._channel is None or self._channel.is_closing():
            raise EngineUnavailable("the engine is gone")
        self._channel.write(self._commands.encode(command))

    def end(self) -> None:
        """End it at once; `connection_lost` is called in the loop's next round."""
        if self._channel is not None:
            self._channel.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands (called by asyncio)."""
        # uvloop's transports are no subclasses of asyncio's, so nothing can be asserted here.
        self._channel = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come (called by asyncio)."""
        try:
            outputs = self._outputs.feed(data)
        except ChannelClosed as error:
            logger.error("the engine cannot be understood: %s", error)
            self.end()
            return
        for output in outputs:
            self._owner.on_output(self, output)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended (called by asyncio)."""
        was_ready, self.answers = self.answers, False
        self.closed.set()
        if was_ready:
            self._owner.on_down()


class EngineLink(RemoteEngine):
    """An EngineClient at the other end of the socket at `path`; made inside an event loop."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        max_open_requests: int = MAX_OPEN_REQUESTS,
        max_inbox_bytes: int = MAX_INBOX_BYTES,
    ) -> None:
        super().__init__(
            max_open_requests=max_open_requests, max_inbox_bytes=max_inbox_bytes, clock=clock
        )
        self._path = path
        self._connection: Connection | None = None
        self._first_ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """See EngineClient."""
        return self._connection is not None and self._connection.answers and not self._closing

    @property
    def _backlog_bytes(self) -> int:
        return 0 if self._connection is None else self._connection.backlog_bytes

    def _send(self, command: Command) -> None:
        if self._connection is None or not self.ready:
            raise EngineUnavailable("the engine is starting or restarting")
        self._connection.send(command)

    async def start(self) -> None:
        """See EngineClient; it waits for an engine for as long as it takes."""
        assert self._task is None, "started twice"
        self._first_ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._stay_connected(), name="engine-link")
        try:
            await self._first_ready
        finally:
            if self._first_ready.cancelled() or self._first_ready.exception() is not None:
                await self.close()

    async def close(self) -> None:
        """Leave the engine, which ends what is open; the engine itself goes on."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(EngineUnavailable("closed before an engine was ready"))
        self._streams.fail_all(CLOSED, self._clock.now_ns())
        self._questions.fail_all(CLOSED)
        await asyncio.sleep(0)  # the finish listeners have run when this returns

    async def _stay_connected(self) -> None:
        """Connect again and again until cancelled; the only task of this class."""
        pause_s = FIRST_PAUSE_S
        while True:
            if await self._connect():
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connect(self) -> bool:
        """Stay connected until the connection ends; False where nobody listens."""
        connection = self._connection = Connection(self)
        try:
            await asyncio.get_running_loop().create_unix_connection(
                lambda: connection, str(self._path)
            )
        except OSError:
            return False
        try:
            await connection.closed.wait()
        finally:
            connection.end()
            await connection.closed.wait()
        return True

    def on_output(self, connection: Connection, output: Output) -> None:
        """Take one message of the engine."""
        match output:
            case StepOutput():
                self.on_step(output)
            case Explained():
                self.on_explained(output)
            case Ready():
                self.on_ready(output)
                connection.answers = True
                if self._first_ready is not None and not self._first_ready.done():
                    self._first_ready.set_result(None)
            case _:
                pass  # of loading, and of what failed, the parent is told
