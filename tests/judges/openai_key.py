"""A pytest plugin: the SDK's tests run unmodified, but with a key that the server knows."""

from __future__ import annotations

import os
import sys


def pytest_sessionstart() -> None:
    conftest = sys.modules["tests.conftest"]
    conftest.api_key = os.environ["JUDGE_API_KEY"]  # type: ignore[attr-defined]
