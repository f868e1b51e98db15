"""Reads an engine's load off its queues now and then, and measures how fast prompts are served.

It changes nothing it reads. What it costs is bounded by how seldom it looks: the more requests
there are, the longer a reading is kept, up to a second.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.kv_cache_manager import KVCacheManager
from engine.core.latency_model import LatencyModel, StepCost
from engine.core.length_predictor import remaining_high
from engine.core.load import ClassLoad, EngineLoad, OpenPrompt, Release
from engine.core.past_future import future_peak
from engine.core.planner import Planner
from engine.core.policy import NO_LIMIT, SchedulingPolicy
from engine.core.prompt_plan import PromptOrder
from engine.core.queues import Queues
from engine.core.request import LengthEstimate, Request, Status

EVERY_NS = 5 * NS_PER_MS
EVERY_NS_PER_REQUEST = 250_000  # to read one takes some two microseconds: a hundredth of the time
MOST_NS = 1000 * NS_PER_MS
MOST_PROMPTS = 48  # of a class that are listed one by one
RELEASE_EDGES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
MEMORY_NS = 15 * NS_PER_S  # of busy time, in which a measurement loses its weight e-fold
STARTS_MEMORY_NS = 5 * NS_PER_S  # of starts: seats come free as fast as the device is just now
UNKNOWN_LENGTH = LengthEstimate(256.0, 640.0)
TYPICAL_CHUNK = 1024  # tokens: where prices are read off the model


class LoadMeter:
    """`read` returns the load, at most `EVERY_NS` old, or longer the more requests there are."""

    __slots__ = (
        "_busy_decodes",
        "_busy_ns",
        "_busy_running",
        "_busy_starts",
        "_busy_starts_ns",
        "_busy_steps",
        "_busy_tokens",
        "_every_ns",
        "_kv",
        "_last_arrival_ns",
        "_last_step_ns",
        "_load",
        "_model",
        "_planner",
        "_policy",
        "_queues",
    )

    def __init__(
        self,
        queues: Queues,
        kv: KVCacheManager,
        planner: Planner,
        policy: SchedulingPolicy,
        model: LatencyModel | None,
    ) -> None:
        self._queues = queues
        self._kv = kv
        self._planner = planner
        self._policy = policy
        self._model = model
        self._load: EngineLoad | None = None
        self._every_ns = EVERY_NS
        self._last_arrival_ns = 0
        self._last_step_ns: int | None = None  # when it was over, where the next followed at once
        # Steps in which somebody waited, fading: their time and number, prompt tokens, requests
        # started, decodes that had a seat, decodes that ran.
        self._busy_ns = self._busy_tokens = self._busy_steps = 0.0
        self._busy_decodes = self._busy_running = 0.0
        self._busy_starts = self._busy_starts_ns = 0.0

    def note_arrival(self, arrival_ns: int) -> None:
        """A request was taken."""
        self._last_arrival_ns = max(self._last_arrival_ns, arrival_ns)

    def note_step(self, started_ns: int, ended_ns: int) -> None:
        """The planned step is over; where it left no prompt behind it tells nothing of speed.

        A step that follows another takes from the other's end: what the loop does between them is
        time that prompts wait as well.
        """
        queues, planner = self._queues, self._planner
        began_ns = started_ns if self._last_step_ns is None else self._last_step_ns
        self._last_step_ns = ended_ns if len(queues) else None
        elapsed_ns = ended_ns - began_ns
        if elapsed_ns <= 0 or not (queues.waiting or queues.prefilling):
            return
        num_decodes = len(planner.decodes)
        kept = MEMORY_NS / (MEMORY_NS + elapsed_ns)
        self._busy_ns = kept * (self._busy_ns + elapsed_ns)
        self._busy_tokens = kept * (self._busy_tokens + planner.num_prefill_tokens)
        self._busy_steps = kept * (self._busy_steps + 1.0)
        self._busy_decodes = kept * (self._busy_decodes + num_decodes)
        self._busy_running = kept * (self._busy_running + max(num_decodes, len(queues.decoding)))
        kept = STARTS_MEMORY_NS / (STARTS_MEMORY_NS + elapsed_ns)
        self._busy_starts_ns = kept * (self._busy_starts_ns + elapsed_ns)
        self._busy_starts = kept * (self._busy_starts + len(planner.started))

    def read(self, now_ns: int, *, draining: bool) -> EngineLoad:
        """Return the load; looks again when the last look is too old, or nobody is left.

        An engine that has nothing to do takes no steps: what it says last, it says for long.
        """
        load = self._load
        if (
            load is None
            or now_ns - load.at_ns >= self._every_ns
            or load.draining != draining
            or (load.classes and not len(self._queues))
        ):
            load = self._load = self._look(now_ns, draining)
            wanted = max(EVERY_NS, EVERY_NS_PER_REQUEST * len(self._queues))
            self._every_ns = min(wanted, MOST_NS)
        return load

    def _look(self, now_ns: int, draining: bool) -> EngineLoad:
        view, queues, limits = self._planner.view(now_ns), self._queues, self._planner.limits
        decoding = queues.decoding.values()
        plan, model = self._policy.prompt_plan, self._model
        seats = limits.max_running or view.capacity.max_batch_requests
        classes: dict[str, _ClassReading] = {}
        for request in queues.prefilling.values():
            tokens = request.num_tokens - request.num_computed
            _of(classes, request).add_prompt(request, tokens, self._policy, plan.order, now_ns)
        for request in queues.waiting:
            # What the prefix cache holds of it by now need not be computed.
            known = self._kv.block_size * len(self._kv.find_prefix(request))
            tokens = request.num_tokens - known
            _of(classes, request).add_prompt(request, tokens, self._policy, plan.order, now_ns)
        for request in decoding:
            _of(classes, request).add_decode(request)
        for request in queues.parked.values():
            _of(classes, request).parked += 1
        releases, peak = _releases((*queues.prefilling.values(), *decoding))
        prices = _prices(model, len(decoding), sum([r.num_computed for r in decoding]))
        has_rate = self._busy_tokens > 0 and self._busy_ns > 0
        return EngineLoad(
            at_ns=now_ns,
            classes=tuple(
                sorted(
                    [reading.value() for reading in classes.values()],
                    key=lambda c: (c.rank, c.tier),
                )
            ),
            plan=plan,
            budget_ns=limits.max_step_ns if limits.max_step_ns < NO_LIMIT else 0,
            budget_tokens=min(limits.max_tokens, view.capacity.max_batch_tokens),
            last_arrival_ns=self._last_arrival_ns,
            decode_ns=int(prices[0]),
            bare_ns=prices[1],
            row_ns=prices[2],
            context_ns=prices[3],
            prompt_token_ns=prices[4],
            prompt_rate=self._busy_tokens / self._busy_ns * NS_PER_S if has_rate else 0.0,
            start_rate=self._busy_starts / self._busy_starts_ns * NS_PER_S if has_rate else 0.0,
            step_ns=int(self._busy_ns / self._busy_steps) if self._busy_steps else 0,
            decode_share=self._busy_decodes / self._busy_running if self._busy_running else 1.0,
            num_blocks=view.capacity.num_blocks,
            free_blocks=view.free_blocks,
            coming_blocks=view.coming_blocks,
            block_size=view.capacity.block_size,
            free_seats=max(0, seats - queues.num_running),
            releases=releases,
            future_peak_tokens=int(peak),
            draining=draining,
        )


class _ClassReading:
    """One class while it is read."""

    __slots__ = (
        "context", "decodes", "lost", "lost_tokens", "parked", "prompts", "rank", "tbt_ns", "tier"
    )  # fmt: skip

    def __init__(self, tier: str, rank: int) -> None:
        self.tier, self.rank = tier, rank
        self.prompts: list[tuple[float, OpenPrompt]] = []  # with its place in the order
        self.lost = self.lost_tokens = 0
        self.decodes = self.context = self.parked = self.tbt_ns = 0

    def add_prompt(
        self,
        request: Request,
        tokens: int,
        policy: SchedulingPolicy,
        order: PromptOrder,
        now_ns: int,
    ) -> None:
        """Add a request that waits, or whose prompt is under way; `tokens` are to compute."""
        if request.first_token_ns is not None:  # its context was lost: it goes first
            self.prompts.append((-math.inf, OpenPrompt(0, tokens, is_started=True)))
            return
        is_started = request.status is Status.RUNNING
        due = policy.prompt_due(request)
        if due.is_lost and not is_started:
            self.lost += 1
            self.lost_tokens += tokens
            return
        guess = 0 if request.estimate is None else int(request.estimate.middle)
        prompt = OpenPrompt(due.at_ns - now_ns, tokens, guess, due.is_second, is_started)
        place = float(request.order.arrival_ns)
        if is_started:
            place = -math.inf
        elif order is PromptOrder.DUE:
            place = due.at_ns
        elif order is PromptOrder.SHORTEST:
            place = request.num_tokens
        self.prompts.append((place, prompt))

    def add_decode(self, request: Request) -> None:
        """Add a request that decodes."""
        self.decodes += 1
        self.context += request.num_computed
        gap_ns = request.order.slo.tbt_ns
        self.tbt_ns = gap_ns if not self.tbt_ns else min(self.tbt_ns, gap_ns)

    def value(self) -> ClassLoad:
        """Return what was read."""
        prompts = [prompt for _, prompt in sorted(self.prompts)]
        behind = prompts[MOST_PROMPTS:]
        return ClassLoad(
            tier=self.tier,
            rank=self.rank,
            prompts=tuple(prompts[:MOST_PROMPTS]),
            more=len(behind),
            more_tokens=sum([p.num_tokens for p in behind]),
            lost=self.lost,
            lost_tokens=self.lost_tokens,
            decodes=self.decodes,
            decode_tokens=self.context,
            parked=self.parked,
            tbt_ns=self.tbt_ns,
        )


def _of(classes: dict[str, _ClassReading], request: Request) -> _ClassReading:
    order = request.order
    found = classes.get(order.tier)
    if found is None:
        found = classes[order.tier] = _ClassReading(order.tier, order.slo.rank)
    return found


def _prices(
    model: LatencyModel | None, num_decodes: int, num_cached: int
) -> tuple[float, float, float, float, float]:
    """Return what a step of decodes takes, and what a mixed one is made of (see `EngineLoad`)."""
    if model is None:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    cost = StepCost(model)
    cost.add_decodes(num_decodes, num_cached)
    decode_ns = cost.total_ns
    cost.clear()
    cost.add_prefill(0, TYPICAL_CHUNK)
    prompt_ns, row_ns = model.prefill_ns(0, TYPICAL_CHUNK), model.decode_ns(0)
    context_ns = (model.decode_ns(TYPICAL_CHUNK) - row_ns) / TYPICAL_CHUNK
    bare_ns = cost.total_ns - prompt_ns
    return decode_ns, bare_ns, row_ns, context_ns, prompt_ns / TYPICAL_CHUNK


def _releases(running: Iterable[Request]) -> tuple[tuple[Release, ...], float]:
    """Return who ends after how many tokens more, in a few groups, and the future peak."""
    exact: list[tuple[float, int, float]] = []
    groups: dict[int, list[int]] = {}
    for request in running:
        guess, most = request.estimate or UNKNOWN_LENGTH, request.order.sampling.max_tokens
        left = remaining_high(guess, len(request.output), most)
        exact.append((left, 1, float(request.num_tokens)))
        group = groups.setdefault(bisect_left(RELEASE_EDGES, left), [0, 0, 0])
        group[0] = max(group[0], int(left))
        group[1] += 1
        group[2] += request.num_tokens
    releases = tuple([Release(*group) for _, group in sorted(groups.items())])
    return releases, future_peak(exact)
