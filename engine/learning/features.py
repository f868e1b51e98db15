"""What is kept of a question: grams and numbers, no text; it learns nothing.

`featurise` is the only place that reads a prompt. What it returns is all that the model of lengths
sees, and all that is ever stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.learning.cues import NAMES as CUE_NAMES
from engine.learning.cues import cues, words_of
from engine.learning.grams import Grams, grams
from engine.learning.question import Question

RECENT = 0.5  # weight of the newest answer of a conversation; papers.md 8.3 has it from sharegpt8k
MOST_PREVIOUS = 64  # answers of a conversation that are looked at

CONTEXT_NAMES = (
    "log prompt tokens", "log max tokens",
    "log answers before", "last answer", "recent answers", "least answer", "most answer",
    "middle answer", "mean answer", "trend of answers", "answer before last", "is first",
    "tenant answers", "tenant mean", "tenant recent", "tenant low", "tenant middle", "tenant high",
    "hour sin", "hour cos", "tenant hour",
)  # fmt: skip
NUMBER_NAMES: tuple[str, ...] = (*CUE_NAMES, *CONTEXT_NAMES)
NUM_CUES = len(CUE_NAMES)
NUM_NUMBERS = len(NUMBER_NAMES)


@dataclass(frozen=True, slots=True)
class History:
    """What a tenant's finished answers were like; NaN where nothing is known.

    All but `num_answers` are logs of one plus a token count: mean, recent mean, 10th, 50th and
    90th percentile, and the mean of the answers given at about this hour of the day.
    """

    num_answers: int = 0
    mean: float = math.nan
    recent: float = math.nan
    low: float = math.nan
    middle: float = math.nan
    high: float = math.nan
    hour: float = math.nan


NO_HISTORY = History()


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One question as the model sees it.

    `grams` uint16 (n,), ascending; `numbers` float16 (NUM_NUMBERS,), NaN where not known.
    """

    grams: Grams
    numbers: npt.NDArray[np.float16]
    max_tokens: int


def featurise(question: Question, history: History = NO_HISTORY, salt: int = 0) -> Features:
    """Return the features of a question, in about a quarter of a millisecond.

    `salt` (32 bits) is the installation's own: rows of another salt are of no use, and grams
    cannot be turned back into words by trying words out.
    """
    words = words_of(question.text)
    numbers = np.empty(NUM_NUMBERS, np.float16)
    numbers[:NUM_CUES] = cues(question.text, words)
    numbers[NUM_CUES:] = [
        math.log1p(max(0, question.num_prompt_tokens)), math.log1p(max(0, question.max_tokens)),
        *conversation(question.previous_outputs),
        math.log1p(history.num_answers), history.mean, history.recent, history.low,
        history.middle, history.high,
        math.sin(question.hour * math.pi / 12), math.cos(question.hour * math.pi / 12),
        history.hour,
    ]  # fmt: skip
    return Features(grams(words, salt), numbers, max(1, question.max_tokens))


def conversation(previous: Sequence[int]) -> list[float]:
    """Return what the earlier answers of a conversation say, as CONTEXT_NAMES has it."""
    logs = [math.log1p(max(0, tokens)) for tokens in previous[-MOST_PREVIOUS:]]
    if not logs:
        return [0.0, *([math.nan] * 8), 1.0]
    recent = logs[0]
    for log in logs[1:]:
        recent += RECENT * (log - recent)
    ordered = sorted(logs)
    half = len(logs) // 2
    return [
        math.log1p(len(previous)), logs[-1], recent, ordered[0], ordered[-1],
        (ordered[half] + ordered[-half - 1]) / 2, sum(logs) / len(logs), logs[-1] - logs[0],
        logs[-2] if len(logs) > 1 else math.nan, 0.0,
    ]  # fmt: skip
