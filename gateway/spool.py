"""Keeps usage records on disk while the ledger is away: JSON lines, bounded; it knows no database.

New records go to `usage.jsonl`. To hand them back, the file is renamed to `usage.replaying.jsonl`
and read in batches; it is deleted when all of it has been taken. A crash in between hands the same
records back again, which the ledger's writing by request id makes harmless. A line cut short by a
crash is moved aside with the records that the ledger refuses, for a person to look at. Everything
here blocks: callers run it in a thread.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import orjson

from tenants.values import UsageRecord

MAX_BYTES = 256 * 2**20
BATCH = 500


def encode_record(record: UsageRecord) -> bytes:
    """Return a record as one line of JSON, with its newline."""
    return orjson.dumps(dataclasses.asdict(record)) + b"\n"


def decode_record(line: bytes) -> UsageRecord:
    """Return the record of a line; raises ValueError or TypeError for a damaged one."""
    fields = orjson.loads(line)
    fields["arrival"] = datetime.fromisoformat(fields["arrival"])
    return UsageRecord(**fields)


class Spool:
    """A folder of records that wait for the ledger; one process at a time uses it."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._incoming = folder / "usage.jsonl"
        self._replaying = folder / "usage.replaying.jsonl"
        self._refused = folder / "usage.refused.jsonl"
        self._folder = folder
        self._max_bytes = max_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes that wait for the ledger."""
        return sum(p.stat().st_size for p in (self._incoming, self._replaying) if p.exists())

    @property
    def is_nearly_full(self) -> bool:
        """True when less than a tenth of its room is left: soon records would be lost."""
        return self.size_bytes > self._max_bytes * 9 // 10

    def append(self, records: Sequence[UsageRecord]) -> int:
        """Write `records` to disk, synced; return how many found room. Raises OSError."""
        room = self._max_bytes - self.size_bytes
        lines: list[bytes] = []
        for record in records:
            line = encode_record(record)
            room -= len(line)
            if room < 0:
                break
            lines.append(line)
        self._write(self._incoming, lines)
        return len(lines)

    def refuse(self, records: Iterable[UsageRecord]) -> None:
        """Put records aside that the ledger will never take. Raises OSError."""
        self._write(self._refused, [encode_record(record) for record in records])

    def batches(self) -> Iterator[list[UsageRecord]]:
        """Yield what waits, in batches, oldest first; all of it is deleted when the last is taken.

        The caller must have written a batch before asking for the next.
        """
        for _ in range(2):  # what an earlier run left, then what came since
            if not self._replaying.exists():
                if not self._incoming.exists():
                    return
                os.replace(self._incoming, self._replaying)
            yield from self._read(self._replaying)
            self._replaying.unlink()

    def _read(self, path: Path) -> Iterator[list[UsageRecord]]:
        batch: list[UsageRecord] = []
        with path.open("rb") as file:
            for line in file:
                try:
                    batch.append(decode_record(line))
                except (ValueError, TypeError, KeyError):
                    self._write(self._refused, [line])
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _write(self, path: Path, lines: list[bytes]) -> None:
        if not lines:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
