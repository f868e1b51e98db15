"""ALISE, reconstructed: shortest predicted remaining time first, and swapping by expected wait.

What is public of https://arxiv.org/abs/2410.23537 is its abstract, the start of its introduction
and its time model; no code. Known from there: a job's time is prompt * T0 + output * (alpha *
prompt + beta), T0, alpha and beta come from profiling; jobs with less remaining predicted time go
first, through priority queues, preemptively, at the granularity of a step; and the KV cache of
preempted jobs moves to the host and back, request by request, by expected waiting time (EWT).
Everything below fills what is not public:

* Length: whichever predictor the engine has (an oracle is one). Once a guess is overrun, half of
  what was generated is still to come (`length_predictor`), never nothing.
* T0 is the price of a prompt token in a full step; alpha and beta are those of a decode step of 32
  requests with 1,024 cached tokens each, as the latency model prices them now.
* Queues: level L holds remaining times up to 10 ms * 2^L (FastServe's constants); by arrival within
  a level. A job's level is asked anew whenever it matters, so it rises as the job nears its end.
* Preemption: only for a strictly better level; only after 10 steps since the job last came to the
  device; and only while less than 0.8 of its predicted output is there (TRAIL's idea). Jobs whose
  prompt is under way stay. Every resident job decodes in every step: who is preempted leaves.
* Ageing: after 100 s off the device a job counts as level 0, and does for its first 10 steps
  back (FastServe's 3 s would make any overload first come, first served).
* EWT of a job that could leave: the remaining time of those ahead over the mean batch, which for
  the job at the very back is the mean remaining time of the running; never beyond its ageing. It
  leaves only where that is more than twice the copies take. Jobs that belong to the batch have an
  EWT of 0 and come back as soon as there is room. The rest is FastServe's (see swapping.py).
* Prompts: chunks under a budget of 512 tokens beside decodes, as Sarathi's, or with `whole` whole
  prompts without decodes beside them, as vLLM 0.x, on which the paper's evaluation was built. No
  source says.
* Compression: the paper also quantises the KV cache, which is the executor's doing and no decision
  of a policy. INT8 with a scale and an offset per channel and block of 16 tokens holds 1.6 times as
  many: to simulate it, give the profile that many KV tokens.

Switches for ablations: `defer` preempts nobody (shortest job first), `swap` 0 never parks (victims
are computed again).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.latency_model import LatencyModel
from engine.core.length_predictor import remaining_tokens
from engine.core.policies.admission import num_seats
from engine.core.policies.swapping import host_is_full, operating_step_ns, swap
from engine.core.policy import (
    NO_LIMIT,
    Rank,
    Room,
    SchedulingPolicy,
    StepLimits,
    Traffic,
    View,
)
from engine.core.request import Request, Status


class JobTimes:
    """How long jobs still take, by the papers' linear model over a latency model."""

    __slots__ = ("_alpha_ns", "_beta_ns", "_model", "_prompt_token_ns")

    def __init__(self, model: LatencyModel) -> None:
        self._model = model
        self._prompt_token_ns = model.prefill_ns(0, 1) / model.factor
        self._alpha_ns = model.profile.decode_kv_ns
        self._beta_ns = operating_step_ns(model) / model.factor

    def remaining_ns(self, job: Request) -> float:
        """Return the predicted time until the job's last token, were it to run from now on."""
        generated, most = len(job.output), job.order.sampling.max_tokens
        num_tokens = job.num_prompt_tokens + generated
        prompt = num_tokens - job.num_computed
        if prompt == 1 and generated:  # it decodes
            prompt = 0
        guess = float(most) if job.estimate is None else job.estimate.middle
        left = remaining_tokens(guess, generated, most)
        token_ns = self._alpha_ns * num_tokens + self._beta_ns
        return self._model.factor * (self._prompt_token_ns * prompt + left * token_ns)

    def swap_ns(self, job: Request) -> float:
        """Return the link's time to carry the job away and back."""
        return self._model.park_ns(job.num_computed)


class Alise(SchedulingPolicy):
    """Levels of predicted remaining time; `note` is when it came to the device, and its steps."""

    __slots__ = (
        "_aged_steps",
        "_ageing_ns",
        "_defer",
        "_log_ratio",
        "_max_running",
        "_min_steps",
        "_newcomer",
        "_quantum_ns",
        "_settled_share",
        "_swaps",
        "_times",
        "_token_budget",
        "_whole",
    )

    name = "alise"
    ranks_move = True

    def __init__(
        self,
        model: LatencyModel,
        *,
        quantum_ms: float = 10.0,
        ratio: float = 2.0,
        min_steps: int = 10,
        settled_share: float = 0.8,
        ageing_s: float = 100.0,
        aged_steps: int = 10,
        swap: bool = True,
        defer: bool = False,
        whole: bool = False,
        token_budget: int = 512,
        max_running: int = 128,
    ) -> None:
        self._times = JobTimes(model)
        self._quantum_ns = quantum_ms * NS_PER_MS
        self._log_ratio = math.log2(ratio)
        self._min_steps = min_steps
        self._settled_share = settled_share
        self._ageing_ns = min(ageing_s * NS_PER_S, float(NO_LIMIT))
        self._aged_steps = aged_steps
        self._swaps = swap and not defer
        self._defer = defer
        self._whole = whole
        self._token_budget = token_budget
        self._max_running = max_running
        self._newcomer: Request | None = None  # who was last asked for room at the queue's head

    @property
    def swaps(self) -> bool:
        """As the switches say."""
        return self._swaps

    def limits(self, view: View) -> StepLimits:
        """One batch of decodes and chunks; with `whole`, prompts alone while anyone has one."""
        max_running = num_seats(view, self._max_running)
        if host_is_full(view):
            max_running = min(max_running, max(1, view.num_running))
        prompts_alone = self._whole and bool(view.num_waiting or view.prefilling)
        return StepLimits(
            max_tokens=self._token_budget,
            max_decodes=0 if prompts_alone else NO_LIMIT,
            max_running=max_running,
            whole_prompts=self._whole,
        )

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Level, then arrival."""
        return (self._level(request, view), request.order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        """The same order: the victim has the longest to go."""
        return (self._level(request, view), request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, and a block for each who runs."""
        if request.status is Status.WAITING:
            self._newcomer = request
        return Room(claim_tokens=request.num_tokens, spare_blocks=view.num_running)

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        """Limited preemption, and none for a new prompt while the host is nearly full."""
        return not host_is_full(view) and self._may_preempt(victim, newcomer, view)

    def traffic(self, view: View) -> Traffic:
        """Whoever belongs to the batch comes back, whoever does not may leave."""
        wait_ns = -1.0

        def may_leave(job: Request, wanted: Request | None) -> bool:
            nonlocal wait_ns
            if wait_ns < 0:
                wait_ns = self._expected_wait_ns(view)
            if self._num_steps(job) < self._min_steps:
                return False
            if wanted is None:  # blocks run out
                return True
            worth_it = wait_ns > 2 * self._times.swap_ns(job)
            return worth_it and self._may_preempt(job, wanted, view)

        return swap(
            view,
            lambda job: self.keep_rank(job, view),
            self._newcomer,
            seats=num_seats(view, self._max_running),
            may_leave=may_leave,
        )

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        """Count the steps of each since it came to the device."""
        for request in requests:
            came_ns = request.timeline[-1].at_ns
            request.note = (came_ns, self._num_steps(request) + 1)

    def _may_preempt(self, victim: Request, wanted: Request, view: View) -> bool:
        if self._defer or not victim.is_decoding or self._num_steps(victim) < self._min_steps:
            return False
        guess = math.inf if victim.estimate is None else victim.estimate.middle
        if len(victim.output) >= self._settled_share * guess:
            return False
        return self._level(wanted, view) < self._level(victim, view)

    def _expected_wait_ns(self, view: View) -> float:
        running = [*view.prefilling, *view.decoding]
        mean_ns = sum([self._times.remaining_ns(job) for job in running]) / len(running)
        return min(mean_ns, self._ageing_ns)

    def _num_steps(self, job: Request) -> int:
        """Return the steps since it was started or came back."""
        if not job.note or job.note[0] != job.timeline[-1].at_ns:
            return 0
        return job.note[1]

    def _level(self, job: Request, view: View) -> int:
        """Return the smallest L with a remaining time of at most quantum * ratio^L; 0 if aged."""
        if self._is_aged(job, view):
            return 0
        share = self._times.remaining_ns(job) / self._quantum_ns
        return max(0, math.ceil(math.log2(max(share, 1.0)) / self._log_ratio))

    def _is_aged(self, job: Request, view: View) -> bool:
        since_ns = job.timeline[-1].at_ns
        if job.status is not Status.RUNNING:
            return view.now_ns - since_ns > self._ageing_ns
        waited_ns = since_ns - job.timeline[-2].at_ns
        return waited_ns > self._ageing_ns and self._num_steps(job) < self._aged_steps
