"""One gateway a data directory: the lock that keeps a second one out; it knows no file inside.

Spooled usage is replayed and deleted by its owner alone. Two gateways on one directory would
replay, rename and delete each other's records.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class DataDirTaken(Exception):
    """Another process holds the directory; the message is one clear line."""


@contextlib.contextmanager
def only_gateway(data_dir: Path) -> Iterator[None]:
    """Hold `data_dir` for as long as the block runs; the kernel lets go when the process dies.

    Raises DataDirTaken where another process holds it, OSError where it cannot be written.
    """
    with (data_dir / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirTaken(
                f"another gateway is running on {data_dir}; give this one a --data-dir of its own"
            ) from None
        yield
