"""How a policy orders prompts, as a value for whoever forecasts; it knows no request and no time.

A forecast simulates the queue from outside the engine, where no policy object is: this is all of a
policy that such a simulation can know.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class PromptOrder(StrEnum):
    """Which prompt goes first within a class; closed list."""

    ARRIVAL = "arrival"
    SHORTEST = "shortest"  # by prompt tokens
    DUE = "due"  # by due time, the fewest given up (triage.py), the lost behind


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """The order of prompts; the other fields belong to `DUE` alone.

    `by_class`: a class ahead goes first, whoever arrived when. `second_ns` after its arrival a
    prompt that missed is due again and counts `second_weight` times as dear; `decode_weight` of
    its predicted decoding belongs to what a prompt costs. A lost prompt may be overtaken for
    `ageing` times its own length.
    """

    order: PromptOrder = PromptOrder.ARRIVAL
    by_class: bool = False
    second_ns: int = 0
    second_weight: float = 1.0
    decode_weight: float = 0.0
    ageing: float = 0.0


PLAIN_PLAN = PromptPlan()


class PromptDue(NamedTuple):
    """When a first token is due, or due again; a lost prompt has missed for good."""

    at_ns: int
    is_second: bool = False
    is_lost: bool = False
