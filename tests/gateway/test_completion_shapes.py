"""Text completions: the four forms of a prompt, echo, and their own form of log probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from door_kit import TEXT, Door, open_door, sse, text_body
from talking_executor import ALPHABET

from gateway.text import TextCodec

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


async def test_a_plain_completion_is_read_by_the_sdk(door: Door) -> None:
    """The SDK's own models read every field."""
    async with door.openai() as client:
        answer = await client.completions.create(**text_body())
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (ALPHABET, "stop", None)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("Say:")


async def test_a_streamed_completion_ends_with_reason_and_done(door: Door) -> None:
    """There is no role chunk; every chunk has text, the last a reason."""
    *chunks, last, done = sse((await door.post(TEXT, text_body(stream=True))).text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [*ALPHABET]
    assert last["choices"][0] == {
        "index": 0, "text": "", "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    assert {chunk["object"] for chunk in [*chunks, last]} == {"text_completion"}
    assert {chunk["service_tier"] for chunk in [*chunks, last]} == {"priority"}


@pytest.mark.parametrize(
    ("prompt", "tokens", "choices"),
    [
        ("abc", 3, ["def"]),
        (["abc", "x"], 4, ["def", "yz."]),
        ([97, 98], 2, ["cde"]),
        ([[97], [103, 104]], 3, ["bcd", "ijk"]),
        (["a", [98]], 2, ["bcd", "cde"]),
    ],
)
async def test_every_form_of_a_prompt(
    door: Door, prompt: Any, tokens: int, choices: list[str]
) -> None:
    """Texts and token ids, one or several; choice k belongs to prompt k."""
    answer = (await door.post(TEXT, text_body(prompt, max_tokens=3))).json()
    assert [choice["text"] for choice in answer["choices"]] == choices
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(choices)))
    assert answer["usage"]["prompt_tokens"] == tokens
    rows = await door.usage_of(answer["id"], len(choices))
    assert sum(row.prompt_tokens for row in rows) == tokens


async def test_choices_are_numbered_prompt_by_prompt(door: Door) -> None:
    """With n, the choices of the first prompt come first."""
    answer = (await door.post(TEXT, text_body(["a", "k"], n=2, max_tokens=1))).json()
    assert [choice["text"] for choice in answer["choices"]] == ["b", "b", "l", "l"]


@pytest.mark.parametrize(
    "prompt",
    [None, "", [], [[]], ["a", []], [1.5], [True], [-1], [[1], "a", None], {"a": 1}, 7, [10**9]],
)
async def test_a_prompt_that_is_none_is_refused(door: Door, prompt: Any) -> None:
    """Whatever is no prompt gets one clear error that names the field."""
    response = await door.post(TEXT, text_body(prompt))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "prompt"


async def test_log_probabilities_have_the_exact_shape(door: Door) -> None:
    """Four lists of equal length; the token drawn is always among the alternatives."""
    shown = (await door.post(TEXT, text_body(logprobs=2, max_tokens=3))).json()
    assert shown["choices"][0]["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}, {"c": -0.5, "d": -1.5}],
        "text_offset": [0, 1, 2],
    }
    none = (await door.post(TEXT, text_body(logprobs=0, max_tokens=1))).json()
    assert none["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


async def test_streamed_offsets_go_on_from_chunk_to_chunk(door: Door) -> None:
    """text_offset counts from the beginning of the answer, not of the chunk."""
    events = sse((await door.post(TEXT, text_body(logprobs=0, max_tokens=3, stream=True))).text)
    shown = [e["choices"][0]["logprobs"] for e in events[:3]]
    assert [entry["text_offset"] for entry in shown] == [[0], [1], [2]]


async def test_echo_repeats_the_prompt(door: Door) -> None:
    """The prompt's text comes first; log probabilities are those of the answer, with offsets."""
    answer = (await door.post(TEXT, text_body("abc", echo=True, max_tokens=2, logprobs=0))).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "abcde"
    assert choice["logprobs"]["tokens"] == ["d", "e"]
    assert choice["logprobs"]["token_logprobs"] == [-0.5, -0.5]
    assert choice["logprobs"]["text_offset"] == [3, 4]
    body = text_body([97], echo=True, max_tokens=2, stream=True)
    streamed = sse((await door.post(TEXT, body)).text)
    assert "".join(e["choices"][0]["text"] for e in streamed[:-1]) == "abc"


async def test_only_an_echo_of_what_fits_is_decoded(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Millions of token ids are never decoded on the event loop: they are refused before."""
    decoded: list[int] = []
    real = TextCodec.decode

    def decode(codec: TextCodec, token_ids: Sequence[int]) -> str:
        decoded.append(len(token_ids))
        return real(codec, token_ids)

    monkeypatch.setattr(TextCodec, "decode", decode)
    assert (await door.post(TEXT, text_body([97] * 100_000, echo=True))).status_code == 400
    assert (await door.post(TEXT, text_body([97], max_tokens=1))).status_code == 200
    assert decoded == []
    assert (await door.post(TEXT, text_body([97], echo=True, max_tokens=1))).status_code == 200
    assert decoded == [1]


async def test_best_of_is_refused_unless_it_means_nothing(door: Door) -> None:
    """best_of other than n would cost more than it shows; it is not supported."""
    assert (await door.post(TEXT, text_body(best_of=1, max_tokens=1))).status_code == 200
    assert (await door.post(TEXT, text_body(best_of=3))).json()["error"]["param"] == "best_of"
