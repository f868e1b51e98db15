"""One shape for every error, one status for every cause, and nothing of the input in any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from door_kit import CHAT, TEXT, Door, chat_body, open_door, text_body
from openai import AuthenticationError, BadRequestError, NotFoundError

from gateway.logging import JsonFormatter
from tenants.keys import generate_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


SECRET = "my-secret-prompt"


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error object after checking the shape that all share."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": SECRET, "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": SECRET}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": SECRET}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [SECRET * 40]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {SECRET: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 5}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ({"service_tier": SECRET}, "service_tier"),
    ],
)  # fmt: skip
async def test_a_bad_field_is_named_and_its_value_is_not_repeated(
    door: Door, body: dict[str, Any], param: str
) -> None:
    """A 400 names the field and the rule; what was sent appears nowhere in it."""
    response = await door.post(CHAT, chat_body() | body)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert SECRET not in response.text


@pytest.mark.parametrize(
    ("stop", "rule"),
    [
        ("", "should have at least 1 character"),
        ([""], "should have at least 1 character"),
        (["a"] * 17, "should have at most 16 items"),
        ([SECRET * 40], "should have at most 256 characters"),
        (5, "should be a valid string"),
        ([5], "should be a valid string"),
    ],
)
async def test_of_a_field_with_two_forms_the_rule_is_that_of_the_form_sent(
    door: Door, stop: Any, rule: str
) -> None:
    """A list of stops is not told that it should be a string."""
    response = await door.post(CHAT, chat_body(stop=stop))
    assert rule in error_of(response)["message"]


@pytest.mark.parametrize("body", [{"model": "talker"}, {"model": "talker", "prompt": None}])
async def test_a_completion_without_a_prompt_misses_it(door: Door, body: dict[str, Any]) -> None:
    """As a chat without messages does: the code says what is wrong."""
    error = error_of(await door.post(TEXT, body))
    assert (error["code"], error["param"]) == ("missing_required_parameter", "prompt")


async def test_what_is_too_long_is_the_field_that_was_sent(door: Door) -> None:
    """`messages` of a chat, `prompt` of a completion; so for tokens that the model has not."""
    chat = error_of(await door.post(CHAT, chat_body("x" * 2000)))
    text = error_of(await door.post(TEXT, text_body("x" * 2000)))
    tokens = error_of(await door.post(TEXT, text_body() | {"prompt": [2**30]}))
    assert [e["param"] for e in (chat, text, tokens)] == ["messages", "prompt", "prompt"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[1]", b"null", b'"text"', b"{}x", b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff",
     b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}"],
)  # fmt: skip
async def test_what_is_no_json_object_is_refused(door: Door, raw: bytes) -> None:
    """Broken bytes, other JSON values and bottomless nesting all get a 400 in shape."""
    response = await door.post(CHAT, raw)
    assert response.status_code == 400
    assert error_of(response)["code"] in ("invalid_json", "missing_required_parameter")


async def test_an_unknown_model_is_a_404_that_names_the_right_one(door: Door) -> None:
    """The SDK raises NotFoundError, with the code that clients look for."""
    async with door.openai() as client:
        with pytest.raises(NotFoundError) as caught:
            await client.chat.completions.create(**chat_body() | {"model": SECRET})
    assert caught.value.code == "model_not_found"
    assert "talker" in caught.value.message
    assert SECRET not in caught.value.message


async def test_what_does_not_fit_is_told_in_numbers(door: Door) -> None:
    """Too long a prompt, or too long an answer, is a 400 that names all three numbers."""
    async with door.openai() as client:
        with pytest.raises(BadRequestError) as caught:
            await client.chat.completions.create(**chat_body("x" * 2000))
        assert caught.value.code == "context_length_exceeded"
        assert "1024" in caught.value.message
        assert "2002" in caught.value.message
        with pytest.raises(BadRequestError) as caught:
            await client.completions.create(**text_body("x" * 24, max_tokens=1001))
    assert caught.value.code == "context_length_exceeded"
    assert all(number in caught.value.message for number in ("1024", "24", "1001", "1025"))
    fits = await door.post(TEXT, text_body("x" * 24, max_tokens=1000, ignore_eos=True))
    assert fits.json()["usage"]["completion_tokens"] == 1000


async def test_a_body_over_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """413 with and without an announced length; the connection serves the next request."""
    async with open_door(tmp_path, settings={"max_body_bytes": 2048}) as door:
        big = b"[" * 50_000

        async def parts() -> Any:
            for _ in range(50):
                yield b"[" * 1000

        announced = await door.post(CHAT, big)
        chunked = await door.http.post(CHAT, content=parts(), headers=door.auth())
        for response in (announced, chunked):
            assert response.status_code == 413
            assert error_of(response)["code"] == "request_too_large"
        assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200


async def test_a_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    """A client that announces a body and sends none is answered and let go."""
    async with open_door(tmp_path, settings={"body_timeout_s": 0.2}) as door:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        key = door.keys["free"]
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        writer.write(f"{head}content-length: 99\r\n\r\n{{".encode())
        answer = await reader.read()  # to the end: the server closes
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in answer


async def test_paths_and_methods_that_are_not_there(door: Door) -> None:
    """The router's own refusals have the one shape too."""
    missing = await door.http.get("/v1/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = await door.http.get(CHAT)
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert (await door.http.get("/docs")).status_code == 404


async def test_every_failing_key_gets_the_same_401(door: Door) -> None:
    """Missing, malformed, mistyped, unknown and wrongly sent keys cannot be told apart."""
    good = door.keys["premium"]
    mistyped = good[:-1] + ("0" if good[-1] != "0" else "1")
    unknown = generate_key()
    headers: list[dict[str, Any]] = [
        {}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": f"Basic {good}"},
        {"authorization": good}, {"authorization": f"Bearer {mistyped}"},
        {"authorization": f"Bearer {unknown}"}, {"authorization": f"Bearer {good}x"},
        {"authorization": b"Bearer \xe9\xff"}, {"x-api-key": good},
    ]  # fmt: skip
    answers = [
        await door.http.post(CHAT, json=chat_body(), headers=h, params={"api_key": good})
        for h in headers
    ]
    assert {(a.status_code, a.content) for a in answers} == {(401, answers[0].content)}
    assert error_of(answers[0])["code"] == "invalid_api_key"
    assert good[-6:] not in answers[0].text
    async with door.openai() as client:
        client.api_key = unknown
        with pytest.raises(AuthenticationError):
            await client.models.list()


async def test_request_ids_are_echoed_when_they_are_sane(door: Door) -> None:
    """Every response has an id: the client's own, unless it is long or strange."""
    sane = await door.http.get("/livez", headers={"x-request-id": "trace-1.a:b_C"})
    assert sane.headers["x-request-id"] == "trace-1.a:b_C"
    for strange in ("x" * 129, "a b", 'a"b', "é".encode()):
        response = await door.http.get("/livez", headers={"x-request-id": strange})
        assert response.headers["x-request-id"].startswith("req_")
    streamed = await door.post(CHAT, chat_body(stream=True), **{"x-request-id": "mine"})
    assert streamed.headers["x-request-id"] == "mine"


async def test_a_fault_of_ours_tells_nothing_but_an_id(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 has the one shape; neither it nor the log has what the exception said."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(door.services.host, "encoder", broken)
    response = await door.post(CHAT, chat_body(), **{"x-request-id": "r-1"})
    assert response.status_code == 500
    error = error_of(response)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "r-1" in error["message"]
    assert response.headers["x-request-id"] == "r-1"
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any("ZeroDivisionError" in line for line in lines)
    assert not any(SECRET in line for line in lines)
