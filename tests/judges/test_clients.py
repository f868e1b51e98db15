"""Other people's clients, each in a process of its own, hear the same from one server."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_kit import needs
from test_serve import Running, environment

HERE = Path(__file__).resolve().parent
QUESTION = "What is a KV cache?"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(gateway: Running) -> Any:
    """What the official Python client hears."""
    return gateway.client("premium").chat.completions.create(
        model="builtin",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=64,
    )


def output_of(*command: str) -> str:
    done = subprocess.run(
        command, cwd=HERE, env=environment(), text=True, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(script: str, gateway: Running, path: str) -> Any:
    url, key = gateway.ready["url"] + path, gateway.ready["keys"]["premium"]
    return json.loads(output_of(sys.executable, str(HERE / script), url, key, QUESTION))


def test_the_anthropic_sdk(gateway: Running, expected: Any) -> None:
    """Plain, streamed and counted; its errors have its own classes, types and ids."""
    needs("the package anthropic", importlib.util.find_spec("anthropic") is not None)
    told = ask("ask_anthropic.py", gateway, "")
    text = expected.choices[0].message.content
    assert (told["plain"], told["streamed"], told["final"]) == (text, text, text)
    assert told["pieces"] > 3, "a stream of one lump"
    assert told["stop_reason"] == ["end_turn", "end_turn"]
    for usage in (told["plain_usage"], told["final_usage"]):
        read = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert (read, usage["output_tokens"]) == (
            expected.usage.prompt_tokens,
            expected.usage.completion_tokens,
        )
        assert usage["service_tier"] == "priority"
    assert told["counted"] == expected.usage.prompt_tokens
    assert told["refused"] == {
        "key": ["AuthenticationError", "authentication_error", True],
        "body": ["BadRequestError", "invalid_request_error", True],
    }


def test_langchain(gateway: Running, expected: Any) -> None:
    """Through chat completions and through responses, plain and streamed, with usage."""
    needs("langchain-openai", importlib.util.find_spec("langchain_openai") is not None)
    for told in ask("ask_langchain.py", gateway, "/v1").values():
        text = expected.choices[0].message.content
        assert (told["plain"], told["streamed"]) == (text, text)
        assert told["chunks"] > 3, "a stream of one lump"
        for usage in (told["plain_usage"], told["usage"]):
            assert usage["input_tokens"] == expected.usage.prompt_tokens
            assert usage["output_tokens"] == expected.usage.completion_tokens


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_curl(gateway: Running, expected: Any, path: str) -> None:
    """Plain and streamed with nothing but curl, by both headers for keys."""
    needs("curl", shutil.which("curl") is not None)
    key = gateway.ready["keys"]["premium"]
    header = f"Authorization: Bearer {key}" if "chat" in path else f"x-api-key: {key}"
    body = {
        "model": "builtin",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 64,
    }
    text = expected.choices[0].message.content

    def curl(**more: Any) -> str:
        sent = json.dumps(body | more)
        url = gateway.ready["url"] + path
        return output_of("curl", "-sSN", "--fail", "-H", header, "--data-binary", sent, url)

    plain = json.loads(curl())
    streamed = ""
    for line in curl(stream=True).splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "chat" in path:
            streamed += event["choices"][0]["delta"].get("content") or ""
        elif event["type"] == "content_block_delta":
            streamed += event["delta"]["text"]
    if "chat" in path:
        said = plain["choices"][0]["message"]["content"]
    else:
        said = plain["content"][0]["text"]
    assert (said, streamed) == (text, text)
