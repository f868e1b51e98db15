"""The HTTP server around the application: uvicorn, with what a door of our own needs on top.

A connection stamps the first byte of each request, gives a request the means to drop its
connection, bounds headers in time and size, and keeps the kernel from piling up unsent text for a
reader that does not read. A stop signal asks for a drain; a second one ends everything at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.core.clock import MonotonicClock
from gateway.streaming import EXTENSION

HEADER_TIMEOUT_S = 20.0
MAX_HEAD_BYTES = 64 * 1024  # of one request, its line and headers together
IDLE_TIMEOUT_S = 65  # above the usual 60 s of a proxy, which must be the one to close
MAX_CONNECTIONS = 4096
UNSENT_BYTES = 64 * 1024
BACKLOG = 1024


Accept = Callable[[socket.socket, Callable[[], asyncio.Protocol]], Any]


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = MonotonicClock()
        self._header_timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self.on_lost: Callable[[], None] = _nothing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        limit_unsent(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._headers_are_here()
        super().connection_lost(exc)
        self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Take what has come; headers that go on and on end the connection."""
        super().data_received(data)
        if self._header_timer is not None:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers of this request are too long.")

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._expect_headers()
        self.scope["extensions"] = {
            EXTENSION: {"arrival_ns": self._clock.now_ns(), "abort": self.transport.abort}
        }

    def on_headers_complete(self) -> None:
        """All headers have come."""
        self._headers_are_here()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        self._headers_are_here()
        self._num_head_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _headers_are_here(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def _nothing() -> None:
    """Tell nobody."""


def limit_unsent(transport: asyncio.Transport) -> None:
    """Let the kernel hold little that is not sent yet: a slow reader must be felt here."""
    held = transport.get_extra_info("socket")
    if held is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


class Server(uvicorn.Server):
    """uvicorn's server, whose signals ask for a drain. `on_signal` hears how many there were.

    `accept` takes the connections of a socket that is shared with others; by default the event
    loop takes whatever comes.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_signal: Callable[[int], None],
        accept: Accept | None = None,
    ) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self._accept = accept
        self._num_signals = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        if self._accept is None or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        self.servers = [self._accept(bound, self._make_connection) for bound in sockets]

    def _make_connection(self) -> Connection:
        state = self.server_state
        return Connection(config=self.config, server_state=state, app_state=self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a stop signal; the event loop does the rest."""
        self._num_signals += 1
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._on_signal, self._num_signals)
        else:
            self.should_exit = True


def server_config(app: Any) -> uvicorn.Config:
    """Return how the application is served."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=3,
        backlog=BACKLOG,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a bound and listening socket; raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound
