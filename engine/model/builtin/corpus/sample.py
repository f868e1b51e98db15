"""Knows one training sample and the noise put on a question; knows no topic."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

HELD_OUT_EVERY = 12

_PREFIXES = (
    "Please ", "Hi, ", "Hello! ", "Hey, ", "Can you tell me: ", "Quick question: ",
    "I would like to know: ", "Hello Tiergate, ", "Good morning. ", "Question: ", "Hi there! ",
    "Sorry to bother you. ", "Now ", "Ok, ", "Dear assistant, ", "One more thing: ",
)  # fmt: skip
_SUFFIXES = (" Please.", " Thanks.", " Thank you!", " please", " thanks", " Thank you.")
SYSTEMS = (
    "You are a helpful assistant.",
    "You are the built-in model of Tiergate.",
    "You are a helpful, concise assistant.",
    "Answer the question of the user.",
    "You are an assistant. Be polite and correct.",
    "You answer questions about LLM serving.",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation that ends with the answer to learn.

    ``turns`` alternates user and assistant texts and ends with an assistant text. ``key`` names
    what is held out: all samples of one key are either trained on or only evaluated. ``fuzzy``
    answers are long texts, judged by their words rather than letter by letter.
    """

    family: str
    key: str
    turns: tuple[str, ...]
    system: str = ""
    fuzzy: bool = False
    typo_ok: bool = False
    case_ok: bool = True


def is_held_out(key: str) -> bool:
    """Whether the key belongs to the evaluation set: a fixed twelfth, independent of any seed."""
    return zlib.crc32(key.encode()) % HELD_OUT_EVERY == 0


def _typo(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    long_words = [i for i, word in enumerate(words) if len(word) >= 6 and word.isalpha()]
    if not long_words:
        return text
    at = rng.choice(long_words)
    word = words[at]
    cut = rng.randrange(1, len(word) - 1)
    if rng.random() < 0.5:
        words[at] = word[:cut] + word[cut + 1 :]
    else:
        words[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(words)


def _lower_first(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def noisy(rng: random.Random, text: str, *, typo_ok: bool, case_ok: bool) -> str:
    """The question as a hurried or polite user might type it; the meaning stays."""
    if typo_ok and rng.random() < 0.06:
        text = _typo(rng, text)
    if rng.random() < 0.15:
        prefix = rng.choice(_PREFIXES)
        text = prefix + (_lower_first(text) if case_ok else text)
    elif rng.random() < 0.06:
        text = text + rng.choice(_SUFFIXES)
    if rng.random() < 0.22:
        text = text.rstrip(".?!:")
    if case_ok and rng.random() < 0.22:
        text = text.lower()
    return text


def finish(rng: random.Random, sample: Sample) -> Sample:
    """The sample with noise on its questions and, sometimes, a system message."""
    turns = tuple(
        noisy(rng, turn, typo_ok=sample.typo_ok, case_ok=sample.case_ok) if i % 2 == 0 else turn
        for i, turn in enumerate(sample.turns)
    )
    system = rng.choice(SYSTEMS) if rng.random() < 0.15 else ""
    return Sample(sample.family, sample.key, turns, system, sample.fuzzy)


def prompt_id(sample: Sample) -> str:
    """The words of the conversation before the answer, without letter case and punctuation."""
    text = "|".join(sample.turns[:-1]).lower()
    kept = "".join(c if c.isalnum() or c in "|+-*/<>= " else "" for c in text)
    return " ".join(kept.split())
