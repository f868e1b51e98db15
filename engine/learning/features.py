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
from engine.learning.grams import OPEN, GramKey, Grams, grams
from engine.learning.question import Question

RECENT = 0.5  # weight of the newest answer in a running mean; papers.md 8.3 has it from sharegpt8k
NEWEST, OLDER = 0.7, 0.2  # the same, for a shorter and a longer memory
MOST_PREVIOUS = 64  # answers of a conversation that are looked at

CONVERSATION_NAMES = (
    "log answers before", "is first", "last answer", "answer before last", "third last answer",
    "recent answers", "newest answers", "older answers", "least answer", "most answer",
    "middle answer", "mean answer", "spread of answers", "trend of answers",
    "log tokens asked", "asked before last", "mean asked", "asked beyond the mean",
    "answers to the like", "log all asked",
)  # fmt: skip
CONTEXT_NAMES = (
    "log prompt tokens", "log max tokens",
    *CONVERSATION_NAMES,
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


def featurise(question: Question, history: History = NO_HISTORY, key: GramKey = OPEN) -> Features:
    """Return the features of a question, in about a quarter of a millisecond.

    `key` is the installation's own: rows of another key are of no use, and without it grams cannot
    be turned back into words by trying words out.
    """
    words = words_of(question.text)
    numbers = np.empty(NUM_NUMBERS, np.float16)
    numbers[:NUM_CUES] = cues(question.text, words)
    numbers[NUM_CUES:] = [
        math.log1p(max(0, question.num_prompt_tokens)), math.log1p(max(0, question.max_tokens)),
        *conversation(question),
        math.log1p(history.num_answers), history.mean, history.recent, history.low,
        history.middle, history.high,
        math.sin(question.hour * math.pi / 12), math.cos(question.hour * math.pi / 12),
        history.hour,
    ]  # fmt: skip
    return Features(grams(words, key), numbers, max(1, question.max_tokens))


def conversation(question: Question) -> list[float]:
    """Return what a conversation's turns so far say, as CONVERSATION_NAMES has it."""
    told = question.previous_outputs
    logs = [math.log1p(max(0, tokens)) for tokens in told[-MOST_PREVIOUS:]]
    asked = [math.log1p(max(0, tokens)) for tokens in question.asked_tokens[-MOST_PREVIOUS - 1 :]]
    return [*_answers(logs, len(told)), *_asked(asked, logs), _all_asked(question)]


def _answers(logs: list[float], count: int) -> list[float]:
    if not logs:
        return [0.0, 1.0, *([math.nan] * 12)]
    ordered = sorted(logs)
    half = len(logs) // 2
    mean = sum(logs) / len(logs)
    return [
        math.log1p(count), 0.0, logs[-1],
        logs[-2] if len(logs) > 1 else math.nan, logs[-3] if len(logs) > 2 else math.nan,
        running_mean(logs, RECENT), running_mean(logs, NEWEST), running_mean(logs, OLDER),
        ordered[0], ordered[-1], (ordered[half] + ordered[-half - 1]) / 2, mean,
        math.sqrt(sum((log - mean) ** 2 for log in logs) / len(logs)), logs[-1] - logs[0],
    ]  # fmt: skip


def running_mean(logs: Sequence[float], weight: float) -> float:
    """Return the mean in which each newer value has this weight; `logs` are oldest first."""
    mean = logs[0]
    for log in logs[1:]:
        mean += weight * (log - mean)
    return mean


def _asked(asked: list[float], logs: list[float]) -> list[float]:
    """Return how long this turn is beside earlier ones, and what turns of its length were told."""
    if not asked:
        return [math.nan] * 5
    now, before = asked[-1], asked[:-1]
    if not before:
        return [now, *([math.nan] * 4)]
    mean = sum(before) / len(before)
    pairs = list(zip(reversed(before), reversed(logs), strict=False))
    alike = [math.exp(-((then - now) ** 2)) for then, _ in pairs]
    weight = sum(alike) + 1e-9
    told = sum(share * log for share, (_, log) in zip(alike, pairs, strict=True)) / weight
    return [now, before[-1], mean, now - mean, told if pairs else math.nan]


def _all_asked(question: Question) -> float:
    """Return the log of the prompt without the earlier answers in it."""
    return math.log1p(max(0, question.num_prompt_tokens - sum(question.previous_outputs)))
