"""First come, first served, with chunked prompts: how vLLM V1 schedules by default.

Every decode runs in every step; what the token budget leaves over goes to prompts in order of
arrival. Blocks are claimed chunk by chunk, and the latest arrival makes room, by recomputation,
when they run out (https://github.com/vllm-project/vllm/blob/main/vllm/v1/core/sched/scheduler.py).
A budget of 2,048 tokens and 256 requests are vLLM's defaults for online serving on most devices.

Chosen here: a hundredth of the pool stays free at admission (vLLM 0.x's watermark; V1 has none),
because this engine starts nobody in a step that preempted, and would preempt more without.
"""

from __future__ import annotations

from engine.core.policies.admission import num_seats, watermark_blocks
from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.request import Request


class Fcfs(SchedulingPolicy):
    """Chunked first come, first served."""

    __slots__ = ("_max_running", "_token_budget")

    name = "fcfs"
    ranks_move = False

    def __init__(self, *, token_budget: int = 2048, max_running: int = 256) -> None:
        self._token_budget = token_budget
        self._max_running = max_running

    def limits(self, view: View) -> StepLimits:
        """The same in every step."""
        return StepLimits(
            max_tokens=self._token_budget,
            max_running=num_seats(view, self._max_running),
        )

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """By arrival."""
        return (request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """Its next chunk, and a hundredth of the pool for the growth of others."""
        return Room(spare_blocks=watermark_blocks(view))
