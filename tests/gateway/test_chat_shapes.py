"""Chat completions as the official SDK and as raw bytes see them."""

from __future__ import annotations

from door_kit import CHAT, Door, chat_body, sse


async def test_a_plain_answer_has_the_shape_of_the_api(door: Door) -> None:
    async with door.openai() as client:
        answer = await client.chat.completions.create(**chat_body())
    (choice,) = answer.choices
    assert choice.message.content == "abcdefghijklmnopqrstuvwxyz."
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
    response = await door.post(CHAT, chat_body(stream=True), "free")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    first, *middle, last, done = sse(response.text)
    assert done == "[DONE]"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"]["content"] for c in middle] == [*"abcdefghijklmnopqrstuvwxyz."]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    chunks = [first, *middle, last]
    assert {c["service_tier"] for c in chunks} == {"default"}
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)
