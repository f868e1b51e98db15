"""Knows what a concept record is and how to gather all of them; knows no question wording."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing the model can define: names used in questions, and three pieces of answer text.

    ``definition`` answers "what is", ``why`` answers "why does it matter", and definition, why and
    ``more`` together answer "explain". ``stands_for`` is the written-out form of an abbreviation.
    """

    names: tuple[str, ...]
    definition: str
    why: str
    more: str
    stands_for: str = ""


def explain(concept: Concept) -> str:
    """The paragraph that answers a request to explain the concept."""
    return f"{concept.definition} {concept.why} {concept.more}"
