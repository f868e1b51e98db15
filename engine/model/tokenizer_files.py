"""Reads what a model's folder says about its tokenizer; it tokenises nothing.

The files are those `save_pretrained` of transformers writes, old and new: tokenizer.json,
tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
chat_template.jinja (or .json), additional_chat_templates/*.jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.errors import ModelLoadError

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The folder's contents; texts as written, nothing resolved to ids."""

    folder: Path
    tokenizer_json: str | None
    special_tokens: Mapping[str, str]  # bos_token and the like
    extra_special_tokens: tuple[str, ...]
    chat_templates: Mapping[str, str]  # "default" and others, such as "tool_use"
    end_ids: tuple[int, ...]  # from generation_config.json, or else config.json

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read a folder; raises `ModelLoadError` for one that is missing or broken."""
        if not folder.is_dir():
            raise ModelLoadError(f"{folder} is not a folder with a model")
        config = _object(folder / "tokenizer_config.json")
        # Older folders keep the named tokens in a file of their own, which then has precedence.
        named = config | ({} if "added_tokens_decoder" in config else _map_file(folder))
        path = folder / "tokenizer.json"
        text = _text(path) if path.exists() else None
        if text is not None and not isinstance(_parsed(path, text).get("model"), dict):
            raise ModelLoadError(f"{path} holds no tokenizer")
        extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
        values = extra.values() if isinstance(extra, dict) else extra
        return cls(
            folder=folder,
            tokenizer_json=text,
            special_tokens={
                name: token for name in _NAMED if (token := _token_text(named.get(name)))
            },
            extra_special_tokens=tuple(token for item in values if (token := _token_text(item))),
            chat_templates=_chat_templates(folder, config),
            end_ids=_end_ids(folder),
        )


def _map_file(folder: Path) -> dict[str, Any]:
    return _object(folder / "special_tokens_map.json")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object")
    return value


def _object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, an empty one where there is no file."""
    return _parsed(path, _text(path)) if path.exists() else {}


def _token_text(value: Any) -> str:
    """Return a token's text, given plainly or as an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; files of their own have precedence over the configuration."""
    found: dict[str, str] = {}
    written = config.get("chat_template")
    if isinstance(written, str):
        found["default"] = written
    elif isinstance(written, list):
        found |= {item["name"]: item["template"] for item in written}
    legacy = _object(folder / "chat_template.json").get("chat_template")
    if isinstance(legacy, str):
        found["default"] = legacy
    single = folder / "chat_template.jinja"
    if single.exists():
        found["default"] = _text(single)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _text(path)
    return found


def _end_ids(folder: Path) -> tuple[int, ...]:
    """Return the end tokens' ids: what generation stops at is the generation file's to say."""
    for name in ("generation_config.json", "config.json"):
        value = _object(folder / name).get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (value,)
    return ()
