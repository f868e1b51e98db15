"""Tools through the whole house: what the model is told, what it must call, how calls are told.

Where a call is enforced, a real engine with a tiny random model is held to it; where the model is
free, an executor says what the prompt tells it to.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from door_kit import CHAT, Door, chat_body, open_door, sse
from echoing_executor import BLOCK
from pydantic import BaseModel
from test_messages import named_events
from tiny_checkpoint import CONFIG, write_checkpoint
from tiny_tokenizer import write_tokenizer
from tool_templates import HERMES, LLAMA, OTHER, use_template

MESSAGES = "/v1/messages"
PLACE = {"type": "string", "enum": ["Ulm", "Bern"]}
WEATHER = {
    "type": "object",
    "properties": {"place": {"$ref": "#/$defs/Place"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
    "$defs": {"Place": PLACE},
}
pytestmark = pytest.mark.asyncio(loop_scope="module")


def function(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    inner = {"name": name, "description": f"what {name} is for"} | more
    if parameters is not None:
        inner["parameters"] = parameters
    return {"type": "function", "function": inner}


TOOLS = [function("weather", WEATHER), function("now")]


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[HERMES, LLAMA], ids=["hermes", "llama"]
)
async def real(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Door]:
    import engine.model.loader  # takes a while: not within the start's deadline

    folder = tmp_path_factory.mktemp("tools")
    model = use_template(write_checkpoint(folder / "tiny"), request.param)
    config = model / "config.json"
    config.write_text(json.dumps(CONFIG | {"max_position_embeddings": 2048}))
    engine = {"executor": "model", "model": str(model), "served_name": "talker", "threads": 1}
    async with open_door(folder, engine=engine | {"max_model_len": 2048}) as opened:
        yield opened


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[HERMES, LLAMA], ids=["hermes", "llama"]
)
async def echo(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Door]:
    folder = tmp_path_factory.mktemp("echo")
    model = use_template(write_tokenizer(folder / "tiny"), request.param)
    engine = {"executor": "echoing_executor:make", "model": str(model), "block_size": BLOCK}
    async with open_door(folder, engine=engine) as opened:
        yield opened


def form(door: Door) -> str:
    return str(door.services.host.encoder().codec.tool_form)


def call_text(door: Door, name: str, arguments: Any) -> str:
    """A call as this door's model writes it."""
    if form(door) == "hermes":
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return json.dumps({"name": name, "parameters": arguments})


def is_weather(arguments: str) -> bool:
    value = json.loads(arguments)
    return list(value) == ["place", "days"] and value["place"] in PLACE["enum"]


async def calls_of(door: Door, body: dict[str, Any]) -> tuple[str | None, list[Any], str]:
    """Return content, calls and finish reason, the same plain and streamed but for their ids."""
    reply = await door.post(CHAT, body)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    message = choice["message"]
    plain = [call["function"] for call in message.get("tool_calls", [])]
    assert all(call["id"].startswith("call_") for call in message.get("tool_calls", []))
    events = sse((await door.post(CHAT, body | {"stream": True})).text)
    assert events[-1] == "[DONE]"
    content, streamed, reason = "", [], None
    for event in events[:-1]:
        delta = event["choices"][0]["delta"]
        content += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert (call["index"], call["type"]) == (len(streamed), "function")
                streamed.append({"name": call["function"]["name"], "arguments": ""})
            streamed[call["index"]]["arguments"] += call["function"]["arguments"]
        reason = event["choices"][0]["finish_reason"] or reason
    assert (content or None, streamed, reason) == (
        message["content"] or None,
        plain,
        choice["finish_reason"],
    )
    return message["content"], plain, choice["finish_reason"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_a_call_is_enforced(real: Door, choice: Any, seed: int) -> None:
    """Whatever a random model would say, it calls one of the tools, or the one that is named."""
    body = chat_body(
        tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, temperature=1, seed=seed,
        max_tokens=400,
    )  # fmt: skip
    content, calls, reason = await calls_of(real, body)
    assert (content, reason) == (None, "tool_calls")
    (call,) = calls
    if choice == "required":
        assert call["name"] in ("weather", "now")
    else:
        assert call["name"] == "weather"
    if call["name"] == "weather":
        assert is_weather(call["arguments"])
    else:
        assert json.loads(call["arguments"]) == {}


async def test_several_calls_may_be_enforced(real: Door) -> None:
    """Without a bound to one there may be more, all of them good; never more than sixteen.

    In Llama's form there is one: its templates refuse a history with several.
    """
    most = 0
    for seed in range(4):
        body = chat_body(
            tools=TOOLS[1:], tool_choice="required", temperature=1.5, seed=seed, max_tokens=1200
        )
        _, calls, reason = await calls_of(real, body)
        assert reason == "tool_calls"
        assert 1 <= len(calls) <= 16
        assert {call["name"] for call in calls} == {"now"}
        most = max(most, len(calls))
    assert (most > 1) == (form(real) == "hermes")


async def test_a_format_or_a_call(real: Door) -> None:
    """With a format and tools the answer is one or the other, and good either way."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ended = set()
    for seed in range(6):
        body = chat_body(
            tools=TOOLS[1:], response_format=held, temperature=2, seed=seed, max_tokens=1200
        )
        content, calls, reason = await calls_of(real, body)
        ended.add(reason)
        if reason == "stop":
            assert (list(json.loads(content or "")), calls) == (["ok"], [])
        else:
            assert (content, reason) == (None, "tool_calls")
    assert ended  # which of the two a random model takes is its own affair


async def test_a_cut_call_says_so(real: Door) -> None:
    """At `max_tokens` the arguments end where they end, and the reason is `length`."""
    seen = set()
    for most in range(40, 400, 4):
        body = chat_body(
            tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=False, max_tokens=most
        )
        _, calls, reason = await calls_of(real, body)
        seen.add((reason, len(calls)))
        if reason == "tool_calls":
            break
        if calls and calls[0]["arguments"]:
            assert calls[0]["name"] == "weather"
            assert "}" in calls[0]["arguments"] or not is_json(calls[0]["arguments"])
    assert seen == {("length", 0), ("length", 1), ("tool_calls", 1)}


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def test_the_sdks_parse_a_forced_call(real: Door) -> None:
    """The official client's helper reads the arguments back into its class."""

    class now(BaseModel):  # noqa: N801 - the tool's name
        pass

    import openai

    async with real.openai() as client:
        answer = await client.chat.completions.parse(
            model="talker",
            messages=[{"role": "user", "content": "the time?"}],
            tools=[openai.pydantic_function_tool(now)],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=300,
        )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, now)


async def test_a_free_model_may_call(echo: Door) -> None:
    """Text and calls are told apart, whether the answer is streamed or not."""
    one = call_text(echo, "weather", {"place": "Ulm", "days": 2})
    body = chat_body(f"say:{one}", tools=TOOLS)
    assert await calls_of(echo, body) == (
        None,
        [{"name": "weather", "arguments": '{"place": "Ulm", "days": 2}'}],
        "tool_calls",
    )
    if form(echo) == "hermes":
        content, calls, _ = await calls_of(echo, chat_body(f"say:So.\n\n{one}\n{one}", tools=TOOLS))
        assert (content, len(calls)) == ("So.", 2)


async def test_a_free_model_may_not_call(echo: Door) -> None:
    """Plain text, and JSON that is no call, are text, and `stop` is the reason."""
    for text in ("No need to.", '{"a": 1}', "1 < 2"):
        assert await calls_of(echo, chat_body(f"say:{text}", tools=TOOLS)) == (text, [], "stop")


async def test_without_tools_nothing_is_read(echo: Door) -> None:
    """A call that nobody asked for is the text it is; `none` keeps the tools from the model."""
    one = call_text(echo, "now", {})
    assert await calls_of(echo, chat_body(f"say:{one}")) == (one, [], "stop")
    told = await echo.post(CHAT, chat_body("say:x", tools=TOOLS))
    plain = await echo.post(CHAT, chat_body("say:x"))
    none = await echo.post(CHAT, chat_body("say:x", tools=TOOLS, tool_choice="none"))
    tokens = [r.json()["usage"]["prompt_tokens"] for r in (told, plain, none)]
    assert tokens[0] > tokens[1] == tokens[2]


async def test_a_round_trip(echo: Door) -> None:
    """The call and its result go back to the model through its template."""
    call = {"id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": '{"place": "Ulm"}'}}  # fmt: skip
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "say:It rains."},
    ]
    body = chat_body(tools=TOOLS, messages=messages)
    content, _, reason = await calls_of(echo, body)
    assert (content, reason) == ("It rains.</tool_response>", "stop")
    unopened = await echo.post(CHAT, chat_body(messages=messages, max_tokens=0))
    called = len(json.dumps({"arguments": {"place": "Ulm"}, "name": "weather"}))
    bare = [m | {"tool_calls": None} for m in messages]
    without = await echo.post(CHAT, chat_body(messages=bare, max_tokens=0))
    counts = [r.json()["usage"]["prompt_tokens"] for r in (unopened, without)]
    assert counts[0] - counts[1] >= called


async def test_marks_that_are_special_tokens_are_read(tmp_path: Path) -> None:
    """A model whose vocabulary has the marks as special tokens, which no text shows, calls too."""
    folder = write_tokenizer(tmp_path / "tiny")
    model = use_template(folder, HERMES, "<tool_call>", "</tool_call>")
    engine = {"executor": "echoing_executor:make", "model": str(model), "block_size": BLOCK}
    async with open_door(tmp_path, engine=engine) as door:
        assert len(door.services.host.encoder().codec.tool_marks) == 2
        one = call_text(door, "weather", {"place": "Ulm"})
        content, calls, reason = await calls_of(door, chat_body(f"say:So.{one}{one}", tools=TOOLS))
        assert (content, len(calls), reason) == ("So.", 2, "tool_calls")
        told = await door.post(CHAT, chat_body(f"say:{one}x"))  # nobody asked for tools
        assert "<tool_call>" not in told.json()["choices"][0]["message"]["content"]


async def test_results_have_their_tools_names(tmp_path: Path) -> None:
    """A template that insists on the name of the tool gets it, though clients send the id only."""
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{% if not m.name is defined %}{{ raise_exception('no name') }}{% endif %}"
        "<user>{{ m.name }}: {{ m.content }}"
        "{% else %}{{ '<' + m.role + '>' + m.content }}{% endif %}"
        "{% endfor %}{% if tools %}<tool_call>{% endif %}<assistant>"
    )
    model = use_template(write_tokenizer(tmp_path / "tiny"), template)
    engine = {"executor": "echoing_executor:make", "model": str(model), "block_size": BLOCK}
    called = {"id": "c1", "type": "function", "function": {"name": "say", "arguments": "{}"}}
    async with open_door(tmp_path, engine=engine) as door:
        sent = chat_body(
            messages=[
                {"role": "assistant", "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "c1", "content": "hello"},
            ]
        )
        reply = (await door.post(CHAT, sent)).json()
        # What is said is what stands behind the name and its colon.
        assert reply["choices"][0]["message"]["content"] == " hello"
        sent["messages"][1]["tool_call_id"] = "other"
        assert (await door.post(CHAT, sent)).status_code == 400


async def test_messages_speak_of_tools_in_their_own_words(echo: Door) -> None:
    """Blocks of `tool_use`, their input streamed as JSON; results come back as blocks."""
    one = call_text(echo, "weather", {"place": "Bern", "days": 1})
    body = {
        "model": "talker",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": f"say:{one}"}],
        "tools": [{"name": "weather", "description": "x", "input_schema": WEATHER}],
    }
    message = (await echo.post(MESSAGES, body)).json()
    assert message["stop_reason"] == "tool_use"
    (block,) = message["content"]
    assert block.pop("id").startswith("toolu_")
    assert block == {"type": "tool_use", "name": "weather", "input": {"place": "Bern", "days": 1}}
    events = named_events((await echo.post(MESSAGES, body | {"stream": True})).text)
    start = next(e for kind, e in events if kind == "content_block_start")["content_block"]
    assert (start["type"], start["name"], start["input"]) == ("tool_use", "weather", {})
    deltas = [e["delta"] for kind, e in events if kind == "content_block_delta"]
    assert len(deltas) > 3
    assert json.loads("".join(d["partial_json"] for d in deltas)) == block["input"]
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "say:wet"}],
    }
    turns = [
        body["messages"][0],
        {"role": "assistant", "content": [block | {"id": "t1"}]},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    answered = (await echo.post(MESSAGES, body | {"messages": turns})).json()
    assert answered["content"][0]["text"].startswith("wet")


async def test_a_tool_must_be_called_in_messages_too(real: Door) -> None:
    """`any` and `tool` are enforced as `required` and a name are."""
    body = {
        "model": "talker",
        "max_tokens": 400,
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"name": "weather", "input_schema": WEATHER}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    for choice in (body["tool_choice"], {"type": "tool", "name": "weather"}):
        message = (await real.post(MESSAGES, body | {"tool_choice": choice})).json()
        (block,) = message["content"]
        assert (block["type"], message["stop_reason"]) == ("tool_use", "tool_use")
        assert is_weather(json.dumps(block["input"]))


@pytest.mark.parametrize("stream", [False, True])
async def test_messages_can_be_held_to_a_schema(real: Door, stream: bool) -> None:
    """`output_config` is followed as `response_format` is."""
    schema = {
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["days"],
        "additionalProperties": False,
    }
    body = {
        "model": "talker",
        "max_tokens": 200,
        "messages": [{"role": "user", "content": "x"}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
        "stream": stream,
    }
    reply = await real.post(MESSAGES, body)
    assert reply.status_code == 200, reply.text
    if stream:
        events = named_events(reply.text)
        text = "".join(e["delta"]["text"] for kind, e in events if kind == "content_block_delta")
    else:
        (block,) = reply.json()["content"]
        text = block["text"]
    assert 1 <= json.loads(text)["days"] <= 9


async def test_each_choice_has_its_own_calls(real: Door) -> None:
    """Several choices in one stream: every delta says whose call it is of."""
    body = chat_body(
        tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=False, n=3, temperature=1,
        seed=5, max_tokens=400, stream=True,
    )  # fmt: skip
    *events, done = sse((await real.post(CHAT, body)).text)
    assert done == "[DONE]"
    arguments = dict.fromkeys(range(3), "")
    ids = set()
    for event in events:
        (choice,) = event["choices"]
        for call in choice["delta"].get("tool_calls", []):
            arguments[choice["index"]] += call["function"]["arguments"]
            ids |= {call["id"]} if "id" in call else set()
    assert len(ids) == 3
    assert all(map(is_weather, arguments.values()))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice",
        ),
        ({"tools": [{"type": "custom"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [function("a b")]}, "tools.0.function.name"),
        ({"tools": [function("now"), function("now")]}, "tools"),
        ({"tools": [function("now", {"not": {}})], "tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": TOOLS * 65}, "tools"),
    ],
)
async def test_tools_that_cannot_be_taken(real: Door, fields: Any, param: str) -> None:
    """A 400 that names the field."""
    reply = await real.post(CHAT, chat_body(**fields))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


@pytest.mark.parametrize("levels", [80, 900])
async def test_deep_parameters_are_refused(echo: Door, levels: int) -> None:
    """However deep, in tools, in a call's arguments and in a message's input; others are served."""
    deep = '{"a":' * levels + "{}" + "}" * levels
    body = json.dumps(chat_body(tools=[function("f", {"mark": 0})])).replace('{"mark": 0}', deep)
    assert (await echo.post(CHAT, body.encode())).status_code == 400
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    reply = await echo.post(CHAT, chat_body(messages=messages))
    assert reply.status_code in (200, 400)
    assert (await echo.post(CHAT, chat_body("say:x"))).status_code == 200


@pytest.mark.parametrize(("template", "said"), [(None, "takes no tools"), (OTHER, "cannot read")])
async def test_a_model_that_takes_no_tools_says_so(
    tmp_path: Path, template: str | None, said: str
) -> None:
    """On every route that has tools, unless none may be called anyway."""
    folder = write_tokenizer(tmp_path / "tiny")
    if template is not None:
        use_template(folder, template)
    async with open_door(tmp_path, engine={"model": str(folder)}) as opened:
        reply = await opened.post(CHAT, chat_body(tools=TOOLS))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
        assert said in reply.json()["error"]["message"]
        tools = [{"name": "f", "input_schema": {"type": "object"}}]
        sent = {"model": "talker", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        reply = await opened.post(MESSAGES, sent | {"tools": tools})
        assert (reply.status_code, said in reply.text) == (400, True)
        fine = await opened.post(CHAT, chat_body(tools=TOOLS, tool_choice="none", max_tokens=1))
        assert fine.status_code == 200
