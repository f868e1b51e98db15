"""The OpenAI Responses API: read by the official client, event by event, and nothing stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from door_kit import CHAT, Door, chat_body, open_door
from openai import BadRequestError
from pydantic import BaseModel
from talking_executor import ALPHABET
from test_messages import named_events
from tiny_checkpoint import CONFIG, write_checkpoint
from tool_templates import HERMES, use_template

from engine.core.clock import utc_now

RESPONSES = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "of a place",
    "parameters": {
        "type": "object",
        "properties": {"place": {"enum": ["Ulm", "Bern"]}},
        "required": ["place"],
        "additionalProperties": False,
    },
    "strict": True,
}
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Animal(BaseModel):
    """What the official client turns into a schema, and reads back."""

    legs: int
    can_fly: bool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    import engine.model.loader  # takes a while: not within the start's deadline

    folder = tmp_path_factory.mktemp("responses")
    model = use_template(write_checkpoint(folder / "tiny"), HERMES)
    (model / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 2048}))
    engine = {"executor": "model", "model": str(model), "served_name": "talker", "threads": 1}
    async with open_door(folder, engine=engine | {"max_model_len": 2048}) as opened:
        yield opened


def body(text: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "talker", "input": text, "temperature": 0} | fields


async def test_the_client_reads_a_plain_response(door: Door) -> None:
    """Strictly: every field of the SDK's model has its type."""
    async with door.openai(_strict_response_validation=True) as client:
        answer = await client.responses.create(
            model="talker", input="Hi", temperature=0, metadata={"a": "b"}, instructions="Be brief",
            store=True, user="u",
        )  # fmt: skip
    assert answer.output_text == ALPHABET
    assert answer.id.startswith("resp_")
    assert (answer.status, answer.incomplete_details, answer.error) == ("completed", None, None)
    assert (answer.metadata, answer.instructions) == ({"a": "b"}, "Be brief")
    assert answer.service_tier == "priority"
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(ALPHABET) + 1
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    told = (await door.post(RESPONSES, body(store=True))).json()
    assert told["store"] is False


async def test_the_client_reads_a_stream(door: Door) -> None:
    """Its helper follows the events, and ends with what a plain answer says."""
    async with door.openai(_strict_response_validation=True) as client:
        kinds = []
        async with client.responses.stream(model="talker", input="Hi", temperature=0) as stream:
            async for event in stream:
                assert event.sequence_number == len(kinds)
                kinds.append(event.type)
            whole = await stream.get_final_response()
        plain = await client.responses.create(model="talker", input="Hi", temperature=0)
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(ALPHABET),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert whole.output_text == plain.output_text == ALPHABET
    assert whole.usage is not None
    assert plain.usage is not None
    assert whole.usage.output_tokens == plain.usage.output_tokens
    assert [item.type for item in whole.output] == [item.type for item in plain.output]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_response_is_incomplete(door: Door, stream: bool) -> None:
    """At `max_output_tokens` response and message say so; without any token there is no message."""
    for most, text in ((3, "abc"), (0, "")):
        reply = await door.post(RESPONSES, body(max_output_tokens=most, stream=stream))
        if stream:
            kind, last = named_events(reply.text)[-1]
            assert kind == "response.incomplete"
            told = last["response"]
        else:
            told = reply.json()
        assert told["status"] == "incomplete"
        assert told["incomplete_details"] == {"reason": "max_output_tokens"}
        texts = [part["text"] for item in told["output"] for part in item["content"]]
        assert "".join(texts) == text
        assert {item["status"] for item in told["output"]} == ({"incomplete"} if text else set())


async def test_every_form_of_input_is_the_chat_it_means(door: Door) -> None:
    """Text, messages with parts, instructions: the same prompt as a chat's."""
    chat = chat_body(
        max_tokens=1,
        messages=[
            {"role": "system", "content": "S"},
            {"role": "user", "content": "A"},
            {"role": "assistant", "content": "B"},
            {"role": "user", "content": "C"},
        ],
    )
    expected = (await door.post(CHAT, chat)).json()["usage"]["prompt_tokens"]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "A"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed",
         "content": [{"type": "output_text", "text": "B", "annotations": []}]},
        {"role": "user", "content": "C"},
    ]  # fmt: skip
    for sent in (
        body(items, instructions="S"),
        body([{"role": "developer", "content": "S"}, *items]),
    ):
        reply = await door.post(RESPONSES, sent | {"max_output_tokens": 1})
        assert reply.status_code == 200, reply.text
        assert reply.json()["usage"]["input_tokens"] == expected
    # No model and no input: the one that is served answers an empty turn.
    empty = (await door.post(RESPONSES, {"max_output_tokens": 1})).json()
    assert (empty["model"], empty["usage"]["input_tokens"]) == ("talker", 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input.0.content.0.type"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id"),
        ({"input": 3}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "x"}}}, "text.format.type"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"max_output_tokens": 10**6}, "input"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused(door: Door, fields: Any, param: str) -> None:
    """A 400 (or 404 for the model) of the OpenAI shape that names the field."""
    reply = await door.post(RESPONSES, body() | fields)
    assert reply.status_code == (404 if param == "model" else 400), reply.text
    assert reply.json()["error"]["param"] == param


async def test_stored_responses_are_not_there(door: Door) -> None:
    """The client is told why, in a sentence; there is nothing to fetch."""
    async with door.openai() as client:
        with pytest.raises(BadRequestError, match="Nothing is stored here"):
            await client.responses.create(model="talker", input="x", previous_response_id="resp_1")
    assert (await door.http.get(f"{RESPONSES}/resp_1", headers=door.auth())).status_code == 404


async def test_a_key_needs_the_scope_of_responses(door: Door) -> None:
    """A key for chats does not open this route."""
    tenant = await door.ledger.repository.create_tenant("narrow", "free", utc_now())
    made = await door.ledger.repository.create_key(tenant.id, utc_now(), scopes=["chat"])
    headers = {"authorization": f"Bearer {made.plaintext}"}
    reply = await door.http.post(RESPONSES, json=body(), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "route_not_allowed")


async def test_it_is_billed_like_any_chat(door: Door) -> None:
    """One row of usage with the tokens that the response names."""
    told = (await door.post(RESPONSES, body("bill me"))).json()
    (row,) = await door.usage_of(told["id"])
    usage = told["usage"]
    assert (row.prompt_tokens, row.output_tokens) == (usage["input_tokens"], usage["output_tokens"])


async def test_log_probabilities(door: Door) -> None:
    """Asked for by `include` or by their number, plain and streamed."""
    sent = body(max_output_tokens=3, top_logprobs=2, include=["message.output_text.logprobs"])
    (item,) = (await door.post(RESPONSES, sent)).json()["output"]
    found = item["content"][0]["logprobs"]
    assert [token["token"] for token in found] == ["a", "b", "c"]
    assert {len(token["top_logprobs"]) for token in found} == {2}
    events = named_events((await door.post(RESPONSES, sent | {"stream": True})).text)
    deltas = [event for kind, event in events if kind == "response.output_text.delta"]
    assert [token for event in deltas for token in event["logprobs"]] == found


async def test_an_error_in_a_stream(tmp_path: Path) -> None:
    """A revoked key: an error event, and a response that failed."""
    async with open_door(tmp_path, options={"step_s": 0.05}) as opened:
        sent = body(stream=True, max_output_tokens=500, temperature=1)
        text = ""
        async with opened.http.stream("POST", RESPONSES, json=sent, headers=opened.auth()) as reply:
            async for piece in reply.aiter_text():
                if not text:
                    await opened.ledger.repository.revoke_key(opened.keys["premium"], utc_now())
                text += piece
        (_, error), (kind, last) = named_events(text)[-2:]
        assert (error["type"], error["code"]) == ("error", "invalid_api_key")
        assert (kind, last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["message"] == error["message"]
        await opened.idle()


async def test_the_parse_helper_gets_an_object(real: Door) -> None:
    """`text.format` is followed token by token; the client reads its class back."""
    async with real.openai() as client:
        answer = await client.responses.parse(
            model="talker", input="an animal", text_format=Animal, max_output_tokens=300
        )
        assert isinstance(answer.output_parsed, Animal)


async def test_calls_are_items(real: Door) -> None:
    """A forced call is an item of its own, plain and streamed; its result is one of the input."""
    async with real.openai(_strict_response_validation=True) as client:
        wanted: dict[str, Any] = {
            "model": "talker", "input": "weather?", "tools": [WEATHER], "tool_choice": "required",
            "parallel_tool_calls": False, "max_output_tokens": 400, "temperature": 0,
        }  # fmt: skip
        answer = await client.responses.create(**wanted)
        (call,) = answer.output
        assert call.type == "function_call"
        assert json.loads(call.arguments)["place"] in ("Ulm", "Bern")
        async with client.responses.stream(**wanted) as stream:
            kinds = [event.type async for event in stream]
            whole = await stream.get_final_response()
        (streamed,) = whole.output
        assert streamed.type == "function_call"
        assert streamed.arguments == call.arguments
        assert "response.function_call_arguments.done" in kinds
        assert kinds.count("response.function_call_arguments.delta") > 3
        history = [
            {"role": "user", "content": "weather?"},
            call.model_dump(include={"type", "call_id", "name", "arguments"}),
            {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."},
        ]
        again = await client.responses.create(
            model="talker", input=history, tools=[WEATHER], tool_choice="none", max_output_tokens=4
        )
        assert again.usage is not None
        assert answer.usage is not None
        assert again.usage.output_tokens <= 4
