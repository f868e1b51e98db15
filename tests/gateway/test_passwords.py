"""Digests of passwords: argon2id, salted, checked in a bounded number of threads."""

from __future__ import annotations

import asyncio

import pytest

from gateway.passwords import Passwords
from tenants.errors import InvalidValue

GOOD = "correct horse battery"


async def test_a_digest_fits_its_password_and_no_other() -> None:
    """Two digests of one password differ; neither holds it."""
    passwords = Passwords()
    one, two = await asyncio.gather(passwords.digest(GOOD), passwords.digest(GOOD))
    assert one != two
    for digest in (one, two):
        assert digest.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
        assert GOOD not in digest
        assert len(digest) <= 256  # the column's width
        assert await passwords.fits(GOOD, digest)
        assert not await passwords.fits(GOOD + " ", digest)
        assert not passwords.is_outdated(digest)


async def test_what_is_no_digest_and_nobodys_digest_never_fit() -> None:
    """A user without a password, a damaged row and a password of any length are plain refusals."""
    passwords = Passwords()
    assert not await passwords.fits(GOOD, None)
    assert not await passwords.fits(GOOD, "not a digest")
    assert not await passwords.fits("x" * 10_000_000, None)


async def test_a_digest_of_weaker_parameters_is_known_for_one() -> None:
    weak = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$4E+cyQ7mCYyzNG8Wzcmkvw"
    assert Passwords().is_outdated(weak)


@pytest.mark.parametrize("password", ["", "eleven-char", "x" * 1025])
async def test_a_password_has_a_length(password: str) -> None:
    with pytest.raises(InvalidValue, match="a password has 12 to 1024 characters"):
        await Passwords().digest(password)
