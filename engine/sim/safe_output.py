"""Files and folders that appear whole or not at all; it knows nothing of what is in them.

Everything is written beside its place under a name of its own and renamed at the end. That it can
be written is found out before the work, not after it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "run.json"  # a folder with this file in it was written by us and may be replaced


class OutputError(Exception):
    """The output cannot be written there; one sentence says why."""


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends well, and vanishes if not.

    An existing folder is only replaced when told so, and when it is empty or of our own making.
    """
    if path.name in ("", ".."):  # nothing can be put in the place of where one stands
        raise OutputError(f"{path}: is not the name of a folder; name one to be made")
    _check_folder(path, replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        yield folder
        try:
            _check_folder(path, replace)  # it may have come to be meanwhile
            if path.is_dir():
                shutil.rmtree(path)
            folder.chmod(0o777 & ~_umask())
            folder.rename(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_folder(path: Path, replace: bool) -> None:
    try:
        if not path.exists() and not path.is_symlink():
            return
        if not path.is_dir():
            raise OutputError(f"{path}: there is a file of that name")
        if not any(path.iterdir()):
            return
        if not (path / MARK).is_file():
            raise OutputError(f"{path}: is a folder with other things in it; name another")
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not replace:
        raise OutputError(f"{path}: holds an earlier run; name another, or replace it")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path that becomes `path` when the block ends well, and vanishes if not.

    An existing file is replaced. A device or a pipe (`/dev/null`, `/dev/stdout`) is written to as
    it is: to put a file in its place would take it away from everybody.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder")
        is_special = path.exists() and not path.is_file()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    if is_special:
        yield path
        return
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        try:
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_apart(*names: str | None) -> None:
    """Raise OutputError where two of these are one file; None and "-" are none.

    Inputs belong among them: what is written must not take the place of what was read.
    """
    seen = set[Path]()
    for name in names:
        if name is None or name == "-":
            continue
        path = Path(name).resolve()
        if path in seen:
            raise OutputError(f"{name}: is named twice; each needs a file of its own")
        seen.add(path)


def _umask() -> int:
    """Return the process's mask: temporary files are private, results are as any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
