"""Where a command writes many lines: standard output, or a file that is there whole or not."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from gateway.cli.options import flag
from gateway.cli.output import CommandError

Out = Annotated[
    str | None,
    flag(
        "out",
        "Write to this file, which must not be there yet; default: standard output.",
        "FILE",
        "TIERGATE_EXPORT_OUT",
    ),
]


@contextlib.contextmanager
def writing(out: str | None) -> Iterator[Callable[[str], object]]:
    """Yield what writes text; a file is only given its name when all of it was written.

    Raises CommandError for a file that is there already or cannot be written.
    """
    if out is None:
        yield sys.stdout.write
        return
    file = Path(out)
    draft = file.with_name(f".{file.name}.part")
    if file.exists():
        raise CommandError(f"{file} is there already: name another file")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as opened:
            yield opened.write
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(draft, file)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
