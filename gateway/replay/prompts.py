"""Prompts of a wanted length, as token ids or as text; what they say means nothing.

Two requests never share a beginning, nor do two runs with another `salt`, so that no prefix cache
makes them cheaper than they are; where the trace names prefix blocks, equal blocks of a run are
equal tokens, as in the simulator.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.sim.trace import PREFIX_BLOCK_TOKENS
from engine.sim.workload import SimRequest

# Ordinary tokens in every common vocabulary: above the single bytes and the marks at its beginning.
FIRST_ID, LAST_ID = 300, 1999
POOL = 1 << 16
OWN_TOKENS = 4  # at the beginning: the number of the request

# Common short words: about a token each, with the space before, in every English vocabulary.
WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "government",
    "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story",
    "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue",
    "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game",
    "line", "end", "member", "law",
)  # fmt: skip


class PromptMaker:
    """Makes the prompts of one run, each from its request alone."""

    def __init__(
        self, seed: int, first_id: int = FIRST_ID, last_id: int = LAST_ID, salt: str = ""
    ) -> None:
        self._seed = seed
        draw = random.Random(f"{seed}/prompts/{salt}")
        self._first, self._span = first_id, last_id - first_id + 1
        # One long run of random tokens as JSON text: a prompt is a piece of it.
        pool = [str(first_id + draw.randrange(self._span)) for _ in range(POOL)]
        self._pool = pool + pool
        self._words = [WORDS[draw.randrange(len(WORDS))] for _ in range(POOL)]
        self._words += self._words

    def tokens(self, request: SimRequest, number: int) -> bytes:
        """Return a JSON list of exactly as many token ids as the request's prompt has."""
        count = request.num_prompt_tokens
        parts: list[str] = []
        for block in request.prefix_block_ids:
            if len(parts) >= count:
                break
            parts += self._piece(f"block/{block}", PREFIX_BLOCK_TOKENS)
        del parts[count:]
        parts += self._own(number)[: count - len(parts)]
        while len(parts) < count:
            parts += self._piece(f"own/{number}/{len(parts)}", min(POOL, count - len(parts)))
        return b"[" + ",".join(parts).encode() + b"]"

    def _own(self, number: int) -> list[str]:
        digits = []
        for _ in range(OWN_TOKENS):
            number, digit = divmod(number, self._span)
            digits.append(str(self._first + digit))
        return digits

    def _piece(self, name: str, count: int) -> Sequence[str]:
        at = random.Random(f"{self._seed}/{name}").randrange(POOL)
        return self._pool[at : at + count]

    def text(self, count: int, request: SimRequest, number: int) -> str:
        """Return a text of `count` words, in the place of this request's prompt."""
        words: list[str] = []
        for block in request.prefix_block_ids:
            if len(words) >= count:
                break
            words += self._word_piece(f"block/{block}", PREFIX_BLOCK_TOKENS)
        del words[count:]
        if len(words) < count:
            words.append(f"{number}")
        while len(words) < count:
            words += self._word_piece(f"own/{number}/{len(words)}", min(POOL, count - len(words)))
        return " ".join(words)

    def _word_piece(self, name: str, count: int) -> Sequence[str]:
        at = random.Random(f"{self._seed}/{name}").randrange(POOL)
        return self._words[at : at + count]
