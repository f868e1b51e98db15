"""Finished requests as arrays: features and lengths, never text; it knows no model.

Rows are what is trained on and what is stored. Packed, a row takes some 600 bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.learning.features import NUM_NUMBERS, Features
from engine.learning.grams import MOST_GRAMS

FORMAT = 2  # of packed rows; raised when features change their meaning
MOST_UNPACKED = 256_000_000  # bytes that one part may unpack to
MOST_LENGTH = 1 << 53
UNREADABLE = (
    ValueError, OSError, EOFError, LookupError, MemoryError, NotImplementedError, RuntimeError,
    SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class StateError(ValueError):
    """What was read is no state of ours, or of another version; one sentence says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One finished request: its features, the tokens of its answer, whether it ended by itself.

    `source` says which model answered: 0 the one that is served now, others are earlier ones whose
    lengths still tell which prompts are long, though not how long (papers.md 8.3, 5).
    """

    features: Features
    length: int
    is_whole: bool = True
    source: int = 0


def pack_rows(rows: Sequence[Row]) -> bytes:
    """Return rows as bytes that `unpack_rows` reads, on any machine."""
    counts = [len(row.features.grams) for row in rows]
    arrays = {
        "format": np.array([FORMAT, NUM_NUMBERS], np.int64),
        "grams": np.concatenate([np.empty(0, np.uint16), *(row.features.grams for row in rows)]),
        "counts": np.array(counts, np.uint16),
        "numbers": numbers_of([row.features for row in rows]),
        "max_tokens": np.array([row.features.max_tokens for row in rows], np.int64),
        "lengths": np.array([row.length for row in rows], np.int64),
        "whole": np.array([row.is_whole for row in rows], np.bool_),
        "source": np.array([row.source for row in rows], np.int64),
    }
    return pack(arrays)


def unpack_rows(data: bytes) -> list[Row]:
    """Return the rows of `pack_rows`; raises StateError where the bytes are something else."""
    arrays = unpack(data)
    try:
        if arrays["format"].tolist() != [FORMAT, NUM_NUMBERS]:
            raise StateError("rows of another version")
        counts = arrays["counts"].astype(np.int64)
        grams = np.split(arrays["grams"], np.cumsum(counts)[:-1]) if len(counts) else []
        columns = [arrays[name].tolist() for name in ("max_tokens", "lengths", "whole", "source")]
        numbers = arrays["numbers"]
        sizes = {len(counts), len(numbers), *map(len, columns)}
        if (
            len(sizes) != 1
            or counts.sum() != len(arrays["grams"])
            or counts.max(initial=0) > MOST_GRAMS
            or numbers.shape[1:] != (NUM_NUMBERS,)
            or numbers.dtype.name != "float16"
            or arrays["grams"].dtype.name != "uint16"
            or min([*columns[0], *columns[1], 1]) < 1
            or max([*columns[0], *columns[1], 1]) > MOST_LENGTH
            or bool(np.isinf(numbers).any())
        ):
            raise StateError("rows that do not fit together")
        return [
            Row(Features(grams[i], numbers[i], most), length, whole, source)
            for i, (most, length, whole, source) in enumerate(zip(*columns, strict=True))
        ]
    except StateError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"rows without {error}") from error


def numbers_of(features: Sequence[Features]) -> npt.NDArray[np.float16]:
    """Return the numbers of several questions, shape (n, NUM_NUMBERS)."""
    if not features:
        return np.empty((0, NUM_NUMBERS), np.float16)
    return np.stack([one.numbers for one in features])


def pack(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """Return named arrays as the bytes of an .npz file; no object, nothing that runs."""
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def unpack(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of `pack`; raises StateError where the bytes are something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            if sum(part.file_size for part in found.zip.infolist()) > MOST_UNPACKED:
                raise StateError("not a state of ours: it is too large")
            return {name: found[name] for name in found.files}
    except StateError:
        raise
    except UNREADABLE as error:
        raise StateError(f"not a state of ours: {error}") from error
    except AttributeError as error:  # np.load of a bare array is no context manager
        raise StateError("not a state of ours: a single array") from error
