"""Which of the workers a process is, and where they meet: sockets in a folder of their own.

It starts nothing. The one process of `--workers 1` is `ALONE`: it shares nothing with anybody.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A Unix socket's name may have 108 bytes on Linux and 104 elsewhere, the end of string included.
MOST_NAME_BYTES = 103
_LONGEST_SOCKET = "/worker-000.sock"


@dataclass(frozen=True, slots=True)
class Place:
    """Worker `index` of `count`; `folder` is where the sockets are, None for one that is alone."""

    index: int = 0
    count: int = 1
    folder: Path | None = None

    def share_of(self, total: int) -> int:
        """Return this worker's part of a bound that all keep together.

        The parts add up to `total`, but for bounds below the number of workers: each gets at least
        one place then, because a client cannot choose which worker it comes to.
        """
        if total <= 0:
            return total
        part, rest = divmod(total, self.count)
        return max(1, part + (self.index < rest))

    @property
    def others(self) -> list[int]:
        """The numbers of all others."""
        return [index for index in range(self.count) if index != self.index]


ALONE = Place()


def engine_socket(folder: Path) -> Path:
    """Return where the engine listens for workers."""
    return folder / "engine.sock"


def worker_socket(folder: Path, index: int) -> Path:
    """Return where a worker answers the others."""
    return folder / f"worker-{index}.sock"


def load_file(folder: Path) -> Path:
    """Return where workers say how many connections they have."""
    return folder / "loads"


@contextlib.contextmanager
def meeting_folder(data_dir: Path) -> Iterator[Path]:
    """Make the folder of the sockets, closed to other users, for the length of a block.

    It is `run` in `data_dir`, which the caller holds: what a killed run has left there is removed.
    Where that name is too long for a socket, a folder for temporary files is used. Raises OSError.
    """
    folder = data_dir / "run"
    shutil.rmtree(folder, ignore_errors=True)
    if len(str(folder).encode()) + len(_LONGEST_SOCKET) > MOST_NAME_BYTES:
        folder = Path(tempfile.mkdtemp(prefix="tiergate-"))
    else:
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
