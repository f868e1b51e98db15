"""One tenant can neither read, end, time nor starve another; nothing that is sent breaks the door.

Timing is shown by counts (prompt tokens found in the cache), never by a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, sse, text_body

from engine.core.clock import utc_now
from gateway import server as server_module

SECRET = "the first tenant's secret, long enough to fill several blocks of sixteen tokens " * 3


async def second_key(door: Door, tier: str = "premium", name: str = "neighbour") -> str:
    """Make one more tenant of a tier, in the same organisation; return its key."""
    tenant = await door.ledger.repository.create_tenant(name, tier, utc_now())
    return (await door.ledger.repository.create_key(tenant.id, utc_now())).plaintext


async def ask_as(door: Door, key: str, body: Any, path: str = CHAT, **headers: str) -> Any:
    auth = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return await door.http.post(path, content=json.dumps(body), headers=auth | headers)


async def test_a_neighbour_cannot_tell_what_was_asked_by_the_prefix_cache(door: Door) -> None:
    """The second time a prompt is found in the cache; another tenant of the tier finds nothing."""
    neighbour = await second_key(door)
    body = text_body(SECRET, max_tokens=1)
    own = [await door.post(TEXT, body) for _ in range(2)]
    theirs = await ask_as(door, neighbour, body, TEXT)
    again = await ask_as(door, neighbour, body, TEXT)
    cached = [
        a.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (*own, theirs, again)
    ]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 100
    rows = await door.usage(4)
    assert Counter(row.cached_tokens for row in rows) == {0: 2, cached[1]: 2}


async def test_a_neighbour_cannot_end_an_answer(tmp_path: Path) -> None:
    """Not with its request id, not by hanging up, not by losing its key."""
    async with open_door(tmp_path, options={"step_s": 0.01}) as door:
        neighbour = await second_key(door)
        body = chat_body(max_tokens=60, temperature=1, stream=True)
        same_id = {"x-request-id": "the-same"}
        answer = asyncio.create_task(door.post(CHAT, body, **same_id))
        await eventually(lambda: len(door.services.live) == 1, "it runs")
        theirs = asyncio.create_task(ask_as(door, neighbour, body, **same_id))
        await eventually(lambda: len(door.services.live) == 2, "both run")
        theirs.cancel()
        await eventually(lambda: len(door.services.live) == 1, "the neighbour has left")
        cut = asyncio.create_task(ask_as(door, neighbour, body, **same_id))
        await eventually(lambda: len(door.services.live) == 2, "and is back")
        (issued,) = await door.ledger.repository.list_keys("neighbour")
        await door.ledger.repository.revoke_key(issued.id, utc_now())
        assert sse((await cut).text)[-1]["error"]["code"] == "invalid_api_key"
        events = sse((await answer).text)
        assert events[-1] == "[DONE]"
        assert sum(bool(e["choices"][0]["delta"].get("content")) for e in events[:-1]) == 60


async def test_a_neighbour_cannot_read_what_was_asked(door: Door) -> None:
    """A tenant's key opens no operator's route; an id of somebody else's is nobody's."""
    neighbour = await second_key(door)
    made = await door.post(CHAT, chat_body(SECRET[:60], max_tokens=3), **{"x-request-id": "mine"})
    paths = [f"/admin/api/requests/{made.json()['id']}", "/admin/api/requests/mine"]
    paths += ["/admin/api/requests", "/admin/api/engine", "/admin/api/admission"]
    paths += ["/admin", f"/admin/requests/{made.json()['id']}", f"{CHAT}/{made.json()['id']}"]
    auth = {"authorization": f"Bearer {neighbour}"}
    answers = [await door.http.get(path, headers=auth) for path in paths]
    assert {a.status_code for a in answers} <= {401, 404, 303}, "303: to the login"
    seen = "".join(a.text for a in answers) + (await door.http.get("/metrics")).text
    assert made.json()["id"] not in seen
    assert "secret" not in seen
    assert "premium-tenant" not in seen


async def test_a_flood_leaves_room_for_the_neighbour(tmp_path: Path) -> None:
    """Who sends all it can is held to its share; a neighbour of the tier gets in, and is served."""
    settings = {"max_queue": 60, "tenant_queue_factor": 2.0}
    async with open_door(tmp_path, settings=settings) as door:
        neighbour = await second_key(door)
        door.close_gate()
        flood = [asyncio.create_task(door.post(CHAT, chat_body(max_tokens=2))) for _ in range(100)]
        await eventually(lambda: sum(t.done() for t in flood) == 60, "the rest is refused")
        assert door.services.admission.waiting == 40, "two thirds: twice what is free"
        theirs = [
            asyncio.create_task(ask_as(door, neighbour, chat_body(max_tokens=2))) for _ in range(10)
        ]
        await eventually(lambda: door.services.admission.waiting == 50, "the neighbour is in")
        door.open_gate()
        assert Counter(a.status_code for a in await asyncio.gather(*theirs)) == {200: 10}
        answers = await asyncio.gather(*flood)
        assert Counter(a.status_code for a in answers) == {200: 40, 503: 60}
        refused = next(a for a in answers if a.status_code == 503)
        assert refused.headers["x-tiergate-reason"] == "saturated"
        assert "Your share" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1


async def test_a_flood_without_end_starves_nobody(tmp_path: Path) -> None:
    """While one tenant keeps its share of the queue full, each request of another is served."""
    settings = {"max_queue": 60, "tenant_queue_factor": 2.0}
    engine = {"max_batch_requests": 4}
    options = {"step_s": 0.002}
    async with open_door(tmp_path, settings=settings, engine=engine, options=options) as door:
        neighbour = await second_key(door)
        counts = Counter[int]()
        is_over = asyncio.Event()

        async def flood() -> None:
            while not is_over.is_set():
                answer = await door.post(CHAT, chat_body(max_tokens=20, temperature=1))
                counts[answer.status_code] += 1
                await asyncio.sleep(0.01)

        floods = [asyncio.create_task(flood()) for _ in range(80)]
        await eventually(lambda: counts[503] > 0, "the flood is at its bound")
        theirs = [await ask_as(door, neighbour, chat_body(max_tokens=5)) for _ in range(5)]
        is_over.set()
        await asyncio.gather(*floods)
        assert [a.status_code for a in theirs] == [200] * 5
        assert counts[503] > 20
        await door.idle()


BOMBS = {
    "a number of many digits": b'{"model": "talker", "max_tokens": ' + b"9" * 200_000 + b"}",
    "a number beyond all floats": b'{"model": "talker", "temperature": 1e999999}',
    "one key many times": b"{" + b'"model": "a", ' * 100_000 + b'"model": "talker"}',
    "many keys": b"{" + b",".join(b'"k%d": 1' % n for n in range(100_000)) + b"}",
    "deep lists": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "many messages": json.dumps(
        {"model": "talker", "messages": [{"role": "user", "content": "x"}] * 5000}
    ).encode(),
    "compressed": gzip.compress(b'{"model": "' + b"a" * 50_000_000 + b'"}'),
    "a string without end": b'{"model": "' + b"a" * 1_000_000,
    "zero bytes": bytes(100_000),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_one_clear_refusal(door: Door, name: str) -> None:
    """Within the size that is allowed nothing takes the door down: a 400, and then it serves."""
    answer = await door.post(CHAT, BOMBS[name], **{"content-encoding": "gzip"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.content) < 1000
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200


async def raw(door: Door, request: bytes) -> bytes:
    """Send bytes on a connection of their own; return all that comes until the server closes it."""
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head_of(door: Door, *lines: str) -> bytes:
    head = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {door.keys['free']}"]
    return "\r\n".join([*head, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: -1",),
        ("content-length: 99999999999999999999",),
        ("transfer-encoding: xchunked",),
        ("x-evil: a\x00b",),
        ("x-evil : a",),
        (" folded: a",),
    ],
)
async def test_a_request_that_two_parsers_could_read_differently_is_refused(
    door: Door, lines: tuple[str, ...]
) -> None:
    """No request can be smuggled past the door: the connection gets one refusal, and is closed."""
    smuggled = f"GET /smuggled HTTP/1.1\r\nhost: x\r\n{'connection: close'}\r\n\r\n".encode()
    answer = await raw(door, head_of(door, *lines) + b"0\r\n\r\n" + smuggled)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"not_found" not in answer


async def test_headers_are_bounded_in_size(door: Door) -> None:
    """Headers that go on and on are cut off, long before they are a burden."""
    endless = b"x-more: " + b"a" * 1000 + b"\r\n"
    sent = head_of(door)[:-2] + endless * 2000
    answer = await raw(door, sent)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200


async def test_headers_that_trickle_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that never ends its headers loses its connection, whatever it keeps sending."""
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.3)
    async with open_door(tmp_path) as door:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        async def trickle() -> None:
            writer.write(head_of(door)[:-2])
            for number in range(1000):
                writer.write(f"x-{number}: a\r\n".encode())
                await writer.drain()
                await asyncio.sleep(0.02)

        sending = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                assert await reader.read() == b""
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def test_a_body_that_trickles_is_given_up(tmp_path: Path) -> None:
    """The time for a body is for all of it: a byte now and then does not prolong it."""
    async with open_door(tmp_path, settings={"body_timeout_s": 0.3}) as door:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        async def trickle() -> None:
            writer.write(head_of(door, "content-length: 100000"))
            for _ in range(1000):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)

        sending = asyncio.create_task(trickle())
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 408 ")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
