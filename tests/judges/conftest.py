"""One gateway for all judges: the real command in a process of its own, with the built-in model.

It answers to any model's name, since the judges' own tests ask for models that they know.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from test_serve import Running, serving


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("judges") / "data"
    flags = ("--demo", "--max-model-len", "512")
    with serving(data, *flags, TIERGATE_MODEL_ALIASES="*") as running:
        yield running
