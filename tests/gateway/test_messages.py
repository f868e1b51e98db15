"""The Anthropic Messages API: what is asked, said and streamed, and how faults are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from door_kit import CHAT, Door, chat_body, eventually, open_door
from talking_executor import ALPHABET

from engine.core.clock import utc_now
from gateway.dialects.errors import anthropic_status, anthropic_type
from gateway.errors import Problem
from tenants.values import Limits

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


def body(text: Any = "Hi", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    base = {"model": "talker", "max_tokens": 64, "messages": messages, "temperature": 0}
    return base | fields


def named_events(text: str) -> list[tuple[str, Any]]:
    """Return a stream's events, each with its name, which its data repeats."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        head, _, data = block.partition("\n")
        assert head.startswith("event: ")
        value = json.loads(data.removeprefix("data: "))
        assert value["type"] == head.removeprefix("event: ")
        events.append((value["type"], value))
    return events


async def test_a_plain_message(door: Door) -> None:
    """Every field of the reference is there; the usage names the class served."""
    reply = await door.post(MESSAGES, body())
    assert reply.status_code == 200, reply.text
    message = reply.json()
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "talker",
        "content": [{"type": "text", "text": ALPHABET}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": len(ALPHABET) + 1,
            "service_tier": "priority",
        },
    }  # fmt: skip
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert reply.headers["x-tiergate-tier"] == "premium"


async def test_a_stream_has_the_events_in_their_order(door: Door) -> None:
    """Message, block, deltas, end of the block, of the message, of the stream; usage is told."""
    reply = await door.post(MESSAGES, body(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = named_events(reply.text)
    kinds = [kind for kind, _ in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(ALPHABET),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0][1]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["output_tokens"] <= 1
    assert events[1][1] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    deltas = [event["delta"] for kind, event in events if kind == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"text_delta"}
    assert "".join(delta["text"] for delta in deltas) == ALPHABET
    last = events[-2][1]
    assert last["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    plain = (await door.post(MESSAGES, body())).json()["usage"]
    counts = {k: last["usage"][k] for k in ("output_tokens",)}
    assert counts == {"output_tokens": plain["output_tokens"]}
    total = last["usage"]["input_tokens"] + last["usage"]["cache_read_input_tokens"]
    assert total == plain["input_tokens"] + plain["cache_read_input_tokens"]


@pytest.mark.parametrize(
    ("fields", "text", "reason", "stop"),
    [
        ({"max_tokens": 3}, "abc", "max_tokens", None),
        ({"stop_sequences": ["zz", "de"]}, "abc", "stop_sequence", "de"),
        ({"max_tokens": 0}, "", "max_tokens", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_why_a_message_ended(
    door: Door, fields: dict[str, Any], text: str, reason: str, stop: str | None, stream: bool
) -> None:
    """The stop string that ended it is named; a message without text has no block."""
    reply = await door.post(MESSAGES, body(stream=stream, **fields))
    if stream:
        events = named_events(reply.text)
        said = "".join(e["delta"]["text"] for k, e in events if k == "content_block_delta")
        ended = events[-2][1]["delta"]
        blocks = sum(kind == "content_block_start" for kind, _ in events)
    else:
        ended = reply.json()
        said = "".join(block["text"] for block in ended["content"])
        blocks = len(ended["content"])
    assert (said, ended["stop_reason"], ended["stop_sequence"]) == (text, reason, stop)
    assert blocks == bool(text)


async def test_blocks_and_the_system_prompt_are_the_chat_they_mean(door: Door) -> None:
    """Strings or blocks, one turn or neighbours of one role: the same prompt as a chat's."""
    chat = chat_body(
        max_tokens=4,
        messages=[
            {"role": "system", "content": "Be\nbrief"},
            {"role": "user", "content": "A\nB"},
            {"role": "assistant", "content": "C"},
            {"role": "user", "content": "D"},
        ],
    )
    expected = (await door.post(CHAT, chat)).json()["usage"]["prompt_tokens"]

    def text(*parts: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": p, "cache_control": {"type": "ephemeral"}} for p in parts]

    turns = [
        {"role": "user", "content": "A"},
        {"role": "user", "content": text("B")},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, *text("C")]},
        {"role": "user", "content": text("D")},
    ]
    sent = {"model": "talker", "system": text("Be", "brief"), "messages": turns}
    counted = await door.post(COUNT, sent)
    assert (counted.status_code, counted.json()) == (200, {"input_tokens": expected})
    usage = (await door.post(MESSAGES, sent | {"max_tokens": 4})).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == expected


async def test_either_header_may_bring_the_key(door: Door) -> None:
    """`x-api-key` or a bearer token; what neither brings is one 401 in the API's own words."""
    for headers in ({"x-api-key": door.keys["premium"]}, door.auth()):
        reply = await door.http.post(MESSAGES, json=body(max_tokens=2), headers=headers)
        assert reply.status_code == 200
    for headers in ({}, {"x-api-key": "tgk_live_no"}, {"authorization": "Bearer no"}):
        reply = await door.http.post(MESSAGES, json=body(), headers=headers)
        assert reply.status_code == 401
        assert is_error(reply, "authentication_error")
    # The other routes do not know that header.
    reply = await door.http.post(
        CHAT, json=chat_body(), headers={"x-api-key": door.keys["premium"]}
    )
    assert reply.status_code == 401


def is_error(reply: httpx.Response, kind: str) -> bool:
    told = reply.json()
    assert set(told) == {"type", "error", "request_id"}
    assert told["type"] == "error"
    assert set(told["error"]) == {"type", "message"}
    assert told["request_id"] == reply.headers["request-id"]
    return bool(told["error"]["type"] == kind)


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        ({"model": "talker", "messages": []}, 400, "invalid_request_error"),
        (body(max_tokens=None), 400, "invalid_request_error"),
        (body(temperature=1.5), 400, "invalid_request_error"),
        (body(service_tier="priority"), 400, "invalid_request_error"),
        (body([{"type": "image", "source": {}}]), 400, "invalid_request_error"),
        (body([{"type": "text"}]), 400, "invalid_request_error"),
        (body([{"type": "tool_result"}]), 400, "invalid_request_error"),
        (body(tools=[{"type": "web_search", "name": "w"}]), 400, "invalid_request_error"),
        (body(tools=[{"name": "f", "input_schema": {}}]), 400, "invalid_request_error"),
        (body(messages=[{"role": "assistant", "content": "x"}]), 400, "invalid_request_error"),
        (body(max_tokens=10**6), 400, "invalid_request_error"),
        (body(model="other"), 404, "not_found_error"),
        (b"x" * (5 * 2**20), 413, "request_too_large"),
    ],
)  # fmt: skip
async def test_bad_bodies_are_told_in_the_apis_shape(
    door: Door, sent: Any, status: int, kind: str
) -> None:
    """Status and type as in the reference, with the request's id in body and header."""
    reply = await door.post(MESSAGES, sent)
    assert reply.status_code == status, reply.text
    assert is_error(reply, kind)


async def test_the_routers_own_errors_too(door: Door) -> None:
    """A wrong method and a path that is not there, below that route."""
    reply = await door.http.get(MESSAGES, headers={"x-request-id": "mine"})
    assert (reply.status_code, reply.headers["request-id"]) == (405, "mine")
    assert is_error(reply, "invalid_request_error")
    assert is_error(await door.http.get(f"{MESSAGES}/nothing"), "not_found_error")
    other = await door.http.get("/v1/messagesx")
    assert set(other.json()["error"]) == {"message", "type", "param", "code"}


async def test_every_problem_has_a_word_in_that_api(door: Door) -> None:
    """Of the one table of errors no row is without a type, and overload is 529."""
    kinds = {
        "invalid_request_error", "authentication_error", "billing_error", "permission_error",
        "not_found_error", "request_too_large", "rate_limit_error", "timeout_error", "api_error",
        "overloaded_error",
    }  # fmt: skip
    for problem in Problem:
        spec = problem.value
        assert anthropic_type(spec) in kinds
        is_overload = anthropic_type(spec) == "overloaded_error"
        assert anthropic_status(spec) == (529 if is_overload else spec.status)
        assert is_overload == (spec.reason is not None)


async def test_a_key_needs_the_routes_scope(door: Door) -> None:
    """A key for chats opens no messages, and is told so in this API's shape."""
    tenant = await door.ledger.repository.create_tenant("scoped", "free", utc_now())
    made = await door.ledger.repository.create_key(tenant.id, utc_now(), scopes=["chat"])
    reply = await door.http.post(MESSAGES, json=body(), headers={"x-api-key": made.plaintext})
    assert reply.status_code == 403
    assert is_error(reply, "permission_error")


async def test_standard_only_is_never_priority(door: Door) -> None:
    """A premium key that asks for standard is served, and told, as that."""
    reply = await door.post(MESSAGES, body(service_tier="standard_only"))
    assert reply.json()["usage"]["service_tier"] == "standard"
    assert reply.headers["x-tiergate-tier"] == "free"
    reply = await door.post(MESSAGES, body(service_tier="auto"), tier="free")
    assert reply.json()["usage"]["service_tier"] == "standard"


async def test_it_is_billed_like_a_chat(door: Door) -> None:
    """One row of usage with the tokens that the message names."""
    message = (await door.post(MESSAGES, body("bill me", stream=False))).json()
    (row,) = await door.usage_of(message["id"])
    assert row.output_tokens == message["usage"]["output_tokens"]
    counts = message["usage"]
    assert row.prompt_tokens == counts["input_tokens"] + counts["cache_read_input_tokens"]


async def test_an_error_in_a_stream_is_an_event(tmp_path: Any) -> None:
    """A revoked key ends a stream with the API's error event, and no `message_stop`."""
    async with open_door(tmp_path, options={"step_s": 0.05}) as opened:
        sent = body(stream=True, max_tokens=500, temperature=1)
        headers = {"x-api-key": opened.keys["premium"]}
        text = ""
        async with opened.http.stream("POST", MESSAGES, json=sent, headers=headers) as reply:
            async for piece in reply.aiter_text():
                if not text:
                    await opened.ledger.repository.revoke_key(opened.keys["premium"], utc_now())
                text += piece
        kind, last = named_events(text)[-1]
        assert kind == "error"
        assert last["error"]["type"] == "authentication_error"
        await opened.idle()


async def test_overload_is_529_with_hint_and_reason(tmp_path: Any) -> None:
    """A full queue: the API's own status, with the headers that all routes have."""
    async with open_door(tmp_path, settings={"max_queue": 1}) as opened:
        opened.close_gate()
        waiting = [
            asyncio.create_task(opened.post(MESSAGES, body(f"{n}", max_tokens=4))) for n in range(1)
        ]
        await eventually(lambda: opened.services.admission.waiting == 1, "the queue is full")
        reply = await opened.post(MESSAGES, body())
        opened.open_gate()
        assert reply.status_code == 529
        assert is_error(reply, "overloaded_error")
        assert int(reply.headers["retry-after-ms"]) > 0
        assert reply.headers["x-tiergate-reason"] == "saturated"
        await asyncio.gather(*waiting)


async def test_limits_have_the_apis_own_headers(door: Door) -> None:
    """On success and on refusal, by the names that its SDKs read; the refusal says when."""
    tenant = await door.ledger.repository.create_tenant("limited", "free", utc_now())
    limits = Limits(requests_per_minute=2, tokens_per_minute=1000)
    made = await door.ledger.repository.create_key(tenant.id, utc_now(), limits=limits)
    headers = {"x-api-key": made.plaintext}
    left = []
    for number in range(2):
        sent = body(f"limited {number}", max_tokens=2)
        reply = await door.http.post(MESSAGES, json=sent, headers=headers)
        assert reply.status_code == 200
        assert reply.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert reply.headers["anthropic-ratelimit-tokens-limit"] == "1000"
        assert reply.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        assert not any(name.startswith("x-ratelimit") for name in reply.headers)
        left.append(reply.headers["anthropic-ratelimit-requests-remaining"])
    assert left == ["1", "0"]
    reply = await door.http.post(MESSAGES, json=body(stream=True), headers=headers)
    assert reply.status_code == 429
    assert is_error(reply, "rate_limit_error")
    assert reply.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 0 < int(reply.headers["retry-after"]) <= 61  # a minute, and the second under way
