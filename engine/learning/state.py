"""What was learned as a file: features and lengths, never text; it learns nothing itself.

Which words its grams were is not in it either: the key to them comes from outside, and the file
has only a check of it.

One file belongs to one model (a fingerprint that is handed in): what another model answered says
nothing of this one's lengths. The file is

    magic line, sha256 of all that follows, length of the header, header (JSON), packed parts

with the rows and models in the form of .npz, which holds arrays and nothing that runs. It is
replaced as a whole; whatever is not such a file is set aside under another name and reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.learning.grams import OPEN, GramKey
from engine.learning.history import LengthHistory
from engine.learning.learner import Learner
from engine.learning.length_model import LengthModel
from engine.learning.rows import StateError, pack_rows, unpack_rows
from engine.learning.scopes import MOST_TENANTS, Sharing

MAGIC = b"tiergate lengths\n"
VERSION = 2
SUFFIX = ".lengths"
MOST_BYTES = 64_000_000  # a longer file is none of ours
MOST_ASIDE = 3  # bad files kept, the oldest is written over
STALE_S = 3600.0  # age of half-written files that nobody is writing any more
MOST_MODELS = 8  # files of other models kept
MOST_EPOCHS = 1 << 31  # changes of traffic that anybody could have lived to see


def file_of(folder: Path, fingerprint: str) -> Path:
    """Return the file of a model's lengths."""
    return folder / (hashlib.sha256(fingerprint.encode()).hexdigest()[:16] + SUFFIX)


# Writing


def to_bytes(learner: Learner, fingerprint: str) -> bytes:
    """Return the file's content."""
    scopes, parts, entries = learner.scopes, [], []
    for key, scope in scopes:
        rows = list(scope.rows)
        parts.append(pack_rows(rows))
        model = scope.model
        parts.append(b"" if model is None else model.to_bytes())
        entries.append(
            {
                "key": key,
                "epoch": scope.epoch,
                "history": _fields(scope.history),
                "rows_bytes": len(parts[-2]),
                "model_bytes": len(parts[-1]),
            }
        )
    header: dict[str, Any] = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "sharing": scopes.sharing,
        "key": learner.key.check,
        "scopes": entries,
        "histories": [[key, _fields(history)] for key, history in scopes.histories],
    }
    head = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join([len(head).to_bytes(8, "big"), head, *parts])
    return MAGIC + hashlib.sha256(body).digest() + body


def _fields(history: LengthHistory) -> dict[str, Any]:
    fields = dataclasses.asdict(history.fields())
    fields["window"] = [round(log, 5) for log in fields["window"]]
    return fields


def save(folder: Path, fingerprint: str, content: bytes) -> None:
    """Replace the model's file in one step; raises OSError and leaves the old one then.

    Only the owner may read it. Files of models not served for longest are removed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = file_of(folder, fingerprint)
    half = path.with_suffix(f".part{os.getpid()}")  # several workers may keep one folder
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written_s = half.stat().st_mtime
        half.replace(path)
    except OSError:
        half.unlink(missing_ok=True)
        raise
    for left in folder.glob("*.part*"):  # by someone who was killed while he wrote
        with contextlib.suppress(OSError):
            if written_s - left.stat().st_mtime > STALE_S:
                left.unlink()
    others = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    for old in [p for p in others if p != path][: max(0, len(others) - MOST_MODELS)]:
        old.unlink(missing_ok=True)


# Reading


def load(folder: Path, fingerprint: str, sharing: Sharing, key: GramKey = OPEN) -> Learner | None:
    """Return what was stored for this model, None where nothing was.

    Raises StateError for a file that is damaged, of another version, another model or another key,
    and OSError for one that cannot be read.
    """
    path = file_of(folder, fingerprint)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise StateError("it is too large")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return from_bytes(content, fingerprint, sharing, key)


def from_bytes(content: bytes, fingerprint: str, sharing: Sharing, key: GramKey = OPEN) -> Learner:
    """Return the learner of a file's content; raises StateError."""
    digest_end = len(MAGIC) + hashlib.sha256().digest_size
    digest, body = content[len(MAGIC) : digest_end], content[digest_end:]
    if not content.startswith(MAGIC):
        raise StateError("it is no file of lengths")
    if hashlib.sha256(body).digest() != digest:
        raise StateError("it is damaged or cut short")
    try:
        size = int.from_bytes(body[:8], "big")
        header = json.loads(body[8 : 8 + size])
        if header["version"] != VERSION:
            raise StateError(f"it is of version {header['version']!r:.20}, not {VERSION}")
        if header["fingerprint"] != fingerprint:
            raise StateError("it belongs to another model")
        if header["sharing"] != sharing:
            raise StateError(f"it was learned with sharing {header['sharing']!r:.20}")
        if header["key"] != key.check:
            raise StateError("its grams were made with another secret than this installation's")
        learner = Learner(sharing, key)
        _fill(learner, header, body[8 + size :])
    except StateError:  # is a ValueError too, and says it better
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StateError(f"it does not hold together: {error!r:.200}") from error
    except RecursionError:
        raise StateError("it is nested too deeply") from None
    return learner


def _fill(learner: Learner, header: dict[str, Any], parts: bytes) -> None:
    scopes = learner.scopes
    for entry in header["scopes"][-MOST_TENANTS:]:
        rows_end = int(entry["rows_bytes"])
        model_end = rows_end + int(entry["model_bytes"])
        if not 0 <= rows_end <= model_end <= len(parts):
            raise StateError("it ends before its parts do")
        scope = scopes.scope(str(entry["key"]))
        scope.history = LengthHistory.of(entry["history"])
        if model_end > rows_end:
            scope.model = LengthModel.from_bytes(parts[rows_end:model_end])
        epoch, rows = int(entry["epoch"]), unpack_rows(parts[:rows_end])
        if not 0 <= epoch <= MOST_EPOCHS or any(not 0 <= row.source <= epoch for row in rows):
            raise StateError("it has rows of a traffic that never was")
        scope.restore(rows, epoch)
        parts = parts[model_end:]
    for key, fields in header["histories"][-MOST_TENANTS:]:
        scopes.put_history(str(key), LengthHistory.of(fields))
    scopes.count_rows()
    learner.number_stored()
    scopes.trim_models()


def set_aside(folder: Path, fingerprint: str) -> Path | None:
    """Give a bad file another name, and return that; None where even that cannot be done."""
    path = file_of(folder, fingerprint)
    names: Sequence[Path] = [path.with_suffix(f".bad{number}") for number in range(MOST_ASIDE)]
    try:
        free = [name for name in names if not name.exists()]
        chosen = free[0] if free else min(names, key=lambda name: name.stat().st_mtime_ns)
        path.replace(chosen)
    except OSError:
        return None
    return chosen
