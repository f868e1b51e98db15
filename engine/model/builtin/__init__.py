"""Knows the name and the place of the model that ships with Tiergate; loads nothing."""

from __future__ import annotations

from pathlib import Path

BUILTIN_NAME = "builtin"


def builtin_path() -> Path:
    """The folder with the weights, the tokenizer and the chat template of the built-in model."""
    return Path(__file__).resolve().parent / "weights"
