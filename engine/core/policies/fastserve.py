"""FastServe: a skip-join multi-level feedback queue; it needs no prediction of lengths.

After https://arxiv.org/abs/2305.05920 and its authors' code (https://github.com/LLMServe/FastServe).
Queue L has a quantum of 10 ms * 2^L. A job joins the first queue whose quantum covers its prompt's
time, is moved one queue down whenever it ran for more than its queue's quantum, and is moved to the
top when a check, made every 1,000 steps, finds it without a step for 3 s. A step's batch is taken
in order of queue and arrival; jobs outside of it are swapped to the host when room is short, and
come back ahead of use (see swapping.py). Prompts are computed whole, beside decodes.

Where the source is silent or does not fit:

* The prompt's time is the latency model's for a step that holds it alone (the source: a profile).
* Within a queue, by arrival (in the code, those that just ran go first, in an order that turns with
  every step).
* The wait of a job that never ran counts from its arrival. (In the code it counts from the clock's
  zero, so that the first check lifts every such job to the top.)
* Every job on the device belongs to the batch: where the batch is full, a better newcomer takes the
  seat of the job at the back, which leaves the device. (In the code it may stay there, idle, while
  memory lasts; with 128 seats memory is short first.) Jobs whose prompt is under way stay.
* `chunk` computes prompts in pieces, under a token budget, for comparison with policies that do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.latency_model import LatencyModel, StepCost
from engine.core.policies.admission import num_seats
from engine.core.policies.swapping import host_is_full, swap
from engine.core.policy import NO_LIMIT, Rank, Room, SchedulingPolicy, StepLimits, Traffic, View
from engine.core.request import Request, Status


class FastServe(SchedulingPolicy):
    """Skip-join MLFQ; `note` is the queue, the time used in it, and when the last step ended."""

    __slots__ = (
        "_checked_ns",
        "_chunk",
        "_max_running",
        "_model",
        "_newcomer",
        "_num_steps",
        "_period",
        "_quantum_ns",
        "_starvation_ns",
        "_token_budget",
    )

    name = "fastserve"
    ranks_move = True
    swaps = True

    def __init__(
        self,
        model: LatencyModel,
        *,
        quantum_ms: float = 10.0,
        starvation_s: float = 3.0,
        period: int = 1000,
        token_budget: int = 8192,
        max_running: int = 128,
        chunk: bool = False,
    ) -> None:
        self._model = model
        self._quantum_ns = quantum_ms * NS_PER_MS
        self._starvation_ns = min(starvation_s * NS_PER_S, float(NO_LIMIT))
        self._period = period
        self._token_budget = token_budget
        self._max_running = max_running
        self._chunk = chunk
        self._num_steps = 0
        self._checked_ns = 0  # the last check for starving jobs
        self._newcomer: Request | None = None  # who was last asked for room at the queue's head

    def limits(self, view: View) -> StepLimits:
        """Whole prompts and every decode; no new prompt while the host is nearly full."""
        max_running = num_seats(view, self._max_running)
        if host_is_full(view):
            max_running = min(max_running, max(1, view.num_running))
        return StepLimits(
            max_tokens=self._token_budget,
            max_running=max_running,
            whole_prompts=not self._chunk,
        )

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Queue, then arrival."""
        return (self.queue(request), request.order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        """The same order."""
        return (self.queue(request), request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, and a block for each who runs."""
        if request.status is Status.WAITING:
            self._newcomer = request
        return Room(claim_tokens=request.num_tokens, spare_blocks=view.num_running)

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        """A better queue preempts, from one step to the next."""
        if host_is_full(view) or not victim.is_decoding:
            return False
        return self.queue(newcomer) < self.queue(victim)

    def traffic(self, view: View) -> Traffic:
        """Whoever belongs to the batch comes back, whoever does not leaves where room is short."""

        def may_leave(job: Request, wanted: Request | None) -> bool:
            return wanted is None or self.queue(wanted) < self.queue(job)

        return swap(
            view,
            lambda job: self.keep_rank(job, view),
            self._newcomer,
            seats=num_seats(view, self._max_running),
            may_leave=may_leave,
        )

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        """Charge the step to everyone in it, and move those down whose quantum is used up."""
        for request in requests:
            queue = self.queue(request)
            used_ns = request.note[1] if request.note and request.note[0] == queue else 0
            used_ns += elapsed_ns
            if used_ns > self._quantum_ns * 2**queue:
                queue, used_ns = queue + 1, 0
            request.note = (queue, used_ns, view.now_ns)
        self._num_steps += 1
        if self._num_steps % self._period == 0:
            self._checked_ns = view.now_ns

    def queue(self, job: Request) -> int:
        """Return the queue a job stands in; 0 is served first."""
        last_ns = job.note[2] if job.note else job.order.arrival_ns
        if self._checked_ns - last_ns >= self._starvation_ns:
            return 0
        return job.note[0] if job.note else self._first_queue(job)

    def _first_queue(self, job: Request) -> int:
        """Skip-join: the first queue whose quantum covers the whole prompt."""
        step = StepCost(self._model)
        step.add_prefill(0, job.num_prompt_tokens)
        return max(0, math.ceil(math.log2(max(step.total_ns / self._quantum_ns, 1.0))))
