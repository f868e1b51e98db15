"""Weights from a checked folder into a transformers model; it knows neither pools nor batches."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from engine.core.errors import ModelLoadError
from engine.model.checkpoint import LIBRARY_ERRORS, Checkpoint, one_line
from engine.model.hf_model import HFModel

_LAYER = re.compile(r"(^|\.)(layers|h|blocks|block)\.\d+\.")
_logger = logging.getLogger(__name__)


def load_hf_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, max_model_len: int | None
) -> HFModel:
    """Load the weights and put the model on paged attention; ModelLoadError in one line."""
    try:
        with _quiet_transformers():
            module, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                config=checkpoint.config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            module = module.to(device)
    except (*LIBRARY_ERRORS, SafetensorError) as error:
        raise ModelLoadError(
            f"{checkpoint.name} cannot be loaded by transformers {transformers.__version__}:"
            f" {one_line(error)}"
        ) from error
    _check_names(checkpoint, set(report["missing_keys"]), set(report["unexpected_keys"]))
    try:
        return HFModel(module, max_model_len)
    except LIBRARY_ERRORS as error:
        raise ModelLoadError(
            f"{checkpoint.name} loads but does not run: {one_line(error)}"
        ) from error


def _check_names(checkpoint: Checkpoint, missing: set[str], unexpected: set[str]) -> None:
    """Refuse weights that were made up, and layers that were left out; both load without error."""
    if missing:
        raise ModelLoadError(
            f"{checkpoint.name} lacks {len(missing)} of its weights, {min(missing)} for one"
        )
    layers = {name for name in unexpected if _LAYER.search(name)}
    if layers:
        raise ModelLoadError(
            f"{checkpoint.name} has {len(layers)} weights that its config has no place for,"
            f" {min(layers)} for one"
        )
    if unexpected:
        _logger.warning("%s: %d weights are not used", checkpoint.name, len(unexpected))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report off the terminal: what matters of it is raised in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
