"""What one token contributes to a text, read from a tokenizer's decoder; it holds no stream.

Three kinds of decoders matter for streaming. *Byte-level* BPE (GPT-2, Llama 3, Qwen) writes each
byte as one printable character. *Byte fallback* (Llama 2, Mistral, Gemma) has words with "▁" for
spaces, and tokens such as <0xF0> for the bytes of what the vocabulary lacks. All others (WordPiece,
Metaspace, ...) never split a character over tokens unless they too have <0x..> tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any


class DecoderKind(Enum):
    """How tokens become text."""

    BYTE_LEVEL = "byte_level"
    BYTE_FALLBACK = "byte_fallback"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A decoder's kind and, for byte fallback, its parameters."""

    kind: DecoderKind
    replacements: tuple[tuple[str, str], ...] = ()  # applied in order to every word
    strip: str = ""  # the character taken off the very start of a text ...
    strip_count: int = 0  # ... at most this often

    @classmethod
    def of(cls, state: bytes | None) -> DecoderShape:
        """Read the JSON state of a `tokenizers` decoder; None stands for no decoder."""
        if state is None:
            return cls(DecoderKind.OTHER)
        tree = json.loads(state)
        steps = tree["decoders"] if tree["type"] == "Sequence" else [tree]
        if [step["type"] for step in steps] == ["ByteLevel"]:
            return cls(DecoderKind.BYTE_LEVEL)
        return cls._byte_fallback(steps) or cls(DecoderKind.OTHER)

    @classmethod
    def _byte_fallback(cls, steps: list[dict[str, Any]]) -> DecoderShape | None:
        """Return the shape of: Replace of texts, ByteFallback, Fuse, Strip; None for others."""
        steps = list(steps)
        replacements = []
        while steps and steps[0]["type"] == "Replace":
            step = steps.pop(0)
            if "String" not in step["pattern"]:
                return None
            replacements.append((step["pattern"]["String"], step["content"]))
        kinds = [step["type"] for step in steps]
        if kinds in (["ByteFallback"], ["ByteFallback", "Fuse"]):
            return cls(DecoderKind.BYTE_FALLBACK, tuple(replacements))
        if kinds == ["ByteFallback", "Fuse", "Strip"] and steps[2]["stop"] == 0:
            strip = steps[2]
            return cls(
                DecoderKind.BYTE_FALLBACK, tuple(replacements), strip["content"], strip["start"]
            )
        return None

    def replaced(self, token: str) -> str:
        """Return the token after the replacements ("▁" to a space, as a rule)."""
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_of(token: str) -> int | None:
    """Return the byte that a token such as <0x0A> stands for, None for all others."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


def _byte_characters() -> dict[str, int]:
    """Return GPT-2's table: printable Latin-1 stands for itself, the rest from U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes a byte-level token stands for.

    A token with a character outside the table (an added token with a space in it, for example)
    stands for its own UTF-8, as in the `tokenizers` library.
    """
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()
