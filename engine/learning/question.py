"""What is asked, as the predictor of lengths sees it; it knows no features and no model."""

from __future__ import annotations

from dataclasses import dataclass

MOST_TEXT = 4000  # characters kept of a prompt; beyond that the text says little more of the answer


@dataclass(frozen=True, slots=True)
class Question:
    """One request before it is served.

    `text` is what is asked (the last user message; "" where it is not known), bounded to
    MOST_TEXT characters by whoever makes the question: see `bounded`. `previous_outputs` are the
    tokens of the same conversation's earlier answers, oldest first; `asked_tokens` those of what
    was asked in each of its turns, oldest first, this turn's last, () where they are not known.
    `hour` is the UTC hour of the day, 0 to 24.
    """

    tenant: str
    text: str
    num_prompt_tokens: int
    max_tokens: int
    previous_outputs: tuple[int, ...] = ()
    hour: float = 0.0
    asked_tokens: tuple[int, ...] = ()


def bounded(text: str) -> str:
    """Return at most MOST_TEXT characters: the beginning and the end, where the asking is."""
    if len(text) <= MOST_TEXT:
        return text
    half = MOST_TEXT // 2
    return text[:half] + text[len(text) - half :]
