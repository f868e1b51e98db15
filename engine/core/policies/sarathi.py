"""Sarathi-Serve: stall-free batching under one fixed token budget.

A step holds one token of every running decode, then chunks of prompts under way, then new prompts
in order of arrival, never more than the budget in all (https://arxiv.org/abs/2403.02310, section
4.2). As in its authors' code a prompt is started only when blocks for all of it are free above a
watermark, and the latest arrival is evicted when decodes run out of blocks.
"""

from __future__ import annotations

import math

from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.request import Request, Status

WATERMARK = 0.01  # share of the pool kept free at admission


class Sarathi(SchedulingPolicy):
    """Fixed budget, decodes first; 512 tokens and 128 requests are the authors' strict setting."""

    __slots__ = ("_limits",)

    name = "sarathi"
    ranks_move = False

    def __init__(self, *, token_budget: int = 512, max_running: int = 128) -> None:
        if token_budget < 1 or max_running < 1:
            raise ValueError("sarathi: token_budget and max_running must be at least 1")
        self._limits = StepLimits(max_tokens=token_budget, max_running=max_running)

    def limits(self, view: View) -> StepLimits:
        """The same in every step."""
        return self._limits

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Prompts under way first, then by arrival."""
        started = request.status is Status.RUNNING
        return (0 if started else 1, request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, above the watermark."""
        return Room(
            claim_tokens=request.num_tokens,
            spare_blocks=math.ceil(view.capacity.num_blocks * WATERMARK),
        )
