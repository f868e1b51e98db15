"""Made-up requests whose answers' lengths follow from what is asked, and predictors of them."""

from __future__ import annotations

import random

from engine.learning.predictor import LearnedPredictor
from engine.learning.question import Question

KINDS = {
    "Write a lengthy legend about the {}.": 600,
    "What is the colour of the {}?": 8,
    "Explain in a few sentences what a {} is.": 90,
    "Name one {}.": 3,
}
THINGS = ("river", "engine", "planet", "winter", "mirror", "garden", "harbour", "letter")


def ask(rng: random.Random, tenant: str = "acme", scale: float = 1.0) -> tuple[Question, int]:
    """Return a question, and the tokens of its answer: by its kind, times `scale`, give or take."""
    kind = rng.choice(list(KINDS))
    text = kind.format(rng.choice(THINGS))
    length = max(1, round(KINDS[kind] * scale * rng.lognormvariate(0.0, 0.2)))
    return Question(tenant, text, len(text) // 4, 4096, hour=rng.random() * 24), length


def serve(
    predictor: LearnedPredictor,
    rng: random.Random,
    count: int,
    tenant: str = "acme",
    scale: float = 1.0,
) -> list[tuple[float, float, int]]:
    """Ask and answer so many requests of a tenant; return (middle, high, length) of each."""
    out = []
    for number in range(count):
        question, length = ask(rng, tenant, scale)
        name = f"{tenant}/{number}/{rng.random()}"
        guess = predictor.predict(name, question)
        predictor.observe(name, length, is_whole=True)
        out.append((guess.middle, guess.high, length))
    return out


def order_accuracy(rows: list[tuple[float, float, int]]) -> float:
    """Return the share of pairs whose guesses are in the order of their lengths."""
    total = right = 0.0
    for i, (middle, _, length) in enumerate(rows):
        for other_middle, _, other_length in rows[:i]:
            if length != other_length:
                total += 1
                product = (middle - other_middle) * (length - other_length)
                right += 1.0 if product > 0 else 0.5 if product == 0 else 0.0
    return right / total
