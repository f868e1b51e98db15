"""The OpenAI SDK's own tests, from its source distribution, against the running server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fetch_sdk_tests import SDK
from judge_kit import needs
from openai_scope import OURS, verdict
from test_serve import Running, environment

HERE = Path(__file__).resolve().parent


def run_pytest(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the SDK's tests in a process of their own, with their own settings."""
    paths = os.pathsep.join((str(SDK), str(HERE)))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(
        [*command, "-p", "openai_key", "--rootdir", str(SDK), *arguments],
        cwd=SDK,
        env=environment(PYTHONPATH=paths, **({"JUDGE_API_KEY": "-"} | more)),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_every_test_in_scope_passes(gateway: Running) -> None:
    """Strict and loose, sync, async and aiohttp: each passes, none is skipped; all are sorted."""
    needs("the OpenAI SDK's tests (tests/judges/fetch_sdk_tests.py)", (SDK / "VERSION").exists())
    files = [f"tests/api_resources/{name}" for name in OURS]
    listed = run_pytest("--collect-only", "-q", *files)
    ids = re.findall(r"^(tests/\S+::\S+)$", listed.stdout, re.MULTILINE)
    assert len(ids) > 200, listed.stdout + listed.stderr
    wanted = [test for test in ids if verdict(test) is None]
    assert len(wanted) >= 146
    done = run_pytest(
        "-q",
        "--tb=short",
        *wanted,
        TEST_API_BASE_URL=f"{gateway.ready['url']}/v1",
        JUDGE_API_KEY=gateway.ready["keys"]["premium"],
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(rf"^{len(wanted)} passed", done.stdout, re.MULTILINE), done.stdout[-500:]
