"""What the engine decided about one request, as plain values; it decides and counts nothing.

A `RequestRecord` tells a request's story from its arrival to its end: what was promised and
predicted, when it was started and what it had waited for, the steps it ran in, when and why it was
held back, parked, brought back or preempted, and for whom. Numbers, ids and reasons from a closed
list: no prompt, no answer, no token.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from engine.core.errors import RefusalReason
from engine.core.request import TbtMode
from engine.core.stats import RequestStats


class DecisionKind(StrEnum):
    """What was decided, or happened; closed list."""

    STARTED = "started"  # from waiting to running; `waits` say what it had waited for
    RAN = "ran"  # it computed in these steps
    HELD = "held"  # it was running and in none of these steps
    PARKED = "parked"  # its context leaves for the host
    RETURNING = "returning"  # and is on its way back
    RETURNED = "returned"  # and is there
    PREEMPTED = "preempted"  # its context was dropped, to be computed again
    FAULT = "fault"  # a step or a copy of its context failed: likewise
    POLICY = "policy"  # the policy thought otherwise of it: `detail` in its words


class Reason(StrEnum):
    """What kept a request from running, or took its memory; closed list."""

    __hash__ = str.__hash__  # an enum's own is five times as slow, and times are added up by these

    # Nobody (else) is started, or this one is in no step:
    STEP_UNDER_WAY = "step_under_way"  # until a step was planned that could have it
    TOKENS_FULL = "tokens_full"  # the step may hold no more tokens
    ROWS_FULL = "rows_full"  # the batch has no more rows
    TIME_FULL = "time_full"  # the step's time budget is used up
    DECODES_FULL = "decodes_full"  # the policy lets no more decodes into a step
    PROMPTS_FULL = "prompts_full"  # the policy lets no more prompts into a step
    SEATS_FULL = "seats_full"  # as many are running as may
    WHOLE_PROMPT = "whole_prompt"  # its prompt goes in one chunk, and this step has no room for it
    NO_MEMORY = "no_memory"  # too few blocks are free
    MEMORY_COMING = "memory_coming"  # copies under way will free what is missing
    RETURN_FIRST = "return_first"  # somebody parked, ranked ahead, lacks room to come back
    ROOM_MADE = "room_made"  # others lost their memory in this step, and not for this one
    # Memory was taken, or given back:
    GROWTH = "growth"  # somebody ahead needed its blocks for his next tokens
    NEWCOMER = "newcomer"  # somebody ahead was started in its place
    POLICY_WISH = "policy_wish"  # the policy wanted it so
    NOBODY_ELSE = "nobody_else"  # nobody else could run


class Decision(NamedTuple):
    """One decision, or a stretch of equal ones; times are the engine's, in ns.

    `at_ns` is when the step `step` was planned; a stretch ends at `until_ns`, and `until_step` is
    its last step. Of `num_steps` in a stretch of RAN, the others up to `until_step` were skipped
    for a moment while its token was not due. `num_tokens` are prompt and answer tokens computed in
    a stretch, found in the prefix cache at a start, carried or dropped otherwise;
    `num_output_tokens` the answer's tokens made in a stretch. `due_ns` is when the next token was
    due at that moment: `due_ns - at_ns` is the bank, negative when it is late. `is_due` False: it
    was held back at no cost, since its token was not due yet. `others` are (id, tier) of whoever
    it made room for, or who made room for it. `waits` are (reason, ns); `first_waits` those in
    which it was first in line.
    """

    kind: DecisionKind
    at_ns: int
    step: int
    until_ns: int = 0
    until_step: int = 0
    reason: Reason | None = None
    is_due: bool = True
    num_steps: int = 0
    num_tokens: int = 0
    num_output_tokens: int = 0
    due_ns: int | None = None
    others: tuple[tuple[str, str], ...] = ()
    waits: tuple[tuple[Reason, int], ...] = ()
    first_waits: tuple[tuple[Reason, int], ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The story of one request up to `read_ns`; `end` is None while it is live, or was refused.

    `state` is where it stands: "waiting", "running", "held" (running, not in the latest step),
    "parked", "finished" or "refused". `standing` says in the policy's words how it stands.
    `decisions` are in order; `num_dropped` of them, from the middle, were not kept. `num_steps` is
    in how many steps it computed, those of dropped decisions included. `is_followed` is False
    where steps were not followed (RAN and HELD are missing then). `predicted_tokens` and
    `predicted_high` are the guess of its answer's length (0: none), `late_tokens` as the engine
    counts them, `worst_late_ns` by how much the worst of them was late.
    """

    request_id: str
    tenant: str
    tier: str
    rank: int
    read_ns: int
    arrival_ns: int
    submitted_ns: int
    first_token_due_ns: int
    tbt_ns: int
    tbt_mode: TbtMode
    pace_ns: int
    num_prompt_tokens: int
    max_tokens: int
    state: str
    predicted_tokens: float = 0.0
    predicted_high: float = 0.0
    first_token_ns: int | None = None
    num_output_tokens: int = 0
    late_tokens: int = 0
    worst_late_ns: int = 0
    num_steps: int = 0
    is_followed: bool = True
    standing: str = ""
    decisions: tuple[Decision, ...] = ()
    num_dropped: int = 0
    refusal: RefusalReason | None = None
    end: RequestStats | None = None
