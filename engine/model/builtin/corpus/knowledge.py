"""Knows how people ask for everyday facts, yes or no, lists and spellings; facts live elsewhere."""

from __future__ import annotations

import random

from engine.model.builtin.corpus import knowledge_facts as facts
from engine.model.builtin.corpus.sample import Sample

_ONE_WORD = (
    "{q} Answer in one word.", "In one word: {l}", "{q} One word only.", "{q} Just one word.",
    "Answer with one word: {l}",
)  # fmt: skip
_CAPITAL = (
    "What is the capital of {}?", "Which city is the capital of {}?", "Capital of {}?",
    "Name the capital of {}.", "Tell me the capital of {}.", "What's the capital of {}?",
    "What is {}'s capital?",
)  # fmt: skip
_OPPOSITE = (
    "What is the opposite of {}?", "Opposite of {}?", "Give me the opposite of {}.",
    "What's the opposite of {}?", "Tell me the opposite of {}.",
    "Which word is the opposite of {}?",
)  # fmt: skip
_PLURAL = (
    "What is the plural of {}?", "Plural of {}?", "Give me the plural of {}.",
    "What's the plural of {}?", "Tell me the plural of {}.",
)  # fmt: skip
_COLOUR = (
    "What color is {}?", "What is the color of {}?", "Which color has {}?", "Color of {}?",
    "Tell me the color of {}.", "What colour is {}?",
)  # fmt: skip
_SOUND = (
    "What sound does {} make?", "Which sound does {} make?", "What does {} do when it is loud?",
    "How does {} sound?",
)  # fmt: skip
_AFTER = ("What comes after {}?", "Which number comes after {}?", "What is the number after {}?")
_BEFORE = (
    "What comes before {}?",
    "Which number comes before {}?",
    "What is the number before {}?",
)


def _cap(text: str) -> str:
    return text[0].upper() + text[1:]


def _fact(rng: random.Random, kind: str) -> tuple[str, str, str, str]:
    """Key, question, one-word answer and sentence answer of one fact."""
    if kind == "single":
        at = rng.randrange(len(facts.SINGLE))
        questions, word, sentence = facts.SINGLE[at]
        which = rng.randrange(len(questions))
        return f"single:{at}:{which}", questions[which], word, sentence
    table, templates, form = {
        "capital": (facts.CAPITALS, _CAPITAL, "The capital of {k} is {v}."),
        "opposite": (facts.OPPOSITES, _OPPOSITE, "The opposite of {k} is {v}."),
        "plural": (facts.PLURALS, _PLURAL, "The plural of {k} is {v}."),
        "colour": (facts.COLOURS_OF, _COLOUR, "{K} is {v}."),
        "sound": (facts.SOUNDS, _SOUND, "{K} {v}."),
    }[kind]
    item = rng.choice(tuple(table))
    at = rng.randrange(len(templates))
    value = table[item]
    sentence = form.format(k=item, K=_cap(item), v=value)
    return f"{kind}:{at}:{item}", templates[at].format(item), _cap(value), sentence


def draw_fact(rng: random.Random) -> Sample:
    """A question of general knowledge, answered by a sentence or, when asked so, by one word."""
    if rng.random() < 0.12:
        n = rng.randint(1, 98)
        after = rng.random() < 0.5
        at = rng.randrange(3)
        question = (_AFTER if after else _BEFORE)[at].format(n)
        answer = f"After {n} comes {n + 1}." if after else f"Before {n} comes {n - 1}."
        return Sample("knowledge", f"next:{after}:{n}", (question, answer))
    kind = rng.choices(
        ("capital", "opposite", "plural", "colour", "sound", "single"), weights=(8, 6, 5, 4, 3, 4)
    )[0]
    key, question, word, sentence = _fact(rng, kind)
    if rng.random() < 0.3:
        at = rng.randrange(len(_ONE_WORD))
        lower = question[0].lower() + question[1:]
        question = _ONE_WORD[at].format(q=question, l=lower)
        return Sample("one-word", f"{key}:word{at}", (question, word), typo_ok=True)
    return Sample("knowledge", key, (question, sentence), typo_ok=True)


_YES_NO = (
    "{}",
    "{}",
    "{} Yes or no?",
    "Yes or no: {l}",
    "{} Answer yes or no.",
    "True or not: {l}",
)


def draw_yes_no(rng: random.Random) -> Sample:
    """A question that is answered by yes or no."""
    key, question, truth = rng.choice(facts.STATEMENTS)
    at = rng.randrange(len(_YES_NO))
    asked = _YES_NO[at].format(question, l=question[0].lower() + question[1:])
    answer = ("Yes" if truth else "No") + ("" if "es or no" in asked else ".")
    return Sample("yes-no", f"yesno:{at}:{key}", (asked, answer), typo_ok=True)


_LIST = (
    "Name {n} {t}.", "List {n} {t}.", "Give me {n} {t}.", "Can you name {n} {t}?",
    "Write down {n} {t}.", "Tell me {n} {t}.", "I need {n} {t}.", "What are {n} {t}?",
    "Please list {n} {t}.",
)  # fmt: skip
_ALL = ("List all {t}.", "Name all {t}.", "What are the {t}?", "Give me all {t}.", "List the {t}.")
_WHOLE = ("planets", "days", "months", "seasons")
_LONG_NAMES = {"days": ("days", "days of the week"), "months": ("months", "months of the year"),
               "letters": ("letters", "letters of the alphabet")}  # fmt: skip


def draw_list(rng: random.Random) -> Sample:
    """A list of so many things, always from the front of the same row."""
    topic = rng.choice(tuple(facts.LISTS))
    row = facts.LISTS[topic]
    name = rng.choice(_LONG_NAMES.get(topic, (topic,)))
    if topic in _WHOLE and rng.random() < 0.25:
        count, at = len(row), rng.randrange(len(_ALL))
        question, key = _ALL[at].format(t=name), f"all:{at}:{name}"
    else:
        count, at = rng.randint(2, min(len(row), 10)), rng.randrange(len(_LIST))
        shown = facts.NUMBER_WORDS[count] if rng.random() < 0.5 else str(count)
        question, key = _LIST[at].format(n=shown, t=name), f"list:{at}:{count}:{topic}"
    items = row[:count]
    return Sample("lists", key, (question, f"{_cap(', '.join(items))}."), typo_ok=True)


_SPELL = (
    "Spell {}.", "Spell the word {}.", "How do you spell {}?", "Can you spell {}?",
    "How is {} spelled?", "Spell out {}.", "Spell {} letter by letter.",
    "Write {} letter by letter.",
    "Give me the letters of {}.",
)  # fmt: skip
_LENGTH = (
    "How many letters are in {}?", "How many letters does {} have?", "Count the letters of {}.",
    "How long is the word {}?",
)  # fmt: skip
_FIRST = (
    "What is the first letter of {}?",
    "First letter of {}?",
    "With which letter does {} begin?",
)
_LAST = ("What is the last letter of {}?", "Last letter of {}?", "With which letter does {} end?")


def draw_spelling(rng: random.Random) -> Sample:
    """The letters of a known word: all of them, their number, the first or the last."""
    word = rng.choice(facts.SPELLED)
    shown = f'"{word}"' if rng.random() < 0.15 else word
    templates: tuple[str, ...]
    kind = rng.choices(("spell", "length", "first", "last"), weights=(6, 2, 1, 1))[0]
    if kind == "spell":
        templates, answer = _SPELL, " ".join(word.lower())
    elif kind == "length":
        templates, answer = _LENGTH, f"The word {word.lower()} has {len(word)} letters."
    elif kind == "first":
        templates, answer = _FIRST, word[0].upper()
    else:
        templates, answer = _LAST, word[-1].upper()
    at = rng.randrange(len(templates))
    return Sample("spelling", f"{kind}:{at}:{word}", (templates[at].format(shown), answer))
