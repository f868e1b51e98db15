"""Keeps the secret that key digests are made with, outside the database; it knows no key.

The file is made once, is readable by its owner only, and is never overwritten: without it no key
of the ledger can be recognised any more.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from tenants.errors import PepperUnusable

PEPPER_BYTES = 32


@dataclass(frozen=True, slots=True)
class Pepper:
    """The secret, and an id that tells one secret from another without giving it away."""

    id: str
    secret: bytes = field(repr=False)


def make_pepper(secret: bytes) -> Pepper:
    """Return the pepper made of `secret`; its id is the start of a digest of it."""
    digest = hashlib.sha256(b"tiergate pepper id\0" + secret).hexdigest()
    return Pepper(id=digest[:12], secret=secret)


def load_pepper(path: Path) -> Pepper:
    """Read the pepper file; raises `PepperUnusable` when it is missing, exposed or damaged."""
    try:
        mode = path.stat().st_mode
        written = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise PepperUnusable(f"there is no pepper file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PepperUnusable(f"pepper file {path} cannot be read: {error}") from None
    if mode & 0o077:
        raise PepperUnusable(f"pepper file {path} can be read by others: chmod 600 {path}")
    try:
        secret = bytes.fromhex(written)
    except ValueError:
        secret = b""
    if len(secret) < PEPPER_BYTES:
        raise PepperUnusable(f"pepper file {path} is damaged: restore it from a backup")
    return make_pepper(secret)


def load_or_create_pepper(path: Path) -> Pepper:
    """Read the pepper file, making it first where there is none; safe among several processes."""
    if not path.exists():
        _create(path)
    return load_pepper(path)


def _create(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise PepperUnusable(f"pepper file {path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(PEPPER_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link appears whole or not at all, and never replaces a file that came first.
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise PepperUnusable(f"pepper file {path} cannot be written: {error.strerror}") from None
    finally:
        os.unlink(draft)
