"""A prompt's words and word pairs as numbers of 16 bits; it keeps no word and learns nothing.

A word's CRC-32 looks two numbers up, one by its upper half and one by its lower, and the gram is
their XOR (simple tabulation: Carter & Wegman 1979, https://arxiv.org/abs/1011.5200). The two
tables are drawn from a secret. Whoever has not got it cannot say which gram a word has: what he
finds out of some words, by how often they come, says nothing of the others. (A multiplier in the
tables' place would follow from a handful of words, and a salt of the CRC only shifts it.)
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

NUM_GRAMS = 1 << 16
MOST_GRAMS = 320  # of one prompt
STEM = 5  # letters of a word that count: "summarise" and "summary" begin alike
OPENING, ENDING = 4, 3  # first and last words that count with their place

Grams = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class GramKey:
    """Says which gram a CRC-32 has: `upper` and `lower` uint16 (65,536,), by its two halves.

    `check` tells one secret from another without giving it away.
    """

    upper: Grams = field(repr=False)
    lower: Grams = field(repr=False)
    check: str

    def hashed(self, crcs: npt.NDArray[np.uint32]) -> Grams:
        """Return the grams of these CRCs, in their order."""
        found: Grams = self.upper[crcs >> 16] ^ self.lower[crcs & 0xFFFF]
        return found


def gram_key(secret: bytes) -> GramKey:
    """Return the key of a secret: equal in every process and on every machine."""
    drawn = hashlib.shake_256(b"tiergate grams\0" + secret).digest(4 * NUM_GRAMS)
    tables = np.frombuffer(drawn, "<u2").astype(np.uint16)
    check = hashlib.sha256(b"tiergate grams check\0" + secret).hexdigest()[:16]
    return GramKey(tables[:NUM_GRAMS], tables[NUM_GRAMS:], check)


# Of no secret: the lower half of the CRC. For what is not stored: simulations and evaluations.
OPEN = GramKey(np.zeros(NUM_GRAMS, np.uint16), np.arange(NUM_GRAMS, dtype=np.uint16), "open")


def grams(words: Sequence[str], key: GramKey = OPEN) -> Grams:
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
    found = [crc(one.encode("utf-8", "replace")) for one in keys]
    if words:
        # A key begins with the letter of its kind: so does its hash, without a string made for it.
        stem, pair = crc(b"w"), crc(b"b")
        found += [crc(one, stem) for one in _encoded([word[:STEM] for word in words])]
        found += [crc(a + b" " + b, pair) for a, b in pairwise(_encoded(words))]
    return np.unique(key.hashed(np.array(found, np.uint32)))


def _encoded(words: Sequence[str]) -> list[bytes]:
    """Return the words as bytes; they have no space in them, and one call is quicker than many."""
    return " ".join(words).encode("utf-8", "replace").split(b" ")
