"""An OpenAI-compatible server that does all that a load generator must survive, on its own thread.

What it does to a request is said by the request's `max_tokens`, so that a trace scripts it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PLAIN, BUNCHED, REFUSED, TRUNCATED, ERROR = 6, 12, 7, 8, 9
SILENT, NO_STREAM, NO_USAGE, SHORT, DROPPED = 10, 11, 5, 20, 13
KEYS = {"key-premium": "premium", "key-free": "free"}


@dataclass(slots=True)
class Got:
    """One request as it came."""

    path: str
    key: str
    body: dict[str, Any]

    @property
    def is_trial(self) -> bool:
        return bool(self.body.get("max_tokens") == 4)


@dataclass(slots=True)
class Awkward:
    """The server's own books. `hold` is how many requests must be there before any is answered."""

    url: str = ""
    hold: int = 0
    takes_tokens: bool = True
    takes_extras: bool = True
    got: list[Got] = field(default_factory=list)
    now_open: int = 0
    most_open: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def played(self) -> list[Got]:
        """Requests of the run itself."""
        return [one for one in self.got if one.body and not one.is_trial]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left, as it may, or the test is over
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = dict(line.split(": ", 1) for line in head[1:-2])
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        key = headers.get("authorization", "").removeprefix("Bearer ")
        got = Got(path, key, json.loads(raw) if raw else {})
        self.got.append(got)
        if key not in KEYS:
            # It says the key aloud, as careless servers do.
            plain(writer, 401, {"error": {"message": f"no such key: {key}"}})
        elif method == "GET":
            plain(writer, 200, {"data": [{"id": "awkward", "owned_by": "nobody"}]})
        else:
            self.now_open += 1
            self.most_open = max(self.most_open, self.now_open)
            try:
                return await self._answer(got, reader, writer)
            finally:
                self.now_open -= 1
        return True

    async def _answer(
        self, got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        body, count = got.body, int(got.body["max_tokens"])
        is_chat = got.path.endswith("/chat/completions")
        if isinstance(body.get("prompt"), list) and not self.takes_tokens:
            plain(writer, 400, {"error": {"message": "prompt must be a string", "code": "bad"}})
            return True
        if "min_tokens" in body and not self.takes_extras:
            plain(writer, 422, {"detail": "unknown field"})
            return True
        if not got.is_trial:
            if len(self.played) >= self.hold:
                self.gate.set()
            await self.gate.wait()
        if count == REFUSED:
            error = {"error": {"message": f"slow down, {got.key}", "code": "rate_limit_exceeded"}}
            plain(writer, 429, error)
            return True
        if count == NO_STREAM:
            plain(writer, 200, {"choices": [{"text": "all at once"}]})
            return True
        if count == SILENT:
            await reader.read()  # until the client gives up
            return False
        if count == DROPPED:
            return False
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"server: awkward/1\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        return await self._stream(writer, body, count, is_chat)

    async def _stream(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], count: int, is_chat: bool
    ) -> bool:
        def text_event(text: str, reason: str | None = None) -> dict[str, Any]:
            choice = {"delta": {"content": text}} if is_chat else {"text": text}
            return {"choices": [{"index": 0, **choice, "finish_reason": reason}]}

        num_texts, each = count, 1
        if count == BUNCHED:
            num_texts, each = count // 3, 3  # three tokens an event
        elif count == SHORT:
            num_texts = 2
        if is_chat:
            opening = {"role": "assistant", "content": ""}
            await event(writer, {"choices": [{"index": 0, "delta": opening}]})
        for place in range(num_texts):
            await event(writer, text_event("abc " * each))
            if count in (TRUNCATED, ERROR) and place == 2:
                if count == ERROR:
                    await event(writer, {"error": {"message": "engine died", "code": "engine"}})
                    writer.write(b"0\r\n\r\n")
                return count == ERROR
        await event(writer, text_event("", "stop" if count == SHORT else "length"))
        if count != NO_USAGE and body.get("stream_options"):
            prompt = body.get("prompt") or body["messages"][0]["content"]
            # Two tokens of its own, and three for every two words.
            words = len(prompt) if isinstance(prompt, list) else 2 + len(prompt.split()) * 3 // 2
            usage = {"prompt_tokens": words, "completion_tokens": num_texts * each}
            await event(writer, {"choices": [], "usage": usage})
        await event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        return True


def plain(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} So\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}"
    writer.write(f"{head}\r\n\r\n".encode() + raw)


async def event(writer: asyncio.StreamWriter, value: object) -> None:
    """Send an event cut in two pieces, with a comment before it."""
    text = value if isinstance(value, str) else json.dumps(value)
    raw = f": ping\r\ndata: {text}\r\n\r\n".encode()
    for part in (raw[:11], raw[11:]):
        writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        await writer.drain()


@contextmanager
def awkward_server(**settings: Any) -> Iterator[Awkward]:
    """Run the server on a free port for the length of a block."""
    ready, books = threading.Event(), Awkward(**settings)
    loop = asyncio.new_event_loop()

    async def main(stop: asyncio.Event) -> None:
        books.gate = asyncio.Event()
        server = await asyncio.start_server(books.serve, "127.0.0.1", 0)
        books.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        # Who is being accepted when a server closes is lost, with an open socket (Python 3.11).
        for listening in server.sockets:
            loop.remove_reader(listening.fileno())
        await asyncio.sleep(0.01)
        server.close()
        # None is cancelled: one that had not begun yet would leave its socket open.
        while len(asyncio.all_tasks()) > 1:
            books.gate.set()
            for writer in books.writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)

    stop = asyncio.Event()

    def run() -> None:
        loop.run_until_complete(main(stop))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        yield books
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
