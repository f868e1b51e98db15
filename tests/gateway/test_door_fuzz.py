"""Whatever JSON is sent, the answer is good or an error in shape, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio
from door_kit import CHAT, TEXT, Door, open_door
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.schemas import ChatBody, CompletionBody, parse_body

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    options = {"step_s": 0}
    async with open_door(tmp_path_factory.mktemp("door"), options=options) as opened:
        yield opened


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
SMALL = st.integers(-1, 30)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant", "tool"])},
    optional={
        "content": TEXTS
        | st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from(["text", "refusal"])},
                optional={"text": TEXTS, "refusal": TEXTS},
            ),
            max_size=2,
        ),
        "name": TEXTS,
    },
)
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": SMALL,
    "min_tokens": st.integers(0, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": SMALL,
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 2),
    "logit_bias": st.dictionaries(st.integers(0, 270).map(str), st.integers(-100, 100)),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(0, 9),
    "stop": TEXTS | st.lists(TEXTS, max_size=17),
    "stop_token_ids": st.lists(st.integers(0, 300), max_size=3),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "service_tier": st.sampled_from(["auto", "default", "flex", "priority"]),
    "user": JSON,
    "tools": JSON,
}
CHAT_FIELDS = {
    "max_completion_tokens": SMALL,
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 21),
}
TEXT_FIELDS = {
    "echo": st.booleans(),
    "best_of": st.integers(0, 9),
    "logprobs": st.integers(0, 21),
}
PROMPTS = (
    TEXTS
    | st.lists(TEXTS, max_size=3)
    | st.lists(st.integers(0, 270), max_size=5)
    | st.lists(st.lists(SMALL, max_size=3), max_size=3)
)


def bodies(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Bodies of which about half are good; in the others one field is any JSON at all."""
    fields = SHARED | optional
    few = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries(required | {name: fields[name] for name in names})
    )
    spoilt = st.tuples(few, st.sampled_from(sorted({*required, *fields})), JSON).map(
        lambda parts: parts[0] | {parts[1]: parts[2]}
    )
    return few | spoilt


MODEL = st.just("talker")
CHATS = bodies({"model": MODEL, "messages": st.lists(MESSAGE, max_size=3)}, CHAT_FIELDS)
COMPLETIONS = bodies({"model": MODEL, "prompt": PROMPTS}, TEXT_FIELDS)


async def judge(door: Door, path: str, body: Any, statuses: Counter[int]) -> None:
    """Send a body; good answers parse, bad ones have the one shape."""
    if isinstance(body, dict) and not isinstance(body.get("max_tokens"), int):
        body["max_tokens"] = 20  # else many answers would run to the end of the context
    response = await door.post(path, orjson.dumps(body))
    statuses[response.status_code] += 1
    if response.status_code == 200:
        if response.headers["content-type"].startswith("text/event-stream"):
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.json()["choices"]
        return
    assert 400 <= response.status_code < 500, (body, response.text)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def run(door: Door, path: str, body: Any, statuses: Counter[int]) -> None:
    """Run in the module's loop from hypothesis' synchronous call, by way of a thread."""
    assert door.server.loop is not None
    judged = asyncio.run_coroutine_threadsafe(judge(door, path, body, statuses), door.server.loop)
    judged.result(60)


@pytest.mark.parametrize(
    ("path", "tried"),
    [(CHAT, CHATS), (TEXT, COMPLETIONS), (CHAT, JSON)],
    ids=["chat", "completions", "anything"],
)
async def test_no_body_makes_the_door_fail(
    door: Door, path: str, tried: st.SearchStrategy[Any]
) -> None:
    """Any JSON body gives 2xx, or 4xx in shape; never a 5xx, and no seat stays taken."""
    statuses: Counter[int] = Counter()

    @FUZZ
    @given(tried)
    def attempt(body: Any) -> None:
        run(door, path, body, statuses)

    await asyncio.to_thread(attempt)
    assert statuses[400]
    assert statuses[200] or tried is JSON  # the good ones are tried too
    await door.idle()


BOMBS = {
    CHAT: '{"model": "talker", "messages": [{"role": "user", "content": "x"}],'
    ' "max_tokens": 1, %s}',
    "/v1/messages": '{"model": "talker", "messages": [{"role": "user", "content": "x"}],'
    ' "max_tokens": 1, %s}',
    "/v1/responses": '{"model": "talker", "input": "x", "max_output_tokens": 1, %s}',
}
PLACES = (
    '"metadata": {"a": MARK}',
    '"tool_choice": "none", "tools": [{"type": "function", "name": "f", "input_schema": MARK,'
    ' "parameters": MARK, "function": {"name": "f", "parameters": MARK}}]',
    '"tool_choice": {"type": "none"}, "tools": [{"name": "f", "input_schema": MARK}]',
    '"text": {"format": {"type": "text", "schema": MARK}}',
    '"conversation": MARK',
    '"output_config": {"format": {"type": "json_schema", "schema": MARK}}',
    '"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n",'
    ' "input": MARK}]}, {"role": "user", "content": "x"}]',
    '"unknown": MARK',
)


@pytest.mark.parametrize("path", sorted(BOMBS))
@pytest.mark.parametrize("levels", [100, 300, 900, 50_000])
async def test_no_depth_of_json_makes_a_route_fail(door: Door, path: str, levels: int) -> None:
    """Wherever a body may hold any JSON: however deep it is, it is served or refused in shape."""
    deep = '{"a":' * levels + "1" + "}" * levels
    for place in PLACES:
        reply = await door.post(path, (BOMBS[path] % place.replace("MARK", deep)).encode())
        assert reply.status_code in (200, 400), (place, reply.text)
    await door.idle()


@pytest.mark.parametrize("body_type", [ChatBody, CompletionBody])
async def test_no_bytes_make_the_parser_fail(body_type: Any) -> None:
    """Any bytes at all are either a body or an ApiError with a 400."""

    @settings(max_examples=400)
    @given(st.binary(max_size=200) | CHATS.map(orjson.dumps) | COMPLETIONS.map(orjson.dumps))
    def attempt(raw: bytes) -> None:
        parse: Callable[..., Any] = parse_body
        refused: ApiError | None = None
        try:
            parse(raw, body_type)
        except ApiError as error:
            refused = error
        assert refused is None or refused.spec.status == 400

    await asyncio.to_thread(attempt)
