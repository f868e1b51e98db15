"""Orca: iteration-level scheduling, whole prompts beside decodes, memory reserved to the end.

Requests join and leave the batch between steps, first come, first served; a prompt is computed
whole in the step that admits it, together with one token of every decode. Room for the longest
answer a request may give is set aside at admission, so nobody is ever preempted, and so few fit
that the batch is small: 8 in SLAI's evaluation (https://github.com/agrimUT/SLAI).

Where sources differ: Orca's paper (OSDI 2022, Algorithm 1) reserves each request's own maximum,
the SLAI authors' re-implementation the model's context window. The former is used here; the room
a request can claim ends at what it could ever use anyway. A prompt longer than the executor's step
is computed in pieces once everyone who runs has finished (the scheduler's last fallback).
"""

from __future__ import annotations

from engine.core.policies.admission import num_seats
from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.request import Request


class Orca(SchedulingPolicy):
    """A small batch that nobody has to leave."""

    __slots__ = ("_max_running",)

    name = "orca"
    ranks_move = False

    def __init__(self, *, max_running: int = 8) -> None:
        self._max_running = max_running

    def limits(self, view: View) -> StepLimits:
        """As many tokens as the executor takes; the batch size is the limit."""
        return StepLimits(max_running=num_seats(view, self._max_running), whole_prompts=True)

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """By arrival."""
        return (request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """Everything it could ever need."""
        return Room(claim_tokens=request.max_num_tokens)
