"""What a prompt's words and shape say of its answer's length; it learns nothing, it only reads.

A cue is a number: does the asking name a kind of task (engine/learning/lexicon), does it ask for
so many words or items, how is the text built. Some hundred numbers for one prompt, in about a
quarter of a millisecond. The first words and the last ones are read apart from the rest: there it
is said what is wanted, in between what it is about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.learning.lexicon import KINDS, MEASURES, NUMBERS, UNITS

Floats = npt.NDArray[np.float32]

# Scripts without spaces (Han, Kana) are read in pairs of signs, all others in words.
PAIRED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(
    rf"[0-9]+(?![0-9a-z])|[a-z0-9\u00c0-\u1fff\uac00-\ud7af]+(?:['+#-][a-z][a-z+#]*)*[+#]*"
    rf"|[{PAIRED}]+"
)
IS_PAIRED = re.compile(f"[{PAIRED}]")
MOST_WORDS = 400  # of a long prompt the first and the last of these are read
ASK_HEAD, ASK_TAIL = 24, 14  # words of the beginning and of the end that are likely the asking
MEASURED = frozenset(MEASURES)
CODE_SIGNS = "{}[]();=<>_\\/|`$#&*^~%@+"


def _phrases() -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Return phrase -> kinds, and the first words of the phrases of several words."""
    kinds: dict[str, list[int]] = {}
    for place, words in enumerate(KINDS.values()):
        for phrase in words.split("|"):
            kinds.setdefault(phrase, []).append(place)
    starts = frozenset(phrase.split()[0] for phrase in kinds if " " in phrase)
    return {phrase: tuple(places) for phrase, places in kinds.items()}, starts


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PHRASES, STARTS = _phrases()
HINTS = STARTS | PHRASES.keys()
OPENINGS = (
    _words("is are was were do does did can could will would should has have am"),
    _words("what what's which"),
    _words("who when where whose whom"),
    _words("why"),
    _words("how"),
    _words("write create compose generate design develop draft make"),
    _words("name identify classify select choose find sort convert calculate"),
    _words("explain describe discuss compare outline analyze"),
    _words("i i'm my we"),
    _words("you your act imagine"),
)
SHAPES = (
    "log characters", "log words", "log lines", "log head words", "log other words",
    "word length", "digit share", "capital share", "foreign share", "code share", "unique share",
    "question marks", "ends asking", "ends in colon", "ends in stop", "head has colon", "quotes",
    "numbers", "blanks", "empty lines", "bullets", "commas", "starts small", "fences",
)  # fmt: skip
ASKED = (
    "log tokens asked for", "unit named", "log items asked for", "items named", "one sentence",
    "upper bound",
)  # fmt: skip
NAMES: tuple[str, ...] = (
    *(f"{kind} asked" for kind in KINDS),
    *(f"{kind} anywhere" for kind in KINDS),
    *(f"opening {place}" for place in range(len(OPENINGS))),
    *ASKED,
    *SHAPES,
)
NUM_CUES = len(NAMES)


def _members(*groups: str) -> npt.NDArray[np.int64]:
    """Return for each group of ASCII signs which of the 256 bytes belong to it, (n, 256)."""
    inside = np.zeros((len(groups), 256), np.int64)
    for place, group in enumerate(groups):
        inside[place, list(group.encode("ascii"))] = 1
    return inside


CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNTED = _members("0123456789", CAPITALS, CODE_SIGNS, "\n", ",", "?", '"')


def words_of(text: str) -> list[str]:
    """Return the lower-case words, at most MOST_WORDS: those of a long text's two ends."""
    words: list[str] = WORD.findall(text.lower().replace("’", "'"))
    if IS_PAIRED.search(text):
        words = [part for word in words for part in _parts(word)]
    if len(words) > MOST_WORDS:
        half = MOST_WORDS // 2
        return words[:half] + words[-half:]
    return words


def _parts(word: str) -> list[str]:
    if len(word) < 3 or not IS_PAIRED.match(word):
        return [word]
    return [word[i : i + 2] for i in range(len(word) - 1)]


def cues(text: str, words: Sequence[str]) -> Floats:
    """Return the cues of a prompt, float32 of shape (NUM_CUES,); `words` are `words_of(text)`."""
    out = np.zeros(NUM_CUES, np.float32)
    width = len(KINDS)
    asked, anywhere = [0.0] * width, [0.0] * width
    tail = len(words) - ASK_TAIL
    for place, word in enumerate(words):
        if word not in HINTS:
            continue
        kinds = PHRASES.get(word, ())
        if word in STARTS:
            kinds += PHRASES.get(" ".join(words[place : place + 2]), ())
            kinds += PHRASES.get(" ".join(words[place : place + 3]), ())
        for kind in kinds:
            anywhere[kind] += 1.0
            if place < ASK_HEAD or place >= tail:
                asked[kind] += 1.0
    out[:width] = np.minimum(asked, 2.0)
    out[width : 2 * width] = np.log1p(anywhere)
    at = 2 * width
    if words:
        for place, opening in enumerate(OPENINGS):
            out[at + place] = words[0] in opening
    at += len(OPENINGS)
    out[at : at + len(ASKED)] = asked_for(words)
    out[at + len(ASKED) :] = shape(text, words)
    return out


def asked_for(words: Sequence[str]) -> list[float]:
    """Return what is asked for by number, as ASKED names it."""
    tokens = items = 0.0
    one_sentence = bound = 0.0
    last = len(words) - 1
    for place, word in enumerate(words):
        if word not in NUMBERS and not word[0].isdigit():
            continue
        number = _number(word)
        if number is None or place == last:
            continue
        for other in words[place + 1 : place + 4]:
            unit = UNITS.get(other) or UNITS.get(other[0])  # a pair of signs begins with its own
            if unit is not None:
                plain = number > 1 or word not in ("a", "an")
                if plain or other in ("sentence", "paragraph", "word", "page"):
                    tokens = max(tokens, number * unit)
                one_sentence = max(one_sentence, float(number == 1 and other == "sentence"))
                before = words[max(0, place - 3) : place]
                bound = max(bound, float(bool({"than", "most", "under", "maximum"} & set(before))))
                break
            if other in NUMBERS or other in MEASURED or other.isdigit():
                break
            if 2 <= number <= 200 and len(other) > 3 and other.endswith("s"):
                items = max(items, number)
                break
    return [
        math.log1p(tokens), float(tokens > 0), math.log1p(items), float(items > 0), one_sentence,
        bound,
    ]  # fmt: skip


def _number(word: str) -> float | None:
    if word[0].isdigit():
        return float(word) if word.isdecimal() and len(word) < 6 else None
    return NUMBERS.get(word)


def shape(text: str, words: Sequence[str]) -> list[float]:
    """Return how the text is built, as SHAPES names it."""
    stripped = text.strip()
    size = max(1, len(stripped))
    head, _, rest = stripped.partition("\n")
    num_words = max(1, len(words))
    count = stripped.count
    raw = stripped.encode("utf-8", "replace")
    digits, capitals, code, lines, commas, questions, quotes = _counts(raw)
    if len(raw) != len(stripped):  # signs beyond ASCII: capitals of other scripts count as well
        capitals = sum(map(str.isupper, stripped))
        questions = count("?")  # what cannot be encoded becomes one
        quotes += count("“")
    starting = sum([word[0].isdigit() for word in words]) if digits else 0
    dots = count("\n-") + count("\n*") + count("\n•") if lines else 0
    return [
        math.log1p(len(stripped)), math.log1p(len(words)), math.log1p(lines),
        math.log1p(head.count(" ") + 1),
        math.log1p(rest.count(" ") + (rest.count("\n") + 1 if rest else 0)),
        min(12.0, sum(map(len, words)) / num_words), digits / size, capitals / size,
        (len(raw) - len(stripped)) / size, code / size,
        len(set(words)) / num_words, min(3.0, float(questions)), float(stripped.endswith("?")),
        float(stripped.endswith(":")), float(stripped.endswith(".")), float(":" in head),
        math.log1p(quotes), math.log1p(starting),
        float("__" in stripped or "..." in stripped), math.log1p(count("\n\n") if lines else 0),
        math.log1p(dots), math.log1p(commas),
        float(stripped[:1].islower()), float("```" in stripped),
    ]  # fmt: skip


def _counts(raw: bytes) -> list[int]:
    """Return how many bytes are in each of COUNTED: one look at the text for all of them."""
    of_byte = np.bincount(np.frombuffer(raw, np.uint8), minlength=256)
    found: list[int] = (COUNTED @ of_byte).tolist()
    return found
