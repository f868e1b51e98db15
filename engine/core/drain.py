"""How a queue of prompts drains: how fast prompts go, who goes before a newcomer, who is given up.

It simulates from an `EngineLoad` alone and knows neither clock nor history: arrivals to come are
handed in. Within a class it serves in the order of the policy's `PromptPlan`; where that is by due
time, those who cannot all be on time are chosen by the policy's own algorithm (triage.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from engine.core.clock import NS_PER_S
from engine.core.load import EngineLoad, OpenPrompt
from engine.core.past_future import future_peak
from engine.core.policies.triage import Job, give_up
from engine.core.prompt_plan import PromptOrder

LEAST_SHARE = 0.15  # of a step that prompts get at the least, as the hybrid reckons
LEAST_LEFT = 0.3  # of the speed, to a class behind others
LEAST_REST = 0.05  # of a step, that is still to come of one that should be over
PEAK_ABOVE = 1.3  # of the pool, the future peak of p90 lengths below which room is found in time
SPARE_SHARE = 0.03  # of the blocks, that a class behind the first leaves free
MOST_JOBS = 512
NAMES = tuple([f"f{number}" for number in range(MOST_JOBS)])
ME = "me"
_by_due = itemgetter(1)
_Mate: TypeAlias = tuple[float, int, float, float, bool]  # due, tokens, decode, factor, is started


class Coming(NamedTuple):
    """A request on its way: when, in whose class, how much, how dear; times in ns.

    `due_ns` counts from the arrival; `decode_ns` is the device time of its predicted decoding.
    """

    at_ns: float
    rank: int
    num_tokens: int
    due_ns: float
    decode_ns: float


class Place(NamedTuple):
    """Where a newcomer stands on one path of the future: when its prompt is done, if ever."""

    done_ns: float  # from now
    is_given_up: bool


def decode_ns(load: EngineLoad, num_prompt_tokens: int, num_output_tokens: float) -> float:
    """Return the device time that decoding so many tokens adds to steps."""
    context = num_prompt_tokens + num_output_tokens / 2
    return num_output_tokens * (load.row_ns + load.context_ns * context)


def mixed_ns(load: EngineLoad, num_prompt_tokens: float) -> float:
    """Return how long a step takes that runs all decodes and so many prompt tokens, unbounded."""
    rows = load.row_ns * load.num_decodes
    contexts = load.context_ns * sum([c.decode_tokens for c in load.classes])
    mixed = load.bare_ns + rows + contexts + load.prompt_token_ns * num_prompt_tokens
    return max(float(load.decode_ns), mixed if num_prompt_tokens else 0.0)


def step_ns(load: EngineLoad, num_prompt_tokens: float) -> float:
    """Return how long a step takes that runs all decodes and so many prompt tokens."""
    return min(mixed_ns(load, num_prompt_tokens), budget_ns(load))


def budget_ns(load: EngineLoad) -> float:
    """Return how long a full step lasts: its time budget, or what its tokens take where fewer fit.

    A step that may hold few tokens is over long before its time is.
    """
    if not load.budget_ns:
        if load.step_ns:
            return float(load.step_ns)
        return load.bare_ns + load.prompt_token_ns * load.budget_tokens
    if load.budget_tokens and load.prompt_token_ns:
        return min(float(load.budget_ns), mixed_ns(load, load.budget_tokens))
    return float(load.budget_ns)


def speed(load: EngineLoad, rank: int, *, has_room: bool) -> float:
    """Return prompt tokens per ns that a class gets while it is served; 0 where nothing is known.

    What was measured already tells of memory that was short. Where there is room the model may
    promise more; to a class ahead it does so always, because the decodes behind it are put off.
    """
    measured = load.prompt_rate / NS_PER_S
    if not load.prompt_token_ns:
        return measured
    budget, is_ahead = budget_ns(load), load.plan.by_class and rank == 0
    used = load.bare_ns
    for c in load.classes:
        share = load.decode_share
        if load.plan.by_class and c.rank > rank and c.tbt_ns:
            share = min(share, budget / c.tbt_ns)
        used += share * (c.decodes * load.row_ns + c.decode_tokens * load.context_ns)
    room_ns = max(LEAST_SHARE * budget, budget - used)
    modelled = min(room_ns / load.prompt_token_ns, load.budget_tokens or room_ns) / budget
    if is_ahead or not measured:
        return modelled
    return max(modelled, measured) if has_room else measured


class Queue:
    """Who stands before one newcomer, at `now_ns`; `pending` came after the load was read.

    `began_ns` is when the step that is out began (about when the snapshot was made), `flow_ahead`
    the prompt tokens per ns that arrive in classes ahead, `high_tokens` the p90 of its answer.
    """

    __slots__ = (
        "_ahead",
        "_behind",
        "_jobs",
        "_left",
        "_num_before",
        "_speed",
        "is_seat_bound",
        "load",
        "me",
        "now_ns",
        "plain_tokens",
        "wait_ns",
    )

    def __init__(
        self,
        load: EngineLoad,
        me: Coming,
        pending: Sequence[Coming],
        now_ns: int,
        began_ns: int,
        flow_ahead: float,
        high_tokens: float,
    ) -> None:
        self.load, self.me, self.now_ns = load, me, now_ns
        ahead, mates = self._gather(pending)
        before_me = [mate for mate in mates if mate[0] <= me.due_ns]
        before = ahead + sum([tokens for _, tokens, *_ in before_me])
        self._num_before += sum([not mate[4] for mate in before_me])
        ranks = [one.rank for one in pending]
        plan, rank = load.plan, me.rank
        num_wanted = sum([n for r, n in self._starters(ranks) if r <= rank or not plan.by_class])
        has_seats, has_blocks = load.free_seats > num_wanted, self._has_blocks(before, high_tokens)
        # Where seats are what is short, requests are counted, and not their tokens.
        self.is_seat_bound = has_blocks and not has_seats and load.start_rate > 0
        has_room = has_blocks and (has_seats or self.is_seat_bound)
        self._speed = speed(load, rank, has_room=has_room)
        num_waiting, waiting_tokens = load.waiting
        mean = waiting_tokens / num_waiting if num_waiting else 0.0
        started = load.open_tokens - waiting_tokens
        out = self._follow_steps(pending, began_ns, started + mean * load.free_seats)
        self._ahead = float(ahead) - out
        everyone = load.open_tokens + sum([one.num_tokens for one in pending])
        seats_behind = max(0, load.free_seats - self._num_before - 1)
        behind = everyone - max(float(before), out)
        self._behind = max(0.0, min(behind, started + mean * seats_behind))
        self.plain_tokens = max(0.0, before - out) + me.num_tokens
        self._left = max(LEAST_LEFT, 1.0 - flow_ahead / self._speed) if self._speed else 1.0
        self._jobs = [
            self._job(NAMES[number], *mate) for number, mate in enumerate(before_me[:MOST_JOBS])
        ]
        self._jobs.append(self._job(ME, me.due_ns, me.num_tokens, me.decode_ns, 1.0, False))

    def _gather(self, pending: Sequence[Coming]) -> tuple[int, list[_Mate]]:
        """Return the tokens of those who go first, whatever is given up, and the newcomer's mates.

        Mates are those of its class, where due times order. Of the former it is noted how many have
        no seat yet.
        """
        load, me, plan, rank = self.load, self.me, self.load.plan, self.me.rank
        is_due = plan.order is PromptOrder.DUE
        shift = self.now_ns - load.at_ns
        ahead = self._num_before = 0
        mates: list[_Mate] = []
        for c in load.classes:
            if plan.by_class and c.rank > rank:
                continue
            if not is_due or c.rank != rank:
                first = self._first(c.prompts, c.rank)
                ahead += sum([p.num_tokens for p in first]) + c.more_tokens
                self._num_before += sum([not p.is_started for p in first]) + c.more
                continue
            for p in c.prompts:
                factor = plan.second_weight if p.is_second else 1.0
                dear = decode_ns(load, p.num_tokens, p.decode_tokens)
                mates.append((p.due_ns - shift, p.num_tokens, dear, factor, p.is_started))
            if c.prompts and c.prompts[-1].due_ns - shift <= me.due_ns:
                ahead += c.more_tokens
                self._num_before += c.more
        for one in pending:
            if plan.by_class and one.rank > rank:
                continue
            if is_due and one.rank == rank:
                due_ns = one.at_ns + one.due_ns - self.now_ns
                mates.append((due_ns, one.num_tokens, one.decode_ns, 1.0, False))
            elif plan.order is not PromptOrder.SHORTEST or one.num_tokens <= me.num_tokens:
                ahead += one.num_tokens
                self._num_before += 1
        return ahead, mates

    def _first(self, prompts: Sequence[OpenPrompt], rank: int) -> Sequence[OpenPrompt]:
        """Return those of these that go before the newcomer, where due times do not count."""
        if self.load.plan.order is not PromptOrder.SHORTEST or rank < self.me.rank:
            return prompts
        return [p for p in prompts if p.is_started or p.num_tokens <= self.me.num_tokens]

    def _follow_steps(self, pending: Sequence[Coming], began_ns: int, most: float) -> float:
        """Return the prompt tokens done since the load was read, or in the step that is out now.

        And note how long that step still takes; nothing is out of an idle engine. `most` tokens are
        of requests that have seats.
        """
        load = self.load
        since_ns = max(0, began_ns - load.at_ns)
        done = min(float(load.open_tokens), self._speed * since_ns)
        arrived = [one.num_tokens for one in pending if one.at_ns < began_ns]
        left = load.open_tokens - done + sum(arrived)
        self.wait_ns = 0.0
        if load.is_idle and not load.num_decodes and not arrived:
            return done
        length_ns = step_ns(load, min(left, max(most, 0.0)))
        spent_ns = self.now_ns - began_ns
        self.wait_ns = max(length_ns - spent_ns, LEAST_REST * length_ns)
        return done + min(left, self._speed * length_ns)

    def _starters(self, pending_ranks: Sequence[int]) -> list[tuple[int, int]]:
        """Return how many want a seat that they have not got yet, by rank."""
        waiting = [
            (c.rank, c.more + sum([not p.is_started for p in c.prompts])) for c in self.load.classes
        ]
        return [*waiting, *[(rank, 1) for rank in pending_ranks]]

    def _has_blocks(self, num_before: int, high_tokens: float) -> bool:
        """True where so many tokens and the newcomer's fit into what is free, or soon will.

        Soon: the most context that all will need at once, were each as long as its p90, is not
        far above what there is (not all of them will be so long).
        """
        load, wanted = self.load, num_before + self.me.num_tokens
        spare = SPARE_SHARE * load.num_blocks if self.me.rank else 0.0
        if (load.free_blocks + load.coming_blocks - spare) * load.block_size >= wanted:
            return True
        running = [(float(r.remaining_tokens), r.num_requests, r.num_tokens) for r in load.releases]
        peak = future_peak([*running, (high_tokens, 1, wanted)])
        return peak <= PEAK_ABOVE * load.num_blocks * load.block_size

    def _job(
        self, name: str, due_ns: float, tokens: int, dear_ns: float, factor: float, is_fixed: bool
    ) -> Job:
        length_ns = tokens / (self._speed * self._left) if self._speed else 0.0
        weight = factor * (length_ns + self.load.plan.decode_weight * dear_ns)
        return Job(name, due_ns, length_ns, weight, is_fixed, tokens)

    @property
    def is_known(self) -> bool:
        """True where anything is known of how fast prompts go."""
        return self._speed > 0

    @property
    def full_ns(self) -> float:
        """How long a full step lasts."""
        return budget_ns(self.load)

    def fullness(self, flow: float) -> float:
        """Return what share of the speed so many arriving tokens per ns take up."""
        return flow / self._speed if self._speed else 0.0

    def plain_ns(self, coming: Sequence[Coming]) -> float:
        """Return when the newcomer is done if nobody is given up; arrivals go first as they may.

        `coming` are arrivals from now on (`at_ns` counts from now), the first to come first.
        """
        if not self._speed:
            return 0.0
        me, order, by_class = self.me, self.load.plan.order, self.load.plan.by_class
        seat_ns = NS_PER_S / self.load.start_rate if self.is_seat_bound else 0.0
        done_ns = self.plain_tokens / self._speed
        if seat_ns:
            done_ns = seat_ns * max(0, self._num_before + 1 - self.load.free_seats)
        for one in coming:
            if one.at_ns >= done_ns:
                break
            if one.rank == me.rank or not by_class:
                if order is PromptOrder.ARRIVAL:
                    continue
                if order is PromptOrder.DUE and one.at_ns + one.due_ns > me.due_ns:
                    continue
                if order is PromptOrder.SHORTEST and one.num_tokens >= me.num_tokens:
                    continue
            elif one.rank > me.rank:
                continue
            done_ns += seat_ns or one.num_tokens / self._speed
        return done_ns

    def place(self, arrivals: Sequence[Coming], begin_ns: float) -> Place:
        """Return where the newcomer stands if these arrive: by due time, the fewest given up.

        `arrivals` are those of the past before `begin_ns`, the latest first: what came last comes
        first.
        """
        me, share, rate = self.me, self.load.plan.decode_weight, self._speed * self._left
        my_rank, horizon, new = me.rank, me.due_ns, tuple.__new__
        jobs = self._jobs.copy()
        number = len(jobs)
        for at_ns, rank, tokens, due_ns, dear_ns in arrivals:
            age_ns = begin_ns - at_ns
            if age_ns > horizon or number >= MOST_JOBS:
                break
            due_ns += age_ns
            if rank == my_rank and due_ns <= horizon:
                length = tokens / rate
                weight = length + share * dear_ns
                jobs.append(new(Job, (NAMES[number], due_ns, length, weight, False, tokens)))
                number += 1
        jobs.sort(key=_by_due)
        done_ns = self._ahead / rate
        given_up = give_up(jobs, done_ns)
        if ME in given_up:
            return Place(horizon, True)
        for job in jobs:
            if job[0] not in given_up:
                done_ns += job[2]
                if job[0] == ME:
                    break
        return Place(max(0.0, done_ns), False)

    def ttft_ns(self, done_ns: float) -> float:
        """Return the time to first token of a prompt that is done after so much time of prompts.

        Tokens come at the end of steps: full ones, and a last one that may be shorter. Those behind
        fill it up.
        """
        full_ns = budget_ns(self.load)
        if full_ns <= 0:
            return self.wait_ns + done_ns
        if self.is_seat_bound:
            return self.wait_ns + done_ns + step_ns(self.load, self.me.num_tokens + self._behind)
        num_full = int(done_ns // full_ns)
        rest = (done_ns - num_full * full_ns) * self._speed
        last_ns = step_ns(self.load, rest + self._behind) if rest > 0 else 0.0
        return self.wait_ns + num_full * full_ns + last_ns
