"""The OpenAI Node SDK, a second real client, gets from the built-in model what Python's gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_serve import serving

NODE = Path(__file__).resolve().parents[1] / "node"
QUESTION = "What is a KV cache?"


def node_is_missing() -> bool:
    return shutil.which("node") is None or not (NODE / "node_modules" / "openai").is_dir()


def ask_with_node(url: str, key: str) -> dict[str, Any]:
    done = subprocess.run(
        ["node", "chat.mjs", f"{url}/v1", key, QUESTION],
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
def test_both_sdks_hear_the_same_from_both_tiers(tmp_path: Path) -> None:
    if node_is_missing():
        assert not os.environ.get("CI"), "CI must have Node and the packages of tests/node"
        pytest.skip("needs Node and `npm ci` in tests/node (tests/install-services does both)")
    with serving(tmp_path / "data", "--demo") as gateway:
        for tier, service_tier in (("premium", "priority"), ("free", "default")):
            expected = gateway.client(tier).chat.completions.create(
                model="builtin",
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=64,
            )
            text = expected.choices[0].message.content
            node = ask_with_node(gateway.ready["url"], gateway.ready["keys"][tier])
            assert (node["plain"], node["streamed"]) == (text, text)
            assert (node["plain_tier"], node["tiers"]) == (service_tier, [service_tier])
            assert expected.usage is not None
            assert node["usage"]["completion_tokens"] == expected.usage.completion_tokens
            assert node["chunks"] > 3, "a stream of one lump"
