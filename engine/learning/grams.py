"""A prompt's words and word pairs as numbers of 16 bits; it keeps no word and learns nothing.

The hash is CRC-32 with the installation's salt: equal in every process and on every machine, unlike
Python's own. A number does not say which word it was, and with a secret salt nobody can try
words out.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

NUM_GRAMS = 1 << 16
MOST_GRAMS = 320  # of one prompt
STEM = 5  # letters of a word that count: "summarise" and "summary" begin alike
OPENING, ENDING = 4, 3  # first and last words that count with their place

Grams = npt.NDArray[np.uint16]


def grams(words: Sequence[str], salt: int = 0) -> Grams:
    """Return the distinct grams of a prompt's words, ascending, at most MOST_GRAMS of them.

    Stems, pairs of words, the first words with their place and as one opening, the last words.
    A prompt with too many of them keeps those of its beginning and of its end.
    """
    keys = [f"{place}0{word}" for place, word in enumerate(words[:OPENING])]
    keys += [f"e{place}{word}" for place, word in enumerate(reversed(words[-ENDING:]))]
    keys += [f"o{' '.join(words[:2])}", f"O{' '.join(words[:3])}"] if words else []
    most = (MOST_GRAMS - len(keys)) // 2
    if len(words) > most:
        words = [*words[: most // 2], *words[len(words) - most // 2 :]]
    crc = zlib.crc32
    found = [crc(key.encode("utf-8", "replace"), salt) for key in keys]
    if words:
        # A key begins with the letter of its kind: so does its hash, without a string made for it.
        stem, pair = crc(b"w", salt), crc(b"b", salt)
        found += [crc(one, stem) for one in _encoded([word[:STEM] for word in words])]
        found += [crc(a + b" " + b, pair) for a, b in pairwise(_encoded(words))]
    return np.unique(np.array(found, np.uint32).astype(np.uint16))


def _encoded(words: Sequence[str]) -> list[bytes]:
    """Return the words as bytes; they have no space in them, and one call is quicker than many."""
    return " ".join(words).encode("utf-8", "replace").split(b" ")
