"""Embeddings over HTTP: read by the official client, equal to transformers' own, billed as read."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from door_kit import Door, open_door
from openai import BadRequestError
from tiny_checkpoint import write_checkpoint

from engine.core.clock import utc_now
from tenants.values import Route

EMBEDDINGS = "/v1/embeddings"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    import engine.model.loader  # takes a while: not within the start's deadline

    folder = tmp_path_factory.mktemp("embeddings")
    model = write_checkpoint(folder / "tiny")
    engine = {"executor": "model", "model": str(model), "served_name": "talker", "threads": 1}
    async with open_door(folder, engine=engine) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """A gateway whose engine knows nothing of vectors."""
    async with open_door(tmp_path_factory.mktemp("plain")) as opened:
        yield opened


def expected(door: Door, tokens: tuple[int, ...]) -> Any:
    """Return the last hidden state of transformers' own model, of length 1."""
    import torch
    from transformers import AutoModelForCausalLM

    info = door.services.host.engine.info
    assert info is not None
    model = AutoModelForCausalLM.from_pretrained(info.model_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([list(tokens)]), output_hidden_states=True)
    vector = out.hidden_states[-1][0, -1].numpy()
    return vector / np.linalg.norm(vector)


async def test_the_client_gets_the_models_own_vectors(real: Door) -> None:
    """Texts in their order, whatever the other inputs of the request are."""
    texts = ["a quick fox", "sea", "a quick fox"]
    async with real.openai() as client:
        answer = await client.embeddings.create(model="talker", input=texts)
    assert [one.index for one in answer.data] == [0, 1, 2]
    prompts = await real.services.host.encoder().codec.encode_prompts(texts)
    for one, prompt in zip(answer.data, prompts, strict=True):
        np.testing.assert_allclose(one.embedding, expected(real, prompt), atol=2e-2)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, prompts))
    assert answer.model == "talker"


async def test_base64_and_numbers_say_the_same(real: Door) -> None:
    shown = {}
    for encoding in ("float", "base64"):
        body = {"model": "talker", "input": "hello there", "encoding_format": encoding}
        answer = await real.post(EMBEDDINGS, body)
        assert answer.status_code == 200
        assert answer.json()["service_tier"] == "priority"
        shown[encoding] = answer.json()["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(shown["base64"]), "<f4")
    np.testing.assert_array_equal(vector, np.array(shown["float"], np.float32))
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4)


async def test_token_ids_are_taken_as_they_are(real: Door) -> None:
    (tokens,) = await real.services.host.encoder().codec.encode_prompts(["some words"])
    bodies = [{"model": "talker", "input": sent} for sent in ("some words", list(tokens))]
    answers = [(await real.post(EMBEDDINGS, body)).json() for body in bodies]
    assert answers[0]["data"] == answers[1]["data"]
    assert answers[0]["usage"] == answers[1]["usage"]


async def test_the_prompt_is_billed_and_no_answer(real: Door) -> None:
    """A row for each input, at the price of what was read."""
    body = {"model": "talker", "input": ["one", "and another"]}
    answer = await real.post(EMBEDDINGS, body)
    request_id = answer.headers["x-request-id"]
    story = await real.http.get(
        f"/admin/api/requests/{request_id}",
        headers={"authorization": f"Bearer {real.admin_token}"},
    )
    answer_id = story.json()["id"]
    rows = await real.usage_of(answer_id, 2)
    assert sum(row.prompt_tokens for row in rows) == answer.json()["usage"]["prompt_tokens"]
    assert [row.output_tokens for row in rows] == [0, 0]
    assert {row.finish_reason for row in rows} == {"stop"}
    await real.idle()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": ["a"] * 257}, "input"),
        ({"input": ""}, "input"),
        ({"input": "a", "dimensions": 7}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a" * 5000}, "input"),
        ({"input": [9999999]}, "input"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    real: Door, fields: dict[str, Any], param: str
) -> None:
    answer = await real.post(EMBEDDINGS, {"model": "talker"} | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


async def test_the_longest_input_is_the_one_that_is_named(real: Door) -> None:
    """One token more is refused with the limit that holds, and speaks of no answer."""
    info = real.services.host.engine.info
    assert info is not None
    most = min(info.max_model_len, info.num_blocks * info.block_size) - 1
    fits = await real.post(EMBEDDINGS, {"model": "talker", "input": [5] * most})
    assert fits.status_code == 200, fits.text
    assert fits.json()["usage"]["prompt_tokens"] == most
    error = (await real.post(EMBEDDINGS, {"model": "talker", "input": [5] * (most + 1)})).json()
    assert error["error"]["code"] == "context_length_exceeded"
    assert f"at most {most} tokens" in error["error"]["message"]
    assert "answer" not in error["error"]["message"]


@pytest.mark.parametrize("fields", [{}, {"input": None}])
async def test_a_request_without_input_misses_it(real: Door, fields: dict[str, Any]) -> None:
    answer = await real.post(EMBEDDINGS, {"model": "talker"} | fields)
    assert answer.json()["error"]["code"] == "missing_required_parameter"


async def test_a_key_for_chats_alone_makes_no_embeddings(real: Door) -> None:
    issued = await real.ledger.repository.create_key(
        "free-tenant", utc_now(), "chats-only", scopes=[Route.CHAT]
    )
    headers = {"authorization": f"Bearer {issued.plaintext}"}
    body = {"model": "talker", "input": "a"}
    answer = await real.http.post(EMBEDDINGS, json=body, headers=headers)
    assert answer.status_code == 403


async def test_an_engine_without_vectors_says_so(plain: Door) -> None:
    async with plain.openai() as client:
        with pytest.raises(BadRequestError, match="makes no embeddings"):
            await client.embeddings.create(model="talker", input="a")
