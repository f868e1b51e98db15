"""What a connection takes before anybody has shown a key: headers, trailers, time, and no reading.

All of it is sent byte by byte over a socket, since a good client would never send it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from door_kit import CHAT, DEADLINE_S, Door, chat_body, eventually, open_door

import gateway.server as server_module
from tenants.keys import generate_key


@asynccontextmanager
async def connected(
    door: Door, num_received: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection; `num_received` makes the buffers on our side small."""
    host, port = door.url.removeprefix("http://").split(":")
    limit = 2**16 if num_received is None else num_received
    reader, writer = await asyncio.open_connection(host, int(port), limit=limit)
    if num_received is not None:
        writer.get_extra_info("socket").setsockopt(1, 8, num_received)  # SOL_SOCKET, SO_RCVBUF
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(door: Door, *segments: bytes) -> bytes:
    """Send these, and return everything up to the end of the connection."""
    received = b""
    async with asyncio.timeout(DEADLINE_S), connected(door) as (reader, writer):

        async def send() -> None:
            for segment in segments:
                writer.write(segment)
                await writer.drain()
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(send())
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                received += part
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return received


def chunked(body: bytes, *lines: str, trailers: bytes = b"") -> bytes:
    """A chat in one chunk, and its trailers."""
    head = [f"POST {CHAT} HTTP/1.1", "host: x", "transfer-encoding: chunked", *lines, "", ""]
    return "\r\n".join(head).encode() + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)


def one_error(answer: bytes) -> dict[str, str | None]:
    """Return the error of an answer that is nothing else, and has every error's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert "content-type: application/json" in lines
    assert "connection: close" in lines
    assert any(line.startswith("x-request-id: ") for line in lines), lines
    error: dict[str, str | None] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


CLOSE = "connection: close"
BODY = json.dumps(chat_body(max_tokens=2)).encode()


async def test_a_trailer_is_no_header(tmp_path: Path) -> None:
    """A key that comes behind the body, in the same segment, opens nothing."""
    async with open_door(tmp_path) as door:
        key = f"authorization: Bearer {door.keys['premium']}\r\n".encode()
        answer = await exchange(door, chunked(BODY, CLOSE, trailers=key))
        assert answer.startswith(b"HTTP/1.1 401 ")
        good = f"authorization: Bearer {door.keys['premium']}"
        answer = await exchange(door, chunked(BODY, CLOSE, good, trailers=b"x-sum: 1\r\n"))
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_trailers_are_bounded_in_size(tmp_path: Path) -> None:
    """Trailers that go on and on end the connection, as many fields and as one."""
    async with open_door(tmp_path) as door:
        start = chunked(BODY)[: -len(b"\r\n")]
        for endless in (b"x-more: " + b"a" * 1000 + b"\r\n", b"x" * 1000):
            async with asyncio.timeout(DEADLINE_S), connected(door) as (reader, writer):
                writer.write(start)
                with contextlib.suppress(ConnectionError):
                    for _ in range(2000):
                        writer.write(endless)
                        await writer.drain()
                        await asyncio.sleep(0)
                    await reader.read()
                await eventually(lambda: not door.server.server_state.connections, "it is closed")


async def test_what_drips_behind_an_answer_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has been answered may not hold the connection with the rest of its request."""
    monkeypatch.setattr(server_module, "REST_TIMEOUT_S", 0.3)
    async with open_door(tmp_path) as door:
        for start in (
            b"GET /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
        ):
            drops = [b"x-a: 1\r\n"] * 500 if b"chunked" in start else [b"a"] * 500
            assert (await exchange(door, start, *drops)).startswith(b"HTTP/1.1 200 ")
            assert not door.server.server_state.connections


async def test_what_is_no_request_behind_an_answer_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty lines are no request, and do not keep a connection."""
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.3)
    async with open_door(tmp_path) as door:
        start = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
        assert (await exchange(door, start, *[b"\r\n"] * 500)).startswith(b"HTTP/1.1 200 ")
        assert not door.server.server_state.connections


@pytest.mark.parametrize("in_one", [True, False], ids=["one segment", "many"])
async def test_headers_that_are_too_long_are_refused(tmp_path: Path, in_one: bool) -> None:
    """70,000 bytes of headers are refused in the shape of every error, however they come."""
    async with open_door(tmp_path) as door:
        lines = [b"x-%d: %b\r\n" % (number, b"a" * 980) for number in range(71)]
        start = b"GET /livez HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\n"
        segments = [b"".join([start, *lines, b"\r\n"])] if in_one else [start, *lines, b"\r\n"]
        answer = await exchange(door, *segments)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert "too long" in str(one_error(answer)["message"])
        assert b"x-request-id: mine\r\n" in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"what is this\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        chunked(BODY).replace(b"\r\n0\r\n", b"\r\nzz\r\n"),
    ],
    ids=["no line", "no field", "no chunk"],
)
async def test_what_is_no_http_gets_one_error(tmp_path: Path, sent: bytes) -> None:
    """Also what no route ever sees is told in the one shape, with an id."""
    async with open_door(tmp_path) as door:
        answer = await exchange(door, sent)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert one_error(answer)["code"] == "invalid_value"


async def test_a_pipelined_request_is_no_header_of_the_one_before(tmp_path: Path) -> None:
    """A long body and the beginning of the next request, in one segment, lose neither answer."""
    async with open_door(tmp_path) as door:
        long = BODY + b" " * 100_000
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.keys['premium']}\r\n"
        )
        first = f"{head}content-length: {len(long)}\r\n\r\n".encode() + long
        second = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = await exchange(door, first + second[:10], second[10:])
        assert answer.count(b"HTTP/1.1 200 ") == 2


async def test_an_answer_that_is_owed_comes_before_the_end(tmp_path: Path) -> None:
    """Nonsense behind a good request ends the connection, but not the answer."""
    async with open_door(tmp_path) as door:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.keys['premium']}\r\n"
        )
        good = f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY
        answer = await exchange(door, good + b"what is this\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 2


async def test_a_plain_answer_that_nobody_reads_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bytes of an answer may not wait for ever for a reader that takes nothing."""
    monkeypatch.setattr(server_module, "READER_TIMEOUT_S", 0.3)
    options = {"step_s": 0, "num_blocks": 4096}
    async with open_door(tmp_path, options=options, engine={"max_model_len": 60_000}) as door:
        body = json.dumps(
            chat_body(ignore_eos=True, max_tokens=5_000, logprobs=True, top_logprobs=20)
        )
        async with connected(door, num_received=4096) as (_, writer):
            writer.write(
                f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.keys['free']}\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            await eventually(lambda: len(door.services.live) == 1, "the answer is under way")
            await eventually(lambda: len(door.services.live) == 0, "the answer was written")
            await eventually(lambda: not door.server.server_state.connections, "it was dropped")
        (row,) = await door.usage()
        assert row.output_tokens == 5_000


@pytest.mark.parametrize("kind", ["tgk_live_", "tga_"])
async def test_a_request_id_that_is_a_key_is_not_told_again(tmp_path: Path, kind: str) -> None:
    """Ids are echoed and logged: one that holds a key is replaced by one of ours."""
    async with open_door(tmp_path) as door:
        secret = generate_key("live").removeprefix("tgk_live_")
        for sent in (kind + secret, f"trace-{kind}{secret}", (kind + secret).upper()):
            answer = await door.http.get("/livez", headers={"x-request-id": sent})
            assert answer.headers["x-request-id"].startswith("req_")
        answer = await door.http.get("/livez", headers={"x-request-id": "trace-1"})
        assert answer.headers["x-request-id"] == "trace-1"
