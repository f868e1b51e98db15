"""How long a step will take, before it runs, and what it costs to move or recompute a context.

It knows a profile and what a step holds, and no policy. The scheduler adds a step up piece by
piece with a `StepCost`; the simulator's executor adds the same step up from its batch. Between
prediction and measurement stands one factor, learnt from every step that ran.
"""

from __future__ import annotations

import math

from engine.core.batch import Batch
from engine.core.latency_profile import LatencyProfile

# A step's measurement moves the factor by this share; single outliers count at most twofold.
LEARNING_RATE = 0.02
MOST_OUT = 2.0
FACTOR_RANGE = (0.05, 20.0)


class LatencyModel:
    """Predicts times from a profile, scaled to what was measured (factor 1 = the profile)."""

    __slots__ = ("factor", "profile")

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self.factor = 1.0

    def step_ns(self, batch: Batch) -> int:
        """Return how long this batch computes; copies go on beside it and cost it nothing."""
        cost = StepCost(self)
        for chunk in batch.chunks:
            if chunk.is_decode:
                cost.add_decodes(1, chunk.start)
            else:
                cost.add_prefill(chunk.start, chunk.num_tokens)
        return int(cost.total_ns)

    def copy_ns(self, num_tokens: int, *, is_return: bool) -> float:
        """Return the link's time to carry a context of that many tokens one way.

        Copies of one direction go one after the other: what is under way comes before.
        """
        p = self.profile
        per_token = p.link_in_ns_per_token if is_return else p.link_out_ns_per_token
        return self.factor * (p.link_ns + per_token * num_tokens)

    def prefill_ns(self, start: int, num_tokens: int) -> float:
        """Return what these prompt tokens add to steps that are full anyway: no base, no floor."""
        p = self.profile
        per_token = p.token_ns + p.knee_token_ns + p.tile_ns / p.tile_tokens
        pairs = num_tokens * (start + num_tokens / 2)
        return self.factor * (per_token * num_tokens + p.pair_ns * pairs)

    def decode_ns(self, num_cached: float) -> float:
        """Return what one more decode adds to a full, mixed step."""
        p = self.profile
        per_token = p.token_ns + p.knee_token_ns + p.tile_ns / p.tile_tokens
        return self.factor * (
            per_token + p.row_ns + p.decode_kv_ns * p.mixed_kv_factor * num_cached
        )

    def park_ns(self, num_tokens: int) -> float:
        """Return the link's time to carry a context of that many tokens to the host and back."""
        out_ns = self.copy_ns(num_tokens, is_return=False)
        return out_ns + self.copy_ns(num_tokens, is_return=True)

    def return_ns(self, num_tokens: int) -> float:
        """Return the link's time to carry a context of that many tokens back to the device."""
        return self.factor * (self.profile.link_ns + self.profile.link_in_ns_per_token * num_tokens)

    def learn(self, predicted_ns: float, elapsed_ns: float) -> None:
        """A step was predicted and measured: move the factor a little towards the truth.

        Times that cannot be (nothing, negative, infinite, not a number) teach nothing.
        """
        if not (0 < predicted_ns < math.inf and 0 < elapsed_ns < math.inf):
            return
        ratio = min(max(elapsed_ns / predicted_ns, 1 / MOST_OUT), MOST_OUT)
        factor = self.factor * (1 + LEARNING_RATE * (ratio - 1))
        self.factor = min(max(factor, FACTOR_RANGE[0]), FACTOR_RANGE[1])

    def held_ns(
        self,
        num_tokens: float,
        num_rows: float,
        num_prefills: float,
        kv_tokens: float,
        pairs: float,
        prompt_kv: float,
    ) -> float:
        """Return the time of a step that holds just this (see `StepCost`); 0 for an empty one."""
        if not num_rows:
            return 0.0
        p = self.profile
        linear = p.base_ns + p.token_ns * num_tokens
        if p.tile_ns:
            linear += p.tile_ns * -(-num_tokens // p.tile_tokens)
        if num_tokens > p.knee_tokens:
            linear += p.knee_token_ns * (num_tokens - p.knee_tokens)
        decode_kv_ns = p.decode_kv_ns
        if num_prefills:
            decode_kv_ns *= p.mixed_kv_factor
            linear += p.prompt_ns + p.pair_ns * pairs + p.prompt_kv_ns * prompt_kv
        total = linear + decode_kv_ns * kv_tokens + p.row_ns * num_rows
        return self.factor * (total if total > p.floor_ns else p.floor_ns)


class StepCost:
    """The cost of one step while it is planned; times are nanoseconds."""

    __slots__ = (
        "_model",
        "kv_tokens",
        "num_prefills",
        "num_rows",
        "num_tokens",
        "pairs",
        "prompt_kv",
    )

    def __init__(self, model: LatencyModel | None) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Begin with an empty step."""
        self.num_tokens = 0
        self.num_rows = 0
        self.num_prefills = 0
        self.kv_tokens = 0  # cached tokens that decodes read
        self.pairs = 0.0  # query-key pairs of prompt chunks
        self.prompt_kv = 0  # cached tokens that prompt chunks read

    def add_decodes(self, count: int, num_cached: int) -> None:
        """Add decodes that read `num_cached` tokens together; negative numbers take them out."""
        self.num_tokens += count
        self.num_rows += count
        self.kv_tokens += num_cached

    def add_prefill(self, start: int, num_tokens: int, sign: int = 1) -> None:
        """Add (or with -1 take out) a prompt chunk behind `start` cached tokens."""
        self.num_tokens += sign * num_tokens
        self.num_rows += sign
        self.num_prefills += sign
        self.pairs += sign * num_tokens * (start + num_tokens / 2)
        self.prompt_kv += sign * start

    @property
    def total_ns(self) -> float:
        """The time of a step that holds just this; 0 for an empty one, or without a model."""
        if self._model is None:
            return 0.0
        return self._model.held_ns(
            self.num_tokens,
            self.num_rows,
            self.num_prefills,
            self.kv_tokens,
            self.pairs,
            self.prompt_kv,
        )

    def affordable_prefill(self, start: int, most: int, limit_ns: float) -> int:
        """Return the most prompt tokens behind `start` with which the step stays within limit."""
        if most <= 0 or self._model is None:
            return max(most, 0)
        held_ns, num_tokens, pairs = self._model.held_ns, self.num_tokens, self.pairs
        num_rows, num_prefills = self.num_rows + 1, self.num_prefills + 1
        kv_tokens, prompt_kv = self.kv_tokens, self.prompt_kv + start
        low, high = 0, most + 1  # low fits (or is nothing), high does not (or is too many)
        middle = most
        while high - low > 1:
            with_it_ns = held_ns(
                num_tokens + middle,
                num_rows,
                num_prefills,
                kv_tokens,
                pairs + middle * (start + middle / 2),
                prompt_kv,
            )
            if with_it_ns <= limit_ns:
                low = middle
            else:
                high = middle
            middle = (low + high) // 2
        return low
