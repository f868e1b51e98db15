"""Sarathi-Serve: stall-free batching under one fixed token budget.

A step holds one token of every running decode, then chunks of prompts under way, then new prompts,
never more than the budget in all (https://arxiv.org/abs/2403.02310, section 4.2). New prompts come
in order of arrival, or shortest first: the order that SLAI's authors add to their fork and compare
with (https://github.com/agrimUT/SLAI). As in their code a prompt is started only when blocks for
all of it are free above a watermark, and the latest arrival is evicted when decodes run out.

One difference: where no later arrival holds anything, the authors evict the decode that asks; here
it waits in place until a block is free, which costs it the step either way and nothing besides.
"""

from __future__ import annotations

from engine.core.policies.admission import num_seats, whole_history
from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.prompt_plan import PromptOrder, PromptPlan
from engine.core.request import Request, Status


class Sarathi(SchedulingPolicy):
    """Fixed budget, decodes first; 512 tokens and 128 requests are the authors' strict setting."""

    __slots__ = ("_max_running", "_shortest_first", "_token_budget")

    ranks_move = False

    def __init__(
        self, *, token_budget: int = 512, max_running: int = 128, shortest_first: bool = False
    ) -> None:
        self._token_budget = token_budget
        self._max_running = max_running
        self._shortest_first = shortest_first

    @property
    def name(self) -> str:
        """One class under two names."""
        return "sarathi-spf" if self._shortest_first else "sarathi"

    def limits(self, view: View) -> StepLimits:
        """The same in every step."""
        return StepLimits(
            max_tokens=self._token_budget,
            max_running=num_seats(view, self._max_running),
        )

    @property
    def prompt_plan(self) -> PromptPlan:
        """By arrival, or by length."""
        return PromptPlan(PromptOrder.SHORTEST if self._shortest_first else PromptOrder.ARRIVAL)

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Prompts under way first, by arrival; then new ones, by length if that is the order.

        An evicted request's prompt is all it has so far.
        """
        arrival_ns = request.order.arrival_ns
        if request.status is Status.RUNNING:
            return (0, 0, arrival_ns, request.id)
        length = request.num_tokens if self._shortest_first else 0
        return (1, length, arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, above the watermark."""
        return whole_history(request, view)
