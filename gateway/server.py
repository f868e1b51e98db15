"""The HTTP server around the application: uvicorn, with what a door of our own needs on top.

A connection stamps the first byte of each request, gives a request the means to drop its
connection, bounds headers and trailers in time and size (a trailer never becomes a header), drops a
reader that takes nothing, and keeps the kernel from piling up unsent text for it. A stop signal
asks for a drain; a second one ends everything at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from engine.core.clock import MonotonicClock
from gateway.edge import REQUEST_ID, request_id_of
from gateway.errors import ApiError, Problem
from gateway.live import STALL_S
from gateway.streaming import EXTENSION

HEADER_TIMEOUT_S = 20.0
MAX_HEAD_BYTES = 64 * 1024  # of one request, its line, headers and trailers together
FIELD_BYTES = 4  # a colon, a space and the end of the line
TOO_LONG = "The headers of this request are too long."
REST_TIMEOUT_S = 30.0  # of a request that is answered already, what has not come of it
READER_TIMEOUT_S = STALL_S
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
        self._rest_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._in_head = False  # a request's headers are coming in
        self._in_body = False  # its body is, or trailers
        self._num_head_bytes = 0  # of this request, trailers included
        self._num_unheard = 0  # bytes in a row of which the parser has made nothing yet
        self._is_too_long = False
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
        self._rest_is_here()
        self._reader_reads()
        super().connection_lost(exc)
        self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Take what has come; one header that goes on and on ends the connection."""
        self._num_unheard += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_unheard > MAX_HEAD_BYTES:
            self._is_too_long = True
            self.send_400_response(TOO_LONG)
        elif self._header_timer is None and not self._in_body and self._is_free:
            # Behind an answer came something that is no request yet: it has as long as headers.
            self._expect_headers()

    @property
    def _is_free(self) -> bool:
        """True while no answer is owed."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._in_head, self._in_body = True, False
        self._num_unheard = 0
        self._expect_headers()
        if not self.flow.write_paused:
            self._reader_reads()
        self.scope["extensions"] = {
            EXTENSION: {"arrival_ns": self._clock.now_ns(), "abort": self.transport.abort}
        }

    def on_url(self, url: bytes) -> None:
        """A part of the request's line has come."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field has come: a header, or a trailer, which is counted and means nothing."""
        self._count(len(name) + len(value) + FIELD_BYTES)
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """All headers have come."""
        self._headers_are_here()
        self._num_unheard = 0
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        self._num_unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request has come."""
        self._num_unheard = 0
        self._in_body = False
        self._rest_is_here()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is written; what is left of its request, and its reader, may not take forever.

        As long as an answer is owed, whoever reads the body for it watches the time.
        """
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._expect_reading()
        if self._in_body and self._is_free and not self.transport.is_closing():
            self._rest_is_here()
            self._rest_timer = self.loop.call_later(REST_TIMEOUT_S, self.transport.abort)

    def pause_writing(self) -> None:
        """The reader is behind."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._reader_reads()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too long; answers that are owed for earlier requests go first.

        Where the refused request's own answer has begun there is nothing left to say.
        """
        if self._in_body:
            is_first = not self.pipeline and not self.cycle.response_started
        else:
            is_first = self._is_free
        if is_first:
            headers = Headers(raw=self.headers if self._in_head or self._in_body else [])
            text = TOO_LONG if self._is_too_long else msg
            self.transport.write(refusal(text, request_id_of(headers)))
        if is_first or self._is_free:
            self.transport.close()
        else:
            self.cycle.keep_alive = False  # the parser takes no more: the connection ends with it

    def _count(self, num_bytes: int) -> None:
        """Count what has come of headers; raises ValueError, which ends the parsing."""
        self._num_unheard = 0
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._is_too_long = True
            raise ValueError(TOO_LONG)

    def _expect_headers(self) -> None:
        self._headers_are_here()
        self._num_head_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _headers_are_here(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _rest_is_here(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _expect_reading(self) -> None:
        """Drop the connection unless some of what waits to be sent is taken in time."""
        self._reader_reads()
        unsent = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(READER_TIMEOUT_S, self._check_reading, unsent)

    def _check_reading(self, unsent: int) -> None:
        self._reader_timer = None
        left = self.transport.get_write_buffer_size()
        if left >= unsent:
            self.transport.abort()
        elif left:
            self._expect_reading()

    def _reader_reads(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None


def refusal(message: str, request_id: str) -> bytes:
    """Return the whole answer to what never became a request, in the shape of every error."""
    error = ApiError(Problem.BAD_REQUEST, message)
    response = error.response()
    response.headers[REQUEST_ID] = request_id
    response.headers["connection"] = "close"
    head = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


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
