"""A guess from running numbers alone: what is said before a model is fitted, or where it errs.

A prior, drawn towards what the tenant's answers were like, drawn towards what this conversation's
earlier answers were like. It reads no prompt and learns nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.learning.features import RECENT, History
from engine.learning.lognormal import LEAST_SPREAD, Z90, LogGuess

# Before anything is known: the middle and the spread of chat answers, of all public traces alike.
PRIOR = LogGuess(math.log1p(256.0), 1.1)
PRIOR_ANSWERS = 3.0  # the prior counts as much as so many answers
SPREAD_ANSWERS = 10.0

# How far a conversation's own earlier answers pull a guess. Correlations of neighbouring answers
# are 0.52 (ShareGPT) and 0.34 (HH), papers.md 8.3; each further turn adds a little.
FIRST_PULL = 0.45
MOST_PULL = 0.75


def first_guess(previous_outputs: Sequence[int], history: History) -> LogGuess:
    """Return the guess for a question of this conversation and this tenant."""
    guess = _of_tenant(history)
    if not previous_outputs:
        return guess
    logs = [math.log1p(max(0, tokens)) for tokens in previous_outputs]
    recent = logs[0]
    for log in logs[1:]:
        recent += RECENT * (log - recent)
    turns = len(logs)
    pull = FIRST_PULL + (MOST_PULL - FIRST_PULL) * (1.0 - 1.0 / turns)
    log = guess.log + pull * (recent - guess.log)
    return LogGuess(log, max(LEAST_SPREAD, guess.spread * math.sqrt(1.0 - pull * pull)))


def _of_tenant(history: History) -> LogGuess:
    known = history.num_answers
    if not known:
        return PRIOR
    share = known / (known + PRIOR_ANSWERS)
    log = PRIOR.log + share * ((history.middle + history.recent) / 2 - PRIOR.log)
    seen = (history.high - history.middle) / Z90
    share = known / (known + SPREAD_ANSWERS)
    return LogGuess(log, max(LEAST_SPREAD, PRIOR.spread + share * (seen - PRIOR.spread)))
