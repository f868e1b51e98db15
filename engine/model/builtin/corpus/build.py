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

# Each topic with its share of the samples in four phases. The first learns the texts; what is then
# left are skills, sums, copying and spelling, which need far more examples than facts; the third
# is for the slowest of them, counting and comparing; the last for what was still weak on questions
# that nobody had looked at before: sums, copying and second turns.
MIXTURE: tuple[tuple[Draw, tuple[float, float, float, float]], ...] = (
    (draw_definition, (0.19, 0.09, 0.055, 0.05)),
    (draw_essay, (0.022, 0.012, 0.006, 0.006)),
    (draw_arithmetic, (0.235, 0.33, 0.2, 0.36)),
    (draw_comparison, (0.05, 0.06, 0.2, 0.07)),
    (draw_table, (0.008, 0.008, 0.008, 0.006)),
    (draw_counting, (0.07, 0.115, 0.25, 0.15)),
    (draw_fact, (0.115, 0.07, 0.035, 0.05)),
    (draw_yes_no, (0.05, 0.04, 0.025, 0.02)),
    (draw_list, (0.075, 0.045, 0.02, 0.02)),
    (draw_spelling, (0.065, 0.09, 0.07, 0.04)),
    (draw_talk, (0.04, 0.03, 0.02, 0.02)),
    (draw_copy, (0.05, 0.13, 0.09, 0.17)),
    (draw_dialog, (0.06, 0.04, 0.02, 0.06)),
    (draw_text, (0.015, 0.008, 0.003, 0.002)),
)
PHASE_STARTS = (0, 76_800, 172_800, 230_400)  # in samples
_HELD_OUT_SEED = 20_261_121


def held_out(count: int = 600, seed: int = _HELD_OUT_SEED) -> list[Sample]:
    """The evaluation set: always the same for one count and seed, every prompt different.

    Every draw takes keys that training never sees; of the default one ``training`` also leaves out
    prompts that only look alike. The families have the shares of the first phase, but at least
    four per cent.
    """
    rng = random.Random(seed)
    draws = [draw for draw, _ in MIXTURE if draw is not draw_text]
    weights = [max(phases[0], 0.04) for draw, phases in MIXTURE if draw is not draw_text]
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
    draws = [draw for draw, _ in MIXTURE]
    weights: list[float] = []
    forbidden = {prompt_id(sample) for sample in held_out()}
    yielded = 0
    while True:
        if yielded in PHASE_STARTS:
            phase = PHASE_STARTS.index(yielded)
            weights = [phases[phase] for _, phases in MIXTURE]
        sample = rng.choices(draws, weights)[0](rng)
        if sample.key != "kept" and sample.family != "text" and is_held_out(sample.key):
            continue
        sample = finish(rng, sample) if sample.family != "text" else sample
        if sample.family == "text" or prompt_id(sample) not in forbidden:
            yielded += 1
            yield sample
