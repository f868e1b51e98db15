"""Chat completions as the official SDK and as raw bytes see them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from door_kit import CHAT, TEXT, Door, chat_body, open_door, sse, text_body
from talking_executor import ALPHABET, next_seeded

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


async def test_a_plain_answer_has_the_shape_of_the_api(door: Door) -> None:
    """The SDK's own models read every field of a plain answer."""
    async with door.openai() as client:
        answer = await client.chat.completions.create(**chat_body())
    (choice,) = answer.choices
    assert choice.message.content == ALPHABET
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.object == "chat.completion"
    assert answer.model == "talker"
    assert answer.service_tier == "priority"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("Hi") + 2
    assert answer.usage.completion_tokens == 28  # 26 letters, a full stop, the end token
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 28


async def test_a_stream_gives_role_tokens_finish_and_done(door: Door) -> None:
    """A stream is: role, one chunk a token, an empty delta with the reason, [DONE]."""
    response = await door.post(CHAT, chat_body(stream=True), "free")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    first, *middle, last, done = sse(response.text)
    assert done == "[DONE]"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"]["content"] for c in middle] == [*ALPHABET]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    chunks = [first, *middle, last]
    assert {c["service_tier"] for c in chunks} == {"default"}
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)


async def test_the_usage_chunk_comes_only_when_asked_for(door: Door) -> None:
    """With include_usage the last chunk has the usage and no choices, the others a null."""
    asked = chat_body(stream=True, stream_options={"include_usage": True}, max_tokens=3)
    *chunks, last, done = sse((await door.post(CHAT, asked)).text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks)
    declined = chat_body(stream=True, stream_options={"include_usage": False}, max_tokens=3)
    assert not any("usage" in e for e in sse((await door.post(CHAT, declined)).text)[:-1])


async def test_the_sdk_reads_a_stream_to_its_end(door: Door) -> None:
    """The SDK's stream gives the whole text and the finish reason."""
    async with door.openai() as client:
        stream = await client.chat.completions.create(**chat_body(stream=True))
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ALPHABET
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_token_limit_ends_with_length(door: Door, field: str) -> None:
    """Both names of the limit work, and the finish reason is `length`."""
    answer = (await door.post(CHAT, chat_body(**{field: 5}))).json()
    assert answer["choices"][0]["message"]["content"] == "abcde"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["fgh", ["xyz", "fgh"]])
async def test_a_stop_string_is_cut_off_and_counted_to_its_end(
    door: Door, stream: bool, stop: Any
) -> None:
    """The text ends before the stop string; the tokens up to its last are billed, no more."""
    response = await door.post(CHAT, chat_body(stop=stop, stream=stream))
    if stream:
        events = sse(response.text)[:-1]
        answer_id = events[0]["id"]
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        answer_id = response.json()["id"]
        text = response.json()["choices"][0]["message"]["content"]
        reason = response.json()["choices"][0]["finish_reason"]
    assert (text, reason) == ("abcde", "stop")
    (row,) = await door.usage_of(answer_id)
    assert row.output_tokens == len("abcdefgh")
    assert row.finish_reason == "stop"


async def test_several_choices_have_seeds_of_their_own(door: Door) -> None:
    """n choices come with their indexes, differ from each other, and share one prompt."""
    body = chat_body(temperature=1, seed=5, n=3, max_tokens=12)
    answer = (await door.post(CHAT, body)).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    expected = ["".join(chr(next_seeded(5 + k, i)) for i in range(12)) for k in range(3)]
    assert texts == expected
    assert answer["usage"]["completion_tokens"] == 36
    assert answer["usage"]["prompt_tokens"] == 4
    rows = await door.usage_of(answer["id"], 3)
    assert sorted(row.prompt_tokens for row in rows) == [0, 0, 4]
    assert sum(row.output_tokens for row in rows) == 36


async def test_several_choices_can_be_streamed(door: Door) -> None:
    """Each choice of a stream has its role chunk, its text and its finish reason."""
    events = sse((await door.post(CHAT, chat_body(n=2, stream=True, max_tokens=4))).text)
    assert events[-1] == "[DONE]"
    choices = [event["choices"][0] for event in events[:-1]]
    for index in range(2):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in own) == "abcd"
        assert own[-1]["finish_reason"] == "length"


async def test_equal_seeds_give_equal_answers_and_none_gives_another(door: Door) -> None:
    """A seed fixes the answer; without one each answer has its own."""

    async def text(**fields: Any) -> str:
        body = chat_body(temperature=1, max_tokens=20, **fields)
        content = (await door.post(CHAT, body)).json()["choices"][0]["message"]["content"]
        return str(content)

    assert await text(seed=-3) == await text(seed=-3)
    assert len({await text() for _ in range(4)}) == 4


async def test_log_probabilities_have_the_exact_shape(door: Door) -> None:
    """Every content token has its logprob, its bytes, and the alternatives asked for."""
    body = chat_body(logprobs=True, top_logprobs=2, max_tokens=3)
    plain = (await door.post(CHAT, body)).json()["choices"][0]["logprobs"]
    first = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -1.5, "bytes": [98]},
        ],
    }
    assert plain["content"][0] == first
    assert [entry["token"] for entry in plain["content"]] == ["a", "b", "c"]
    assert plain["refusal"] is None
    events = sse((await door.post(CHAT, body | {"stream": True})).text)[1:-1]
    streamed = [e["choices"][0]["logprobs"]["content"] for e in events if e["choices"][0]["delta"]]
    assert [entry for entries in streamed for entry in entries] == plain["content"]


async def test_the_end_token_has_no_text_and_no_logprob(door: Door) -> None:
    """What ends an answer is counted, but is not part of what is shown."""
    answer = (await door.post(CHAT, chat_body(logprobs=True))).json()
    assert len(answer["choices"][0]["logprobs"]["content"]) == len(ALPHABET)
    assert answer["usage"]["completion_tokens"] == len(ALPHABET) + 1


async def test_load_tools_can_pin_the_length(door: Door) -> None:
    """ignore_eos runs on to the limit; min_tokens keeps the end token from ending."""
    pinned = (await door.post(CHAT, chat_body(ignore_eos=True, max_tokens=40))).json()
    assert pinned["usage"]["completion_tokens"] == 40
    assert pinned["choices"][0]["finish_reason"] == "length"
    least = (await door.post(CHAT, chat_body(min_tokens=30))).json()
    assert least["usage"]["completion_tokens"] > 30


async def test_logit_bias_is_handed_on(door: Door) -> None:
    """A token made likely enough is the only one drawn."""
    answer = (await door.post(CHAT, chat_body(logit_bias={"120": 100}, max_tokens=4))).json()
    assert answer["choices"][0]["message"]["content"] == "xxxx"


async def test_roles_and_content_parts_reach_the_template(door: Door) -> None:
    """Developer counts as system, parts of text are joined; the prompt's length shows it."""
    body = chat_body()
    body["messages"] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}],
        },
        {"role": "assistant", "content": None},
    ]
    answer = (await door.post(CHAT, body)).json()
    expected = 1 + len("Be brief.") + 1 + len("Hi\n!") + 1 + 1
    assert answer["usage"]["prompt_tokens"] == expected


async def test_fields_without_a_meaning_here_are_ignored(door: Door) -> None:
    """Compatibility mode: an SDK that sends every parameter is served."""
    body = chat_body(
        max_tokens=2, user="u", metadata={"a": "b"}, store=True, tools=[{"type": "function"}],
        tool_choice="none", response_format={"type": "text"}, parallel_tool_calls=False,
        logit_bias={"foo": 0}, reasoning_effort="low", no_such_field=[1, {"deep": None}],
        temperature=None, top_p=None, n=None, stop=None, stream_options=None, service_tier=None,
    )  # fmt: skip
    response = await door.post(CHAT, body)
    assert response.status_code == 200, response.text


async def test_no_tokens_asked_for_is_an_empty_answer(door: Door) -> None:
    """max_tokens 0 is answered at once, with nothing, and costs nothing."""
    for stream in (False, True):
        response = await door.post(CHAT, chat_body(max_tokens=0, stream=stream))
        assert response.status_code == 200
    answer = (await door.post(CHAT, chat_body(max_tokens=0))).json()
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_the_served_tier_is_named_and_can_only_go_down(door: Door) -> None:
    """auto is the key's tier, a lower one can be had, a higher one is refused."""

    billed = set()

    async def served(tier: str, wanted: str) -> tuple[int, Any]:
        response = await door.post(CHAT, chat_body(max_tokens=1, service_tier=wanted), tier)
        if response.status_code == 200:
            (row,) = await door.usage_of(response.json()["id"])
            billed.add((row.tier_requested, row.tier_served))
        return response.status_code, response.json().get("service_tier")

    assert await served("premium", "auto") == (200, "priority")
    assert await served("premium", "priority") == (200, "priority")
    assert await served("premium", "default") == (200, "default")
    assert await served("free", "auto") == (200, "default")
    assert await served("free", "default") == (200, "default")
    assert (await served("free", "priority"))[0] == 403
    assert (await served("premium", "flex"))[0] == 400
    assert (await served("premium", "turbo"))[0] == 400
    assert billed == {("premium", "premium"), ("premium", "free"), ("free", "free")}


async def test_an_answer_tells_how_long_it_waited(door: Door) -> None:
    """server-timing has the time to the first token, and for plain answers queue and total."""
    plain = (await door.post(CHAT, chat_body(max_tokens=3))).headers["server-timing"]
    found = re.fullmatch(r"queue;dur=([\d.]+), ttft;dur=([\d.]+), total;dur=([\d.]+)", plain)
    assert found, plain
    queue, ttft, total = map(float, found.groups())
    assert 0 <= queue <= ttft <= total
    streamed = (await door.post(CHAT, chat_body(max_tokens=3, stream=True))).headers
    assert re.fullmatch(r"ttft;dur=[\d.]+", streamed["server-timing"])


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_names_the_served_tier_in_a_header(door: Door, stream: bool) -> None:
    """x-tiergate-tier is the tier's own name; a client's header of that name changes nothing."""
    for tier, wanted, served in [
        ("premium", "auto", "premium"),
        ("premium", "default", "free"),
        ("free", "auto", "free"),
    ]:
        body = chat_body(max_tokens=1, service_tier=wanted, stream=stream)
        response = await door.post(CHAT, body, tier, **{"x-tiergate-tier": "premium"})
        assert response.headers.get_list("x-tiergate-tier") == [served]
        text = await door.post(TEXT, text_body(max_tokens=0, stream=stream), tier)
        assert text.headers["x-tiergate-tier"] == tier
