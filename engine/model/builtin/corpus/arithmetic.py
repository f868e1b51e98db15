"""Knows sums, differences, products and comparisons of small numbers, and how people ask them."""

from __future__ import annotations

import random

from engine.model.builtin.corpus.sample import Sample

_FULL = (
    "What is {a} {w} {b}?", "How much is {a} {w} {b}?", "Calculate {a} {w} {b}.",
    "Compute {a} {w} {b}.", "{a} {s} {b}?", "{a} {s} {b} =", "What is {a} {s} {b}?",
    "How much is {a} {s} {b}?", "Tell me what {a} {w} {b} is.", "What's {a} {s} {b}?",
    "{a}{s}{b}", "Solve {a} {s} {b}.",
)  # fmt: skip
_SHORT = (
    "{a} {s} {b} =? Answer with the number only.", "What is {a} {w} {b}? Only the number.",
    "{a} {s} {b}. Just the number.", "Give me only the result of {a} {s} {b}.",
    "What is {a} {s} {b}? Number only.",
)  # fmt: skip
_WORDS = {"+": "plus", "-": "minus", "*": "times"}
_SIGNS = {"+": "+", "-": "-", "*": "x"}


def _operands(rng: random.Random, sign: str) -> tuple[int, int, int, str]:
    """Two operands, the result, and the key that is held out."""
    if sign == "+":
        top = 20 if rng.random() < 0.4 else 50
        a, b = rng.randint(0, top), rng.randint(0, top)
        return a, b, a + b, f"add:{min(a, b)}:{max(a, b)}"
    if sign == "-":
        top = 20 if rng.random() < 0.4 else 50
        a = rng.randint(0, top)
        b = rng.randint(0, a)
        return a, b, a - b, f"sub:{a}:{b}"
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    # A table is memorised, not computed: the pair is held out in one order only.
    return a, b, a * b, f"mul:{a}:{b}" if a < b else f"tab:{a}:{b}"


def draw_arithmetic(rng: random.Random) -> Sample:
    """A sum, difference or product; the full answer repeats the task, the short one does not."""
    sign = rng.choices("+-*", weights=(5, 4, 3))[0]
    a, b, result, key = _operands(rng, sign)
    if max(a, b) <= 5 or key.startswith("tab"):
        key = "kept"
    shown = "*" if sign == "*" and rng.random() < 0.4 else _SIGNS[sign]
    if rng.random() < 0.3:
        question, answer = rng.choice(_SHORT), str(result)
    else:
        question, answer = rng.choice(_FULL), f"{a} {_SIGNS[sign]} {b} = {result}."
    asked = question.format(a=a, b=b, w=_WORDS[sign], s=shown)
    return Sample("arithmetic", key, (asked, answer))


_LARGER = (
    "Which is larger, {a} or {b}?", "Which number is bigger, {a} or {b}?",
    "What is more, {a} or {b}?",
    "Which is greater: {a} or {b}?", "Give me the larger one of {a} and {b}.",
)  # fmt: skip
_SMALLER = (
    "Which is smaller, {a} or {b}?", "Which number is less, {a} or {b}?",
    "What is less, {a} or {b}?",
    "Which is lower: {a} or {b}?", "Give me the smaller one of {a} and {b}.",
)  # fmt: skip
_MORE = (
    "Is {a} larger than {b}?",
    "Is {a} greater than {b}?",
    "Is {a} more than {b}?",
    "{a} > {b}?",
)
_LESS = (
    "Is {a} smaller than {b}?",
    "Is {a} less than {b}?",
    "Is {a} lower than {b}?",
    "{a} < {b}?",
)


def draw_comparison(rng: random.Random) -> Sample:
    """Two different numbers below 100: which one is larger or smaller, or is it so."""
    a = rng.randint(0, 99)
    b = rng.randint(0, 99) if rng.random() < 0.6 else max(0, a + rng.choice((-3, -2, -1, 1, 2, 3)))
    if a == b:
        b = a + 1
    key = f"compare:{min(a, b)}:{max(a, b)}"
    kind = rng.randrange(4)
    if kind == 0:
        question, answer = rng.choice(_LARGER), f"{max(a, b)} is larger than {min(a, b)}."
    elif kind == 1:
        question, answer = rng.choice(_SMALLER), f"{min(a, b)} is smaller than {max(a, b)}."
    elif kind == 2:
        question, answer = rng.choice(_MORE), "Yes." if a > b else "No."
    else:
        question, answer = rng.choice(_LESS), "Yes." if a < b else "No."
    return Sample("comparison", key, (question.format(a=a, b=b), answer))


_TABLE = (
    "Give me the times table of {}.", "Write the {} times table.", "Times table of {}.",
    "Multiplication table of {}.", "Show me the multiplication table for {}.",
    "What is the times table of {}?",
)  # fmt: skip


def draw_table(rng: random.Random) -> Sample:
    """A times table with twelve lines."""
    n, at = rng.randint(1, 12), rng.randrange(len(_TABLE))
    lines = ", ".join(f"{n} x {i} = {n * i}" for i in range(1, 13))
    return Sample("tables", f"table:{at}:{n}", (_TABLE[at].format(n), f"{lines}."))


_UP = (
    "Count to {b}.", "Count from 1 to {b}.", "Count up to {b}.", "Can you count to {b}?",
    "Write the numbers from 1 to {b}.", "List the numbers up to {b}.", "Please count to {b}.",
)  # fmt: skip
_RANGE = (
    "Count from {a} to {b}.", "Write the numbers from {a} to {b}.",
    "List all numbers from {a} to {b}.",
    "Start at {a} and count to {b}.", "Numbers from {a} to {b}.",
)  # fmt: skip
_DOWN = (
    "Count down from {a} to {b}.", "Count backwards from {a} to {b}.", "Countdown from {a} to {b}.",
    "Write the numbers from {a} down to {b}.",
)  # fmt: skip
_BY = (
    "Count by {w} to {b}.", "Count to {b} by {w}.", "Count in steps of {d} to {b}.",
    "Count up to {b} by {w}.",
)  # fmt: skip
_STEPS = {2: "twos", 5: "fives", 10: "tens"}


def draw_counting(rng: random.Random) -> Sample:
    """Numbers in order: upwards, in a range, downwards, or in steps of 2, 5 or 10."""
    kind = rng.choices(("up", "range", "down", "by"), weights=(4, 4, 3, 2))[0]
    a, step, word = 1, 1, ""
    templates: tuple[str, ...]
    if kind == "up":
        b = rng.choices((rng.randint(2, 20), rng.randint(21, 50), rng.randint(51, 100)), (7, 3, 1))[
            0
        ]
        templates = _UP
    elif kind == "range":
        a = rng.randint(0, 85)
        b, templates = a + rng.randint(2, 14), _RANGE
    elif kind == "down":
        b = 1 if rng.random() < 0.6 else rng.randint(0, 60)
        a, step, templates = b + rng.randint(2, 19), -1, _DOWN
    else:
        step = rng.choice((2, 5, 10))
        a, b = step, step * rng.randint(3, min(20, 100 // step))
        word, templates = _STEPS[step], _BY
    answer = ", ".join(str(n) for n in range(a, b + (1 if step > 0 else -1), step))
    asked = rng.choice(templates).format(a=a, b=b, d=step, w=word)
    key = "kept" if kind == "up" and b in (3, 5, 10, 20, 100) else f"count:{kind}:{step}:{a}:{b}"
    return Sample("counting", key, (asked, f"{answer}."))
