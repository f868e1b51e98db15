"""The engine's load as a value: all that a forecast at the door needs to know, between two steps.

It describes and decides nothing, and knows no reader. One value is a few hundred numbers at most,
however many requests wait: who is next is listed one by one, who comes far behind is added up. It
carries no id, tenant or content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.core.prompt_plan import PLAIN_PLAN, PromptPlan

MANY = 1 << 30


class OpenPrompt(NamedTuple):
    """A request without a first token that can still be on time, as far as its policy knows.

    `due_ns` counts from the load's `at_ns` (negative: overdue); `num_tokens` of its prompt are
    still to compute, the prefix cache being as it is; `decode_tokens` is the predicted length of
    its answer (the middle).
    """

    due_ns: int
    num_tokens: int
    decode_tokens: int = 0
    is_second: bool = False  # it missed its first due time: this is the second
    is_started: bool = False  # it holds its blocks


class Release(NamedTuple):
    """Requests that run and are predicted to end after about as many tokens more.

    `num_requests` hold `num_tokens` of context together (with what they will still generate they
    end with `num_tokens + num_requests * remaining_tokens`). `remaining_tokens` is the most of the
    group, by the p90 of the predicted lengths.
    """

    remaining_tokens: int
    num_requests: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """One class (tier): who waits for a first token, and who decodes.

    `prompts` are the first of those that can still be on time, in the order of the plan; those
    behind them are added up in `more` and `more_tokens`. `lost` prompts missed for good and are
    served when nobody else of their class is. Prompt tokens are those not computed yet.
    """

    tier: str
    rank: int
    prompts: tuple[OpenPrompt, ...] = ()
    more: int = 0
    more_tokens: int = 0
    lost: int = 0
    lost_tokens: int = 0
    decodes: int = 0
    decode_tokens: int = 0  # contexts of the decodes together
    parked: int = 0
    tbt_ns: int = 0  # the gap between tokens promised to those who decode, the tightest

    @property
    def num_open(self) -> int:
        """Requests without a first token."""
        return len(self.prompts) + self.more + self.lost

    @property
    def open_tokens(self) -> int:
        """Prompt tokens that they still have to compute."""
        return sum([p.num_tokens for p in self.prompts]) + self.more_tokens + self.lost_tokens


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What waits, what runs, what a step costs and when memory comes free; classes by rank.

    `at_ns` is when it was read: some fields of a snapshot may be newer. `last_arrival_ns` is the
    latest arrival of all requests the engine took: whoever came to the door later is not in here.
    `budget_ns` bounds a step's time and `budget_tokens` its tokens (0: not bounded).

    Of the latency model, all 0 where there is none: `decode_ns` is a step of all decodes that run
    and nothing else; a step with prompts takes `bare_ns`, `row_ns` per decode, `context_ns` per
    token of their contexts and `prompt_token_ns` per prompt token, and no less than `decode_ns`.

    Measured over the latest seconds in which somebody waited, 0 before there were any:
    `prompt_rate` is prompt tokens per second, `start_rate` requests started per second, `step_ns`
    how long a step took, `decode_share` how many of the decodes that ran had a seat in a step.

    `future_peak_tokens` is the most context that all who run will need at once (past_future.py).
    """

    at_ns: int
    classes: tuple[ClassLoad, ...] = ()
    plan: PromptPlan = PLAIN_PLAN
    budget_ns: int = 0
    budget_tokens: int = 0
    last_arrival_ns: int = 0
    decode_ns: int = 0
    bare_ns: float = 0.0
    row_ns: float = 0.0
    context_ns: float = 0.0
    prompt_token_ns: float = 0.0
    prompt_rate: float = 0.0
    start_rate: float = 0.0
    step_ns: int = 0
    decode_share: float = 1.0
    num_blocks: int = 0
    free_blocks: int = 0
    coming_blocks: int = 0
    block_size: int = 1
    free_seats: int = MANY  # how many more requests may be started before one has to end
    releases: tuple[Release, ...] = ()  # the soonest first
    future_peak_tokens: int = 0
    draining: bool = False

    @property
    def num_decodes(self) -> int:
        """Requests that decode on the device."""
        return sum([c.decodes for c in self.classes])

    @property
    def open_tokens(self) -> int:
        """Prompt tokens still to compute."""
        return sum([c.open_tokens for c in self.classes])

    @property
    def waiting(self) -> tuple[int, int]:
        """Return how many requests are not started, those lost too, and their prompts' tokens."""
        count = tokens = 0
        for c in self.classes:
            count += c.more + c.lost
            tokens += c.more_tokens + c.lost_tokens
            for prompt in c.prompts:
                if not prompt.is_started:
                    count += 1
                    tokens += prompt.num_tokens
        return count, tokens

    @property
    def is_idle(self) -> bool:
        """True where nobody waits for a first token."""
        return not any(c.num_open for c in self.classes)

    def of(self, tier: str) -> ClassLoad | None:
        """Return a tier's load; None where it has none."""
        return next((c for c in self.classes if c.tier == tier), None)
