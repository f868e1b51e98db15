"""One request and its answer over one connection, and a pool of connections; it judges nothing.

A lean asyncio protocol instead of a client library, for the stamp of a token must be taken as soon
as its bytes are read, and hundreds of streams share one thread. Connections are kept and used
again; one that has idled for long is not, for its server may be about to close it.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import orjson

from engine.core.clock import NS_PER_S, Clock
from gateway.replay.answer_watch import AnswerWatch, error_words
from gateway.replay.event_lines import EventLines
from gateway.replay.http_reader import HttpFault, ResponseReader

CONNECT_TIMEOUT_S = 10.0
CLOSING_TURNS = 3  # of the event loop, until an aborted connection is gone
IDLE_S = 2.0  # servers keep idle connections for 2 seconds (gunicorn) and more
MOST_ERROR_BYTES = 64 * 1024
EVENT_STREAM = "text/event-stream"


class AddressError(ValueError):
    """The URL names no server that can be reached; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is. `path` is what stands before `/v1`, without a slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """The server as a URL; it holds no secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        """The value of the header `host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"


def parse_address(url: str) -> Address:
    """Return the address of `http://HOST:PORT`, with or without `/v1`; raises AddressError."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise AddressError("--url: not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AddressError("--url: must look like http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise AddressError("--url: holds a user name or password; keys belong into --keys")
    if parts.query or parts.fragment:
        raise AddressError("--url: must have neither ? nor #")
    if not parts.hostname.isascii() or not all(c.isprintable() and c != " " for c in url.strip()):
        raise AddressError("--url: must be plain ASCII without spaces")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(
        parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path
    )


def request_bytes(address: Address, method: str, path: str, key: str | None, body: bytes) -> bytes:
    """Return a whole HTTP/1.1 request."""
    lines = [
        f"{method} {address.path}{path} HTTP/1.1",
        f"host: {address.host_header}",
        "user-agent: tiergate-replay",
        "accept: text/event-stream, application/json",
        "accept-encoding: identity",
    ]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Exchange:
    """What has come back for one request so far. `watch` follows the answer where it streams."""

    __slots__ = ("_body", "_events", "_reader", "done", "fault", "sent_ns", "watch")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.fault = ""
        self.sent_ns: int | None = None
        self.watch = AnswerWatch()
        self._reader = ResponseReader()
        self._events: EventLines | None = None
        self._body = bytearray()

    @property
    def status(self) -> int:
        """The HTTP status, 0 before there is one."""
        return self._reader.status

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer, names in lower case."""
        return self._reader.headers

    @property
    def streams(self) -> bool:
        """True where the answer comes as events."""
        return self._events is not None

    @property
    def _is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith(EVENT_STREAM)

    @property
    def keeps_alive(self) -> bool:
        """True where the connection may be used again."""
        return self._reader.is_done and self._reader.keeps_alive and not self.fault

    @property
    def body(self) -> object:
        """The JSON of an answer that does not stream, None where it is none."""
        try:
            return orjson.loads(self._body)
        except orjson.JSONDecodeError:
            return None

    @property
    def words(self) -> str:
        """What the server said of an error, in one short line."""
        return error_words(self.body)

    def take(self, data: bytes, now_ns: int) -> None:
        """Bytes came from the server."""
        had_head = self._reader.status
        pieces = self._reader.feed(data)
        if not had_head and self._reader.status == 200 and self._is_event_stream:
            self._events = EventLines()
        for piece in pieces:
            if self._events is None:
                if len(self._body) + len(piece) <= MOST_ERROR_BYTES:
                    self._body += piece
                continue
            for event in self._events.feed(piece):
                self.watch.take(event, now_ns)
        if self._reader.is_done:
            self.finish()

    def end(self, error: Exception | None) -> None:
        """The connection is gone."""
        try:
            self._reader.end()
        except HttpFault as fault:
            self.fault = self.fault or str(fault)
        self.finish()

    def finish(self) -> None:
        """Let the one who waits go on."""
        if not self.done.done():
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    """One connection to the server, for one exchange at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self.idle_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such parent

    def data_received(self, data: bytes) -> None:
        """Stamp what came, then look at it."""
        now_ns = self._clock.now_ns()
        exchange = self._exchange
        if exchange is None:
            self.close()  # nobody asked
            return
        try:
            exchange.take(data, now_ns)
        except ValueError as fault:
            exchange.fault = str(fault)
            exchange.finish()
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by whomever."""
        self._transport = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(error)

    @property
    def is_open(self) -> bool:
        """True while bytes can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Send a request; `exchange` follows the answer."""
        assert self._exchange is None, "one exchange at a time"
        self._exchange = exchange
        if self._transport is None:
            exchange.end(None)
            return
        exchange.sent_ns = self._clock.now_ns()
        self._transport.write(request)

    def release(self) -> None:
        """The exchange is over and the connection is free again."""
        self._exchange = None
        self.idle_since_ns = self._clock.now_ns()

    def close(self) -> None:
        """Close at once; what is not sent is dropped."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """Opens connections to one server and keeps those that may be used again."""

    def __init__(self, address: Address, clock: Clock) -> None:
        self.address = address
        self._clock = clock
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if address.scheme == "https" else None

    async def take(self) -> Connection:
        """Return a connection that is open; raises OSError, TimeoutError among them."""
        now_ns = self._clock.now_ns()
        while self._idle:
            connection = self._idle.pop()  # the one used last is the least stale
            if connection.is_open and now_ns - connection.idle_since_ns < IDLE_S * NS_PER_S:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, made = await loop.create_connection(
                lambda: Connection(self._clock),
                self.address.host,
                self.address.port,
                ssl=self._tls,
                server_hostname=self.address.host if self._tls is not None else None,
            )
        return made

    def give_back(self, connection: Connection, exchange: Exchange) -> None:
        """Keep a connection whose exchange is over, or close it."""
        if exchange.keeps_alive and connection.is_open:
            connection.release()
            self._idle.append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        """Close every connection that is not in use."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)
