"""First come, first served, with chunked prompts: how vLLM V1 schedules by default.

Every decode runs in every step; what the step's token limit leaves over goes to prompts in order
of arrival. Blocks are claimed chunk by chunk, and the latest arrival makes room when they run out
(https://github.com/vllm-project/vllm/blob/main/vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

import math

from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.request import Request

# Share of the pool kept free at admission so that running requests can grow (vLLM's watermark).
SPARE_SHARE = 0.01


class Fcfs(SchedulingPolicy):
    """Chunked first come, first served; the token limit is the executor's own."""

    __slots__ = ("_limits",)

    name = "fcfs"
    ranks_move = False

    def __init__(self) -> None:
        self._limits = StepLimits()

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """By arrival."""
        return (request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """Its next chunk, and a hundredth of the pool for the growth of others."""
        return Room(spare_blocks=math.ceil(view.capacity.num_blocks * SPARE_SHARE))
