"""Keeps records on disk while the ledger is away: JSON lines, bounded; it knows no database.

They are of both kinds: what is billed, and how promises were kept; a line says by its fields which.

New records go to `usage.jsonl`. To hand them back, the file is renamed to `usage.replaying.jsonl`
and read in batches; it is deleted when all of it has been taken. A crash in between hands the same
records back again, which the ledger's writing by request id makes harmless. A line cut short by a
crash is moved aside with the records that the ledger refuses, for a person to look at. Records of a
process that died are handed in by the next one that looks, under a lock; also the note of what was
under way when it died, after all else, so that a row that is whole comes first. The note survives
its process, not the machine: it is not synced. Everything here blocks: callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeAlias

import orjson

from tenants.slo import EXCLUDED, Outcome, SloRecord
from tenants.values import UsageRecord

MAX_BYTES = 256 * 2**20
BATCH = 500
SLO_SHARE, EXCLUDED_SHARE = 2, 16  # judgements find room in a half of the disk, nonsense in less
INCOMING, REPLAYING, LOCK = "usage.jsonl", "usage.replaying.jsonl", "lock"
NOTE, LEFT = "usage.open.jsonl", "usage.left.jsonl"  # of a process that lives; of one that died
DRAFT = "usage.open.draft"
LOCK_TRIES, LOCK_PAUSE_S = 50, 0.01
_WAITING = (INCOMING, REPLAYING, LEFT)
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


Record: TypeAlias = UsageRecord | SloRecord


def encode_record(record: Record) -> bytes:
    """Return a record as one line of JSON, with its newline."""
    return orjson.dumps(record) + b"\n"


def decode_record(line: bytes) -> Record:
    """Return the record of a line; raises ValueError or TypeError for a damaged one."""
    fields = orjson.loads(line)
    fields["arrival"] = datetime.fromisoformat(fields["arrival"])
    if "outcome" in fields:
        return SloRecord(**{**fields, "outcome": Outcome(fields["outcome"])})
    return UsageRecord(**fields)


class Spool:
    """Records that wait for the ledger: one process's own, and those of processes that have died.

    Alone, a process keeps its records in `root` itself, which nobody else uses then. With `name`
    it is one of several: its records are in a folder of that name, made and locked when there are
    any; the kernel unlocks it when the process dies, and any other may then hand them in.
    """

    def __init__(self, root: Path, max_bytes: int = MAX_BYTES, *, name: str = "") -> None:
        self._root = root
        self._own = root / name if name else root
        self._lock: BinaryIO | None = None
        self._refused = root / "usage.refused.jsonl"
        self._max_bytes = max_bytes
        if not name:
            _move_lines(root / NOTE, root / LEFT)  # nobody else uses it: it is of an earlier run

    @property
    def size_bytes(self) -> int:
        """Bytes that wait for the ledger, all processes' together."""
        return sum(_size(folder / name) for folder in self._folders() for name in _WAITING)

    @property
    def is_nearly_full(self) -> bool:
        """True when less than a tenth of its room is left: soon records would be lost."""
        return self.size_bytes > self._max_bytes * 9 // 10

    def append(self, records: Sequence[Record]) -> int:
        """Write `records` to disk, synced; return how many found room. Raises OSError."""
        size = self.size_bytes
        lines: list[bytes] = []
        for record in records:
            line = encode_record(record)
            if size + len(line) <= self._room_of(record):
                size += len(line)
                lines.append(line)
        if lines:
            self._hold_own()
        _write(self._own / INCOMING, lines)
        return len(lines)

    def _room_of(self, record: Record) -> int:
        """How full the disk may be for a record to be kept: bills have the last word.

        Whoever sends nonsense, or asks beyond its limit, must not push out what others are billed.
        """
        if isinstance(record, UsageRecord):
            return self._max_bytes
        return self._max_bytes // (EXCLUDED_SHARE if record.outcome in EXCLUDED else SLO_SHARE)

    def refuse(self, records: Iterable[Record]) -> None:
        """Put records aside that the ledger will never take. Raises OSError."""
        _write(self._refused, [encode_record(record) for record in records])

    def note(self, records: Sequence[Record]) -> None:
        """Replace the note of what is under way; without any there is none. Raises OSError."""
        path = self._own / NOTE
        if not records:
            path.unlink(missing_ok=True)
            return
        self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._hold_own()
        draft = self._own / DRAFT
        with os.fdopen(os.open(draft, _WRITE_NEW, 0o600), "wb") as file:
            file.writelines(encode_record(record) for record in records)
        draft.replace(path)

    def batches(self) -> Iterator[list[Record]]:
        """Yield what waits, in batches, oldest first; all of it is deleted when the last is taken.

        The caller must have written a batch before asking for the next. What a process that lives
        has in its folder is that one's to hand in.
        """
        yield from self._drain(self._own)
        for folder in self._folders():
            # A root has a lock only while another looks into it; what a worker left has one always.
            names = (*_WAITING, NOTE, *([LOCK] if folder != self._root else []))
            if folder == self._own or not any((folder / name).exists() for name in names):
                continue
            with contextlib.suppress(FileNotFoundError), (folder / LOCK).open("ab") as lock:
                if not _try_lock(lock):
                    continue
                _move_lines(folder / NOTE, folder / LEFT)
                yield from self._drain(folder)
                (folder / DRAFT).unlink(missing_ok=True)
                (folder / LOCK).unlink(missing_ok=True)
                if folder != self._root:
                    folder.rmdir()

    def close(self) -> None:
        """Leave nothing behind where nothing waits; else let another hand it in."""
        (self._own / NOTE).unlink(missing_ok=True)
        if self._lock is None:
            return
        if not any((self._own / name).exists() for name in _WAITING):
            with contextlib.suppress(OSError):
                (self._own / LOCK).unlink(missing_ok=True)
                self._own.rmdir()
        self._lock.close()
        self._lock = None

    def _folders(self) -> list[Path]:
        """Return every folder that may hold records."""
        if not self._root.is_dir():
            return []
        return [self._root, *sorted(path for path in self._root.iterdir() if path.is_dir())]

    def _hold_own(self) -> None:
        """Make and lock the own folder; another may be about to clear away an empty one."""
        if self._own == self._root or self._lock is not None:
            return
        for _ in range(LOCK_TRIES):
            self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                lock = (self._own / LOCK).open("ab")
                if _try_lock(lock) and _is_file(lock, self._own / LOCK):
                    self._lock = lock
                    return
                lock.close()
            time.sleep(LOCK_PAUSE_S)
        raise OSError(errno.EBUSY, "another process holds this folder", str(self._own))

    def _drain(self, folder: Path) -> Iterator[list[Record]]:
        incoming, replaying = folder / INCOMING, folder / REPLAYING
        for _ in range(2):  # what an earlier run left, then what came since
            if not replaying.exists():
                if not incoming.exists():
                    break
                os.replace(incoming, replaying)
            yield from self._read(replaying)
            replaying.unlink()
        if (folder / LEFT).exists():
            yield from self._read(folder / LEFT)
            (folder / LEFT).unlink()

    def _read(self, path: Path) -> Iterator[list[Record]]:
        batch: list[Record] = []
        with path.open("rb") as file:
            for line in file:
                try:
                    batch.append(decode_record(line))
                except (ValueError, TypeError, KeyError):
                    _write(self._refused, [line])
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch


def _move_lines(source: Path, target: Path) -> None:
    """Append a file to another and remove it; twice, if it is killed in between, does no harm."""
    if source.exists():
        _write(target, [source.read_bytes()])
        source.unlink()


def _size(path: Path) -> int:
    """Return the bytes of a file; another process may have taken it away at this moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file(file: BinaryIO, path: Path) -> bool:
    """True while `path` is still the name of this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write(path: Path, lines: list[bytes]) -> None:
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "ab") as file:
        # A line cut short by a crash must not swallow the one that follows it.
        if file.tell() > 0 and not _ends_with_newline(path):
            file.write(b"\n")
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
