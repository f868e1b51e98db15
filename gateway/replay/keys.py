"""Which API key plays which tier, from a flag, a variable or a file; keys are never written out.

`premium=tgk_...,free=tgk_...`; `-` is no key at all, for servers that ask for none. A tier named
more than once has several keys, and its tenants share them in order. A file holds the same, with a
line for each, or JSON: an object of tiers, or the ready file of `tiergate serve`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NO_KEY = "-"
HIDDEN = "***"
MOST_KEYS = 10_000

Keys = Mapping[str, Sequence[str | None]]


class KeysError(ValueError):
    """The keys cannot be used; one sentence says why, and shows none of them."""


def parse_keys(text: str, where: str = "--keys") -> dict[str, list[str | None]]:
    """Return keys by tier of `TIER=KEY` with commas or line ends between; raises KeysError."""
    pairs = []
    for place, part in enumerate(text.replace("\n", ",").split(","), 1):
        part = part.strip()
        if not part or part.startswith("#"):
            continue
        tier, equals, key = part.partition("=")
        if not equals:
            raise KeysError(f"{where}: entry {place} must be TIER=KEY")
        pairs.append((tier.strip(), key.strip()))
    return _keys(pairs, where)


def read_keys(file: str) -> dict[str, list[str | None]]:
    """Return keys by tier from a file; raises KeysError."""
    where = f"--keys-file {file}"
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise KeysError(f"{where}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise KeysError(f"{where}: not UTF-8 text") from None
    if not text.lstrip().startswith("{"):
        return parse_keys(text, where)
    try:
        found = json.loads(text)
    except ValueError:
        raise KeysError(f"{where}: begins like JSON and is none") from None
    tiers = found.get("keys", found)
    if not isinstance(tiers, dict):
        raise KeysError(f"{where}: must hold an object of tiers")
    pairs = []
    for tier, keys in tiers.items():
        for key in keys if isinstance(keys, list) else [keys]:
            if not isinstance(key, str):
                raise KeysError(f"{where}: the key of tier {tier!r:.40} must be a text")
            pairs.append((tier, key.strip()))
    return _keys(pairs, where)


def _keys(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for tier, key in pairs:
        if not tier or not key:
            raise KeysError(f"{where}: a tier without a key, or a key without a tier")
        # It becomes part of a header.
        if not key.isascii() or not key.isprintable() or " " in key:
            raise KeysError(f"{where}: the key of tier {tier!r:.40} has characters no key has")
        found.setdefault(tier, []).append(None if key == NO_KEY else key)
    if not found:
        raise KeysError(f"{where}: there is no key")
    if sum(map(len, found.values())) > MOST_KEYS:
        raise KeysError(f"{where}: more than {MOST_KEYS} keys")
    return found


def check_tiers(keys: Keys, tiers: Sequence[str]) -> None:
    """Raise KeysError unless there are keys for these tiers, and for no other."""
    for tier in tiers:
        if tier not in keys:
            raise KeysError(f"--keys: there is none for tier {tier!r}")
    for tier in keys:
        if tier not in tiers:
            raise KeysError(f"--keys: {tier!r:.40} is no tier; there are {', '.join(tiers)}")


class Redactor:
    """Takes keys out of a server's words before they are shown."""

    def __init__(self, keys: Keys) -> None:
        known = {key for some in keys.values() for key in some if key is not None}
        self._keys = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without any key."""
        for key in self._keys:
            text = text.replace(key, HIDDEN)
        return text
