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
    keys = [f"0{word}" for word in words[:OPENING]]
    keys = [f"{place}{key}" for place, key in enumerate(keys)]
    keys += [f"e{place}{word}" for place, word in enumerate(reversed(words[-ENDING:]))]
    keys += [f"o{' '.join(words[:2])}", f"O{' '.join(words[:3])}"] if words else []
    most = (MOST_GRAMS - len(keys)) // 2
    if len(words) > most:
        words = [*words[: most // 2], *words[len(words) - most // 2 :]]
    keys += [f"w{word[:STEM]}" for word in words]
    keys += [f"b{a} {b}" for a, b in pairwise(words)]
    crc = zlib.crc32
    found = {crc(key.encode("utf-8", "replace"), salt) & (NUM_GRAMS - 1) for key in keys}
    return np.array(sorted(found), np.uint16)
