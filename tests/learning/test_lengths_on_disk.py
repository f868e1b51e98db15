"""What was learned as a file: a round trip, no text in it, and every kind of bad file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import stat
from pathlib import Path

import numpy as np
import pytest
from length_scenes import KINDS, THINGS, ask, serve

from engine.learning import state
from engine.learning.cold import PRIOR
from engine.learning.learner import Learner
from engine.learning.predictor import LearnedPredictor
from engine.learning.rows import StateError, pack_rows, unpack
from engine.learning.scopes import Sharing

SHARINGS: tuple[Sharing, ...] = ("tenant", "all")


def learned(sharing: Sharing = "tenant", count: int = 60) -> Learner:
    """A learner that two tenants have taught, with a model of one of them at least."""
    predictor = LearnedPredictor(sharing=sharing, every=1)
    rng = random.Random(0)
    for tenant in ("acme", "other"):
        serve(predictor, rng, count, tenant)
    return predictor._learner


def content(fingerprint: str = "model-a") -> bytes:
    return state.to_bytes(learned(), fingerprint)


def with_header(data: bytes, **changes: object) -> bytes:
    """The same file with other fields in its header, and a digest that fits."""
    body = data[len(state.MAGIC) + 32 :]
    size = int.from_bytes(body[:8], "big")
    header = json.loads(body[8 : 8 + size]) | changes
    head = json.dumps(header).encode()
    body = len(head).to_bytes(8, "big") + head + body[8 + size :]
    return state.MAGIC + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize("sharing", SHARINGS)
def test_what_was_learned_comes_back(tmp_path: Path, sharing: Sharing) -> None:
    """The same guesses for old tenants and new ones, and it goes on learning."""
    first = learned(sharing)
    state.save(tmp_path, "model-a", state.to_bytes(first, "model-a"))
    other = state.load(tmp_path, "model-a", sharing)
    assert other is not None
    assert other.scopes.num_rows == first.scopes.num_rows == 120
    for seed in range(30):
        for tenant in ("acme", "other", "newcomer"):
            question, _ = ask(random.Random(seed), tenant)
            one, two = (learner.ask(question) for learner in (first, other))
            assert two.cold.log == pytest.approx(one.cold.log, abs=1e-4)
            assert (two.modelled is None) == (one.modelled is None)
            if one.modelled is not None and two.modelled is not None:
                assert two.modelled.log == pytest.approx(one.modelled.log, abs=0.02)
    assert not any(scope.is_due for _, scope in other.scopes)


def test_no_word_of_a_prompt_is_in_the_file(tmp_path: Path) -> None:
    """Neither as it is nor inside its packed parts; names of tenants are."""
    data = content()
    state.save(tmp_path, "model-a", data)
    stored = state.file_of(tmp_path, "model-a").read_bytes()
    body = stored[len(state.MAGIC) + 40 :]
    unpacked = [stored]
    for _, scope in learned().scopes:
        unpacked += [np.asarray(a).tobytes() for a in unpack(pack_rows(list(scope.rows))).values()]
    words = {word for text in (*KINDS, *THINGS) for word in text.split() if len(word) > 3}
    assert len(words) > 12
    for word in words:
        for part in unpacked:
            assert word.strip("{}?.").lower().encode() not in part.lower()
    assert b"acme" in body


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """Lengths of tenants' answers are nobody else's business; no half-written file is left."""
    folder = tmp_path / "made" / "on the way"
    state.save(folder, "model-a", b"x")
    path = state.file_of(folder, "model-a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in folder.iterdir()] == [path.name]


BAD = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "foreign": lambda data: b"PK\x03\x04" + data,
    "version": lambda data: with_header(data, version=99),
    "other model": lambda data: with_header(data, fingerprint="model-b"),
    "sharing": lambda data: with_header(data, sharing="all"),
    "no scopes": lambda data: with_header(data, scopes=None),
    "scopes of nothing": lambda data: with_header(data, scopes=[{"key": "a"}]),
    "header is a list": lambda data: with_header(data, histories=[3]),
    "parts missing": lambda data: with_header(
        data, scopes=[{"key": "a", "epoch": 0, "rows_bytes": 1 << 40, "model_bytes": 0}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_set_aside_with_one_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A cold start, the file kept under another name, and a good one written in its place."""
    path = state.file_of(tmp_path, "model-a")
    bad = BAD[kind](content())
    path.write_bytes(bad)
    with pytest.raises(StateError):
        state.load(tmp_path, "model-a", "tenant")
    with caplog.at_level(logging.WARNING):
        predictor = LearnedPredictor("model-a", folder=tmp_path)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "learned anew" in message
    assert str(path) in message
    (aside,) = tmp_path.iterdir()
    assert aside.name in message
    assert aside.read_bytes() == bad
    question, _ = ask(random.Random(0))
    assert predictor.predict("a", question) == PRIOR.estimate(4096)
    predictor._save()
    assert state.load(tmp_path, "model-a", "tenant") is not None


def test_bad_files_are_kept_in_a_bounded_number(tmp_path: Path) -> None:
    """The oldest is written over."""
    for number in range(state.MOST_ASIDE + 2):
        state.file_of(tmp_path, "m").write_bytes(f"bad {number}".encode())
        aside = state.set_aside(tmp_path, "m")
        assert aside is not None
        os.utime(aside, (number, number))
    kept = sorted(path.read_bytes() for path in tmp_path.iterdir())
    assert kept == [b"bad 2", b"bad 3", b"bad 4"]


def test_another_model_knows_nothing_of_this_one(tmp_path: Path) -> None:
    """Each has a file of its own, and finds it again when it is served again."""
    state.save(tmp_path, "model-a", content("model-a"))
    question, _ = ask(random.Random(3))
    other = LearnedPredictor("model-b", folder=tmp_path)
    assert other.predict("x", question) == PRIOR.estimate(4096)
    same = LearnedPredictor("model-a", folder=tmp_path)
    assert same.predict("x", question) != PRIOR.estimate(4096)


def test_files_of_models_long_gone_are_removed(tmp_path: Path) -> None:
    """The newest few are kept, and always the one just written."""
    for number in range(state.MOST_MODELS + 3):
        state.save(tmp_path, f"model-{number}", b"x")
        path = state.file_of(tmp_path, f"model-{number}")
        os.utime(path, (1000 - number, 1000 - number))
    assert len(list(tmp_path.iterdir())) == state.MOST_MODELS
    assert path.exists()


def test_two_installations_do_not_keep_the_same_grams() -> None:
    """Without the salt nobody can try out words; it is drawn anew for each cold start."""
    assert len({state.new_salt() for _ in range(20)}) == 20
    question, _ = ask(random.Random(0))
    one, other = (Learner("tenant", salt).ask(question) for salt in (1, 2))
    assert set(one.features.grams.tolist()) != set(other.features.grams.tolist())
    assert state.from_bytes(content(), "model-a", "tenant").salt == learned().salt
