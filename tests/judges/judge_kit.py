"""What judges do when something they need is not there."""

from __future__ import annotations

import os

import pytest


def needs(thing: str, is_there: bool) -> None:
    """Skip a judge that is not installed; in CI it must be."""
    if is_there:
        return
    assert not os.environ.get("CI"), f"CI must have {thing}"
    pytest.skip(f"needs {thing} (`make test` brings it)")
