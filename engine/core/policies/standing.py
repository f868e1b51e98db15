"""How a request stands with the hybrid, in clauses an operator can read; it decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.core.clock import NS_PER_S
from engine.core.policies.open_prompts import LOST, SECOND

ON_TIME = "its first token can still be on time"
GIVEN_UP = (
    "given up for now: not all prompts of its class can be on time, and it is among the dearest"
)
AGAIN = "its first due time cannot be kept: it has a second one"
BOTH_LOST = "neither due time can be kept: it goes behind the others of its class, shortest first"
TURN = "its turn as the oldest of those whose due times could not be kept"


def prompt_words(stage: int, *, is_given_up: bool, is_turn: bool) -> str:
    """Return how a prompt without a first token stands."""
    if is_turn:
        return TURN
    if stage == LOST:
        return BOTH_LOST
    if is_given_up:
        return GIVEN_UP
    return AGAIN if stage == SECOND else ON_TIME


def away_words(back_at_ns: int, arrival_ns: int) -> str:
    """Return until when a parked stream may stay away, counted from its arrival."""
    return f"it may stay away until {(back_at_ns - arrival_ns) / NS_PER_S:.1f} s after its arrival"


def news_words(moved: Mapping[str, int], given_up: Iterable[str]) -> dict[str, str]:
    """Return what has changed for these: to which stage they moved, or that they are given up."""
    words = dict.fromkeys(given_up, GIVEN_UP)
    for name, stage in moved.items():
        words[name] = BOTH_LOST if stage == LOST else AGAIN
    return words
