"""Digests and checks the passwords of users; who they are and where digests lie is not known here.

Argon2id with the parameters of RFC 9106 for little memory (64 MiB, 3 passes, 4 lanes): about a
tenth of a second, which is what a guess costs as well. So it runs in threads, few at a time: logins
must not be a way to use up a machine. An unknown user's login takes as long as a known one's.
"""

from __future__ import annotations

import asyncio
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from tenants.errors import InvalidValue

MIN_LENGTH = 12
MAX_LENGTH = 1024
MAX_AT_ONCE = 2


class Passwords:
    """Makes and checks digests; used from one event loop."""

    def __init__(self, at_once: int = MAX_AT_ONCE) -> None:
        self._hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._turns = asyncio.Semaphore(at_once)
        self._nobodys = ""

    async def digest(self, password: str) -> str:
        """Return the digest to keep; raises `InvalidValue` for a password too short or too long."""
        check_password(password)
        async with self._turns:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def fits(self, password: str, digest: str | None) -> bool:
        """True where `password` is the one of `digest`; None is checked as long, and never fits."""
        if len(password) > MAX_LENGTH:
            return False
        async with self._turns:
            if not self._nobodys:  # made for whomever comes first: its time must not tell of whom
                self._nobodys = await asyncio.to_thread(self._hasher.hash, secrets.token_urlsafe())
            if digest is None:
                await asyncio.to_thread(self._verify, self._nobodys, password)
                return False
            return await asyncio.to_thread(self._verify, digest, password)

    def is_outdated(self, digest: str) -> bool:
        """True for a digest made with other parameters: make a new one at the next login."""
        return self._hasher.check_needs_rehash(digest)

    def _verify(self, digest: str, password: str) -> bool:
        try:
            return self._hasher.verify(digest, password)
        except (VerificationError, InvalidHashError):
            return False


def check_password(password: str) -> None:
    """Raise `InvalidValue` for a password that is too short or too long; nothing else is asked."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidValue(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters")
