"""The form of a key: how one is made, checked for typos, digested and shown; it stores nothing.

The form follows GitHub's token design (github.blog, "Behind GitHub's new authentication token
formats"): prefix, then 30 random base62 characters (178.6 bits), then the CRC32 of all before it
as 6 base62 characters. The checksum turns typos away before any database work and makes secret
scanners exact. With that much randomness a fast digest is enough; HMAC with a pepper that is not
in the database means that a stolen table cannot even confirm a leaked key.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from collections.abc import Sequence
from typing import Literal, Protocol

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_LENGTH = 30
CHECKSUM_LENGTH = 6  # 62**6 > 2**32

KEY_PATTERN = re.compile(r"tgk_(?:live|test)_[0-9A-Za-z]{36}")
ADMIN_PATTERN = re.compile(r"tga_[0-9A-Za-z]{36}")

KeyEnvironment = Literal["live", "test"]


class TokenSource(Protocol):
    """Where random characters come from; the module `secrets` is one."""

    def choice(self, seq: Sequence[str], /) -> str:
        """Return one character of `seq`."""
        ...


def generate_key(env: KeyEnvironment = "live", token_source: TokenSource = secrets) -> str:
    """Return a new API key, `tgk_live_...` or `tgk_test_...`."""
    return _generate(f"tgk_{env}_", token_source)


def generate_admin_token(token_source: TokenSource = secrets) -> str:
    """Return a new token for the operator's routes, `tga_...`."""
    return _generate("tga_", token_source)


def is_well_formed(key: str) -> bool:
    """True for an API key whose form and checksum are right; says nothing about its being known."""
    return KEY_PATTERN.fullmatch(key) is not None and _checksum_is_right(key)


def is_well_formed_admin_token(token: str) -> bool:
    """True for an admin token whose form and checksum are right."""
    return ADMIN_PATTERN.fullmatch(token) is not None and _checksum_is_right(token)


def key_digest(pepper: bytes, key: str) -> str:
    """Return HMAC-SHA-256(pepper, key) as 64 hex digits; the only form in which a key is stored."""
    return hmac.digest(pepper, key.encode(), "sha256").hex()


def display(key: str) -> tuple[str, str]:
    """Return what may be shown of a key: its prefix (`tgk_live_`) and its last four characters."""
    return key[: -(RANDOM_LENGTH + CHECKSUM_LENGTH)], key[-4:]


def _generate(prefix: str, token_source: TokenSource) -> str:
    body = prefix + "".join(token_source.choice(ALPHABET) for _ in range(RANDOM_LENGTH))
    return body + _checksum(body)


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def _checksum_is_right(key: str) -> bool:
    return key[-CHECKSUM_LENGTH:] == _checksum(key[:-CHECKSUM_LENGTH])
