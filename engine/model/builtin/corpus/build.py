"""Knows the mixture of topics and the split into training and held-out conversations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from engine.model.builtin.corpus.arithmetic import (
    draw_arithmetic,
    draw_comparison,
    draw_counting,
    draw_table,
)
from engine.model.builtin.corpus.chat import draw_copy, draw_dialog, draw_talk
from engine.model.builtin.corpus.explaining import draw_definition, draw_essay, draw_text
from engine.model.builtin.corpus.knowledge import (
    draw_fact,
    draw_list,
    draw_spelling,
    draw_yes_no,
)
from engine.model.builtin.corpus.sample import Sample, finish, is_held_out, prompt_id

Draw = Callable[[random.Random], Sample]

# Each topic with its share of the samples: at first, and once the texts are known by heart. What is
# left to learn then, sums, counting, copying and spelling, are skills and need far more examples.
MIXTURE: tuple[tuple[Draw, float, float], ...] = (
    (draw_definition, 0.19, 0.09),
    (draw_essay, 0.022, 0.012),
    (draw_arithmetic, 0.235, 0.33),
    (draw_comparison, 0.05, 0.06),
    (draw_table, 0.008, 0.008),
    (draw_counting, 0.07, 0.115),
    (draw_fact, 0.115, 0.07),
    (draw_yes_no, 0.05, 0.04),
    (draw_list, 0.075, 0.045),
    (draw_spelling, 0.065, 0.09),
    (draw_talk, 0.04, 0.03),
    (draw_copy, 0.05, 0.13),
    (draw_dialog, 0.06, 0.04),
    (draw_text, 0.015, 0.008),
)
SKILLS_FROM_SAMPLE = 76_800
_HELD_OUT_SEED = 20_261_121


def held_out(count: int = 600) -> list[Sample]:
    """The evaluation set: always the same for one count, every prompt different.

    Every family of the mixture is represented, the rare ones by at least four per cent.
    """
    rng = random.Random(_HELD_OUT_SEED)
    draws = [draw for draw, _, _ in MIXTURE if draw is not draw_text]
    weights = [max(weight, 0.04) for draw, weight, _ in MIXTURE if draw is not draw_text]
    seen: set[str] = set()
    found: list[Sample] = []
    while len(found) < count:
        sample = rng.choices(draws, weights)[0](rng)
        if sample.key == "kept" or not is_held_out(sample.key):
            continue
        sample = finish(rng, sample)
        name = prompt_id(sample)
        if name not in seen:
            seen.add(name)
            found.append(sample)
    return found


def training(seed: int) -> Iterator[Sample]:
    """Endless training conversations of one seed; none shares its prompt with a held-out one."""
    rng = random.Random(seed)
    draws, weights, skill_weights = zip(*MIXTURE, strict=True)
    forbidden = {prompt_id(sample) for sample in held_out()}
    yielded = 0
    while True:
        if yielded == SKILLS_FROM_SAMPLE:
            weights = skill_weights
        sample = rng.choices(draws, weights)[0](rng)
        if sample.key != "kept" and sample.family != "text" and is_held_out(sample.key):
            continue
        sample = finish(rng, sample) if sample.family != "text" else sample
        if sample.family == "text" or prompt_id(sample) not in forbidden:
            yielded += 1
            yield sample
