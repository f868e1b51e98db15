"""Reads a text file, plain or gzipped; it knows nothing of what is in it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, unpacked where its first bytes say that it is packed.

    Raises ValueError with a few words that say what is wrong.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"a damaged gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
