"""vLLM 0.x: prompts first, whole, and nothing else beside them.

As long as the first waiting prompt fits, a step holds whole prompts only (8,192 tokens and 128
requests at most); else it holds one token of every running decode. So decodes stall behind every
prompt: the generation stalls that Sarathi-Serve was made against. Out of blocks, the latest
arrival is evicted and computed again. This is the `vllm` baseline of SLAI's authors
(https://github.com/agrimUT/SLAI), not today's vLLM.

A policy is not told who waits first, so a prompt step is asked for whenever anyone waits; where
nobody could be started in it the scheduler plans that very step again with every decode, which is
just this rule. Where the source does not fit: vLLM drops a prompt longer than a step's budget; here
it is computed in pieces once everyone who runs has finished (the scheduler's last fallback).
"""

from __future__ import annotations

from engine.core.policies.admission import num_seats, whole_history
from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.request import Request

DECODES_ONLY = StepLimits(max_prefills=0)


class Vllm0(SchedulingPolicy):
    """Prompt steps and decode steps, never mixed."""

    __slots__ = ("_max_running", "_token_budget")

    name = "vllm0"
    ranks_move = False

    def __init__(self, *, token_budget: int = 8192, max_running: int = 128) -> None:
        self._token_budget = token_budget
        self._max_running = max_running

    def limits(self, view: View) -> StepLimits:
        """Whole prompts and no decode while anyone's prompt is not done; else decodes."""
        if not view.num_waiting and not view.prefilling:
            return DECODES_ONLY
        return StepLimits(
            max_tokens=self._token_budget,
            max_decodes=0,
            max_running=num_seats(view, self._max_running),
            whole_prompts=True,
        )

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """By arrival."""
        return (request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, above the watermark."""
        return whole_history(request, view)
