"""A checkpoint on disk, checked before anything is loaded; it knows files, not tensors or devices.

Every fault that can be told from names, sizes and headers is told here in one line, because the
same fault found halfway through loading comes as a page of traceback or as random weights.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.utils import cached_file

from engine.core.errors import ModelLoadError
from engine.model.builtin import BUILTIN_NAME, builtin_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TORCH_FILES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_BESIDE_WEIGHTS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
# What broken configs and files raise inside transformers; anything else is a bug and stays one.
LIBRARY_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    StrictDataclassError,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose files are complete; `num_weights` counts the numbers in its weight files."""

    name: str
    path: Path
    config: Any  # transformers' config object
    num_weights: int


def one_line(error: BaseException) -> str:
    """Return a library's message as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"


def open_checkpoint(model: str) -> Checkpoint:
    """Find `model` ("builtin", a folder, or a hub id) and check what lies there.

    Raises ModelLoadError with one line if it does not exist, is incomplete or cannot be read.
    """
    path = _locate(model)
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"{path} holds no config.json: it is not a model folder")
    config = _read_config(path)
    return Checkpoint(model, path, config, _count_weights(path))


def _locate(model: str) -> Path:
    if model == BUILTIN_NAME:
        path = builtin_path()
        if not path.is_dir():
            raise ModelLoadError("the built-in model has no weights: run `make train-builtin`")
        return path
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{model} is a file; the model is given as its folder")
    if not _HUB_ID.fullmatch(model):
        raise ModelLoadError(f"{model} does not exist")
    return _fetch(model)


def _fetch(model: str) -> Path:
    """Bring a hub model's files into the local cache and return their folder."""
    try:
        config = Path(str(cached_file(model, "config.json")))
        index = cached_file(model, _INDEX, _raise_exceptions_for_missing_entries=False)
        names = sorted(set(_weight_map(Path(index)).values())) if index else [_SINGLE]
        for name in names:
            cached_file(model, name)
        for name in _BESIDE_WEIGHTS:
            cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ModelLoadError(
            f"{model} is no folder here and the hub did not give it: {one_line(error)}"
        ) from error
    return config.parent


def _read_config(path: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except LIBRARY_ERRORS as error:
        raise ModelLoadError(f"{path}/config.json cannot be used: {one_line(error)}") from error


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{index} is not a weight index: {one_line(error)}") from error
    if not isinstance(weight_map, dict):
        raise ModelLoadError(f"{index} is not a weight index: weight_map is not a table")
    return weight_map


def _count_weights(path: Path) -> int:
    """Check every weight file and return how many numbers they hold."""
    if (path / _INDEX).is_file():
        files = [path / name for name in sorted(set(_weight_map(path / _INDEX).values()))]
    elif (path / _SINGLE).is_file():
        files = [path / _SINGLE]
    elif any((path / name).is_file() for name in _TORCH_FILES):
        raise ModelLoadError(
            f"{path} holds pickled weights (pytorch_model.bin), which can run code when read:"
            " convert them to safetensors"
        )
    else:
        raise ModelLoadError(f"{path} holds no {_SINGLE}: the weights are missing")
    for file in files:
        if not file.is_file():
            raise ModelLoadError(f"{file} is missing, though {_INDEX} names it")
    return sum(_check_safetensors(file) for file in files)


def _check_safetensors(file: Path) -> int:
    """Check one file's header against its size; return how many numbers it holds."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise ModelLoadError(f"{file} is a git-lfs pointer, not weights: run `git lfs pull`")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES + 1
        if length > _MAX_HEADER_BYTES:
            raise ModelLoadError(f"{file} is not a safetensors file, or is damaged")
        header = stream.read(length)
    try:
        tensors = json.loads(header) if len(header) == length else None
        if tensors is None:
            raise ModelLoadError(f"{file} is truncated: it ends within its header at {size} bytes")
        tensors.pop("__metadata__", None)
        data_end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
        count: int = sum(math.prod(t["shape"]) for t in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelLoadError(f"{file} has a damaged header: {one_line(error)}") from error
    expected = 8 + length + data_end
    if size < expected:
        raise ModelLoadError(f"{file} is truncated: {size} of {expected} bytes")
    if size > expected:
        raise ModelLoadError(f"{file} is damaged: {size} bytes where {expected} belong")
    return count
