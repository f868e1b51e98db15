"""What was learned as a file: a round trip, no text in it, and every kind of bad file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import random
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from length_scenes import KINDS, THINGS, ask, serve

from engine.learning import scopes as scopes_module
from engine.learning import state
from engine.learning.cold import PRIOR
from engine.learning.features import NUM_NUMBERS
from engine.learning.grams import gram_key
from engine.learning.learner import Learner
from engine.learning.predictor import LearnedPredictor
from engine.learning.rows import StateError, pack, pack_rows, unpack, unpack_rows
from engine.learning.scopes import Sharing
from gateway.lengths import make_predictor, words_secret

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


def test_the_key_to_the_words_is_not_in_the_file(tmp_path: Path) -> None:
    """Only a check of it is: equal for the same secret, another for another."""
    question, _ = ask(random.Random(0))
    keys = [gram_key(secret) for secret in (b"secret one", b"secret two")]
    one, other = (Learner("tenant", key).ask(question).features.grams for key in keys)
    assert set(one.tolist()) != set(other.tolist())
    learner = Learner("tenant", keys[0])
    data = state.to_bytes(learner, "model-a")
    for part in (b"secret one", keys[0].lower.tobytes(), keys[0].upper.tobytes()):
        assert part not in data
        assert hashlib.sha256(part).hexdigest()[:16].encode() not in data
    assert keys[0].check.encode() in data
    assert state.from_bytes(data, "model-a", "tenant", keys[0]).key is keys[0]


def test_a_file_of_another_key_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another pepper: its grams would mean other words. The same one finds it again."""
    first = LearnedPredictor("m", folder=tmp_path, secret=b"one")
    first._learner.learn([])
    first._save()
    with caplog.at_level(logging.WARNING):
        LearnedPredictor("m", folder=tmp_path, secret=b"one")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        LearnedPredictor("m", folder=tmp_path, secret=b"two")
    (told,) = (record.getMessage() for record in caplog.records)
    assert "with another secret than this installation's; they are learned anew" in told
    assert [path.suffix for path in tmp_path.iterdir()] == [".bad0"]


def test_the_gateways_key_is_made_of_the_pepper_and_is_not_it(tmp_path: Path) -> None:
    """The file says neither; another pepper begins anew, the same one goes on."""
    pepper = b"a pepper of 32 bytes or so, fine"
    assert words_secret(pepper) not in (pepper, words_secret(b"another"))
    first = make_predictor(tmp_path, "tenant", pepper, "m")
    first.start()
    serve(first, random.Random(0), 5)  # type: ignore[arg-type]
    first.close()
    data = state.file_of(tmp_path, "m").read_bytes()
    for secret in (pepper, words_secret(pepper), words_secret(pepper).hex().encode()):
        assert secret not in data
    assert gram_key(words_secret(pepper)).check.encode() in data
    known = {
        one: make_predictor(tmp_path, "tenant", one, "m").stats() for one in (pepper, b"another")
    }
    assert [dataclasses.asdict(stats)["rows"] for stats in known.values()] == [5, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "it is of version 99, not"),
        ({"fingerprint": "model-b"}, "it belongs to another model"),
        ({"sharing": "all"}, "it was learned with sharing 'all'"),
        ({"key": "00"}, "its grams were made with another secret than this installation's"),
    ],
)
def test_why_a_file_is_not_used_is_said_plainly(change: dict[str, object], said: str) -> None:
    """In its own words, not as the text of an exception within another one's."""
    with pytest.raises(StateError) as refused:
        state.from_bytes(with_header(content(), **change), "model-a", "tenant")
    assert str(refused.value).startswith(said)
    assert "StateError" not in str(refused.value)


def of_scope(data: bytes, history: dict[str, object], **changes: object) -> bytes:
    """The same file with other fields of its first scope, and of that one's history."""
    body = data[len(state.MAGIC) + 32 :]
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "big")])
    first, *others = header["scopes"]
    first = first | changes | {"history": first["history"] | history}
    return with_header(data, scopes=[first, *others])


FORGED = {
    "key of infinity": lambda data: with_header(data, key=float("inf")),
    "endless count": lambda data: of_scope(data, {"num_answers": float("inf")}),
    "huge count": lambda data: of_scope(data, {"num_answers": 10**400}),
    "fewer than none": lambda data: of_scope(data, {"hours": [[h, -10, 3.0] for h in range(24)]}),
    "huge hour": lambda data: of_scope(data, {"hours": [[1, 10**400, 3.0]]}),
    "huge logs": lambda data: of_scope(data, {"mean": 1e308}),
    "endless epoch": lambda data: of_scope(data, {}, epoch=float("inf")),
    "huge epoch": lambda data: of_scope(data, {}, epoch=10**400),
    "epoch before the first": lambda data: of_scope(data, {}, epoch=-1),
    "parts of infinity": lambda data: of_scope(data, {}, rows_bytes=float("inf")),
    "deep": lambda data: with_head(b"[" * 100_000),
}


def with_head(head: bytes) -> bytes:
    body = len(head).to_bytes(8, "big") + head
    return state.MAGIC + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_file_is_a_cold_start_with_one_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write the file can make its digest fit: it still stops nobody."""
    state.file_of(tmp_path, "model-a").write_bytes(FORGED[kind](content()))
    with caplog.at_level(logging.WARNING):
        predictor = LearnedPredictor("model-a", folder=tmp_path)
    (told,) = caplog.records
    assert "learned anew" in told.getMessage()
    question, _ = ask(random.Random(0))
    assert predictor.predict("a", question) == PRIOR.estimate(4096)


@pytest.mark.parametrize(
    "change",
    [
        {"numbers": np.full((3, NUM_NUMBERS), np.inf, np.float16)},
        {"lengths": np.full(3, 1 << 62)},
        {"max_tokens": np.array([["1"], ["2"], ["3"]])},
        {"counts": np.zeros(3)},
        {"format": np.float64(2)},
    ],
)
def test_rows_that_no_answer_can_have_are_refused(change: dict[str, Any]) -> None:
    """They would be found out by the next fit, or by the next file."""
    rows = list(next(scope for _, scope in learned().scopes).rows)[:3]
    assert len(unpack_rows(pack_rows(rows))) == 3
    with pytest.raises(StateError):
        unpack_rows(pack(unpack(pack_rows(rows)) | change))


def test_after_a_restart_the_models_heard_of_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has the scopes in that order, and it is all that is known of it."""
    first = learned()
    assert [scope.model is not None for _, scope in first.scopes] == [True, True]
    monkeypatch.setattr(scopes_module, "MOST_MODEL_BYTES", 1)
    again = state.from_bytes(state.to_bytes(first, "m"), "m", "tenant")
    assert {key: scope.model is not None for key, scope in again.scopes} == {
        "acme": False,
        "other": True,
    }
    question, _ = ask(random.Random(0), "acme")
    again.ask(question)
    scopes = dict(again.scopes)
    assert scopes["acme"].last_asked > scopes["other"].last_asked
