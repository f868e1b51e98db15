"""Fixtures of the model's tests: one core, quiet libraries, tiny checkpoints made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import random_model, tiny_config
from transformers.utils import logging as transformers_logging

from engine.model.kernels.native import NativeKernels, load_native


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models run faster on one core than on many, and the machine is not ours alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def native() -> NativeKernels | None:
    """The compiled CPU kernels; None on a machine without a compiler."""
    return load_native()


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A loadable checkpoint of a tiny llama; each test may damage its own."""
    folder = tmp_path / "llama"
    random_model(tiny_config("llama")).save_pretrained(folder)
    return folder
