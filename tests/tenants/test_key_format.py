"""Keys: their form, their checksum, and that nothing but a digest is ever kept of them."""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.keys import (
    ALPHABET,
    display,
    generate_admin_token,
    generate_key,
    is_well_formed,
    is_well_formed_admin_token,
    key_digest,
)

ROOT = Path(__file__).resolve().parents[2]

LENGTH = len("tgk_live_") + 36


class Seeded:
    """A source of characters that repeats itself, for tests only."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choice(self, seq: Sequence[str]) -> str:
        return self._random.choice(seq)


class Always:
    def __init__(self, character: str) -> None:
        self._character = character

    def choice(self, seq: Sequence[str]) -> str:
        assert self._character in seq
        return self._character


@given(st.integers(), st.sampled_from(["live", "test"]))
def test_a_new_key_has_the_published_form(seed: int, env: str) -> None:
    key = generate_key(env, Seeded(seed))
    assert re.fullmatch(r"tgk_(live|test)_[0-9A-Za-z]{36}", key)
    assert key.startswith(f"tgk_{env}_")
    assert is_well_formed(key)


def test_the_checksum_is_crc32_in_base62_with_leading_zeros() -> None:
    """Worked out by hand with another CRC32: zlib's value of the ASCII body, digits 0-9A-Za-z."""
    key = generate_key("live", Always("0"))
    body = b"tgk_live_" + b"0" * 30
    crc = 0xFFFFFFFF
    for byte in body:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    digits = [crc // 62**power % 62 for power in range(5, -1, -1)]
    assert key.encode() == body + "".join(ALPHABET[d] for d in digits).encode()


def test_small_checksums_keep_their_six_places() -> None:
    keys = (generate_key("live", Seeded(seed)) for seed in range(2000))
    # 62**5 / 2**32 = 21 % of all checksums begin with a zero.
    with_zero = [key for key in keys if key[-6] == "0"]
    assert 250 < len(with_zero) < 600
    assert all(len(key) == LENGTH and is_well_formed(key) for key in with_zero)


@given(st.integers(), st.integers(9, LENGTH - 1), st.sampled_from(ALPHABET))
def test_no_single_wrong_character_passes(seed: int, place: int, character: str) -> None:
    key = generate_key("live", Seeded(seed))
    typo = key[:place] + character + key[place + 1 :]
    assert is_well_formed(typo) == (typo == key)


@given(st.integers(), st.integers(9, LENGTH - 2))
def test_no_two_swapped_neighbours_pass(seed: int, place: int) -> None:
    key = generate_key("live", Seeded(seed))
    typo = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    assert is_well_formed(typo) == (typo == key)


@given(st.text(max_size=64))
def test_any_text_gets_an_answer(text: str) -> None:
    """Headers hold what strangers send: no text may make the check raise."""
    assert is_well_formed(text) in (True, False)
    assert not is_well_formed_admin_token(text)


@pytest.mark.parametrize("ending", ["\n", " ", "0"])
def test_nothing_may_follow_a_key(ending: str) -> None:
    assert not is_well_formed(generate_key("live", Seeded(1)) + ending)


def test_admin_tokens_and_keys_are_not_mistaken_for_one_another() -> None:
    token, key = generate_admin_token(Seeded(1)), generate_key("live", Seeded(1))
    assert is_well_formed_admin_token(token)
    assert not is_well_formed_admin_token(key)
    assert not is_well_formed(token)
    assert re.fullmatch(r"tga_[0-9A-Za-z]{36}", token)


def test_the_digest_is_hmac_sha256_under_the_pepper() -> None:
    key, pepper = generate_key("live", Seeded(3)), bytes(range(32))
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in pepper.ljust(64, b"\0")) + key.encode()).digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in pepper.ljust(64, b"\0")) + inner).hexdigest()
    assert key_digest(pepper, key) == outer
    assert hmac.compare_digest(key_digest(pepper, key), outer)
    assert key_digest(bytes(32), key) != outer


def test_what_is_shown_gives_away_four_characters() -> None:
    key = generate_key("test", Seeded(4))
    assert display(key) == ("tgk_test_", key[-4:])


def test_two_keys_of_the_default_source_differ() -> None:
    assert len({generate_key() for _ in range(100)}) == 100


def test_the_rules_for_scanners_find_every_key_and_token() -> None:
    """In the midst of a line of code; and nothing that only looks a little like one."""
    rules = tomllib.loads((ROOT / "docs" / "gitleaks.toml").read_text())["rules"]
    for made in (generate_key(), generate_key("test"), generate_admin_token()):
        line = f'KEY = "{made}"  # do not commit'
        found = [rule for rule in rules if re.search(rule["regex"], line)]
        assert len(found) == 1
        assert any(word in line for word in found[0]["keywords"])
        assert not any(re.search(rule["regex"], line.replace(made, made[:-1])) for rule in rules)
