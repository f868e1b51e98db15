"""`response_format` through the whole house: a real engine with a tiny random model behind it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from door_kit import CHAT, Door, chat_body, open_door, sse
from openai import BadRequestError
from pydantic import BaseModel
from tiny_checkpoint import write_checkpoint

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Animal(BaseModel):
    """What the official client turns into a schema, and reads back."""

    legs: int
    can_fly: bool


def by_schema(schema: Any, **more: Any) -> dict[str, Any]:
    inner = {"name": "answer", "strict": True, "schema": schema} | more
    return {"type": "json_schema", "json_schema": inner}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    import engine.model.loader  # takes a while: not within the start's deadline

    folder = tmp_path_factory.mktemp("formats")
    model = write_checkpoint(folder / "tiny")
    engine = {"executor": "model", "model": str(model), "served_name": "talker", "threads": 1}
    async with open_door(folder, engine=engine | {"max_model_len": 512}) as opened:
        yield opened


pytestmark = pytest.mark.asyncio(loop_scope="module")


def is_person(value: Any) -> bool:
    return (
        list(value) == ["name", "age", "tags"]
        and len(value["name"]) <= 8
        and 0 <= value["age"] <= 150
        and set(value["tags"]) <= {"x", "y"}
        and len(value["tags"]) <= 3
    )


@pytest.mark.parametrize("temperature", [0, 1])
async def test_an_answer_satisfies_the_schema(door: Door, temperature: float) -> None:
    """Plain, with several choices, and whatever the model would rather have said."""
    body = chat_body(
        temperature=temperature, seed=7, n=3, max_tokens=300, response_format=by_schema(PERSON)
    )
    reply = await door.post(CHAT, body)
    assert reply.status_code == 200, reply.text
    choices = reply.json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * 3
    assert all(is_person(json.loads(choice["message"]["content"])) for choice in choices)


async def test_a_stream_gives_the_same_text(door: Door) -> None:
    """Streamed and plain answers to one request are equal."""
    body = chat_body(temperature=1, seed=3, max_tokens=300, response_format=by_schema(PERSON))
    plain = (await door.post(CHAT, body)).json()["choices"][0]["message"]["content"]
    events = sse((await door.post(CHAT, body | {"stream": True})).text)
    parts = [e["choices"][0]["delta"].get("content") for e in events[:-1] if e["choices"]]
    assert "".join(part for part in parts if part) == plain
    assert is_person(json.loads(plain))


async def test_a_json_object_is_one_or_is_cut(door: Door) -> None:
    """A random model may never close it: then the answer says that it was cut."""
    texts = []
    for seed in range(6):
        body = chat_body(
            temperature=1, seed=seed, max_tokens=120, response_format={"type": "json_object"}
        )
        choice = (await door.post(CHAT, body)).json()["choices"][0]
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert choice["finish_reason"] == "length"
        texts.append(text)
    assert len(set(texts)) > 1


async def test_the_official_clients_parse_helper_works(door: Door) -> None:
    """The SDK sends a pydantic class as a strict schema and returns an object of it."""
    async with door.openai() as client:
        reply = await client.chat.completions.parse(
            model="talker",
            messages=[{"role": "user", "content": "an animal"}],
            response_format=Animal,
            max_tokens=200,
            seed=1,
            temperature=0.5,
        )
        assert isinstance(reply.choices[0].message.parsed, Animal)
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(
                model="talker",
                messages=[{"role": "user", "content": "an animal"}],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"not": {}}},
                },
            )


async def test_text_is_the_default(door: Door) -> None:
    """Asking for text changes nothing."""
    body = chat_body(max_tokens=8)
    first = await door.post(CHAT, body)
    second = await door.post(CHAT, body | {"response_format": {"type": "text"}})
    contents = [r.json()["choices"][0]["message"]["content"] for r in (first, second)]
    assert contents[0] == contents[1]


def deep(levels: int) -> bytes:
    """A body whose schema is nested `levels` deep, as bytes: no encoder of ours need write it."""
    body = json.dumps(chat_body(response_format=by_schema({"mark": 0})))
    return body.replace('{"mark": 0}', '{"not": ' * levels + "{}" + "}" * levels).encode()


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (by_schema({"type": "secret"}), "response_format"),
        (by_schema({"$ref": "#/secret"}), "response_format"),
        (by_schema({"uniqueItems": True}), "response_format"),
        (by_schema({"properties": {f"p{i}": {} for i in range(5000)}}), "response_format"),
        (by_schema({"enum": ["secret" * 10_000]}), "response_format"),
        (by_schema({"allOf": [{"multipleOf": n} for n in (101, 103, 107)]}), "response_format"),
        (by_schema("secret"), "response_format.json_schema.schema"),
        (by_schema({}, name=""), "response_format.json_schema.name"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "response_format.json_schema.schema",
        ),
        ({"type": "secret"}, "response_format.type"),
        ("secret", "response_format"),
    ],
)  # fmt: skip
async def test_a_format_that_cannot_be_held_is_refused(door: Door, sent: Any, param: str) -> None:
    """400 at the door, naming the field and never what was sent."""
    reply = await door.post(CHAT, chat_body(response_format=sent))
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "secret" not in reply.text


@pytest.mark.parametrize("levels", [65, 900, 20_000])
async def test_a_deep_schema_is_refused(door: Door, levels: int) -> None:
    """However deep, and the next request is served."""
    reply = await door.post(CHAT, deep(levels))
    assert reply.status_code == 400, reply.text
    assert (await door.post(CHAT, chat_body(max_tokens=2))).status_code == 200


async def test_an_answer_that_may_not_end_cannot_have_a_format(door: Door) -> None:
    """`ignore_eos` and a format contradict each other."""
    sent = chat_body(response_format=by_schema(PERSON), ignore_eos=True)
    reply = await door.post(CHAT, sent)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "ignore_eos")


async def test_an_engine_without_grammars_says_so(tmp_path: Path) -> None:
    """No answer is passed off as constrained by an executor that does not know how."""
    async with open_door(tmp_path) as opened:
        reply = await opened.post(CHAT, chat_body(response_format={"type": "json_object"}))
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_value")
        fine = await opened.post(CHAT, chat_body(response_format={"type": "text"}, max_tokens=2))
        assert fine.status_code == 200
