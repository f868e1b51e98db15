"""How long a step will take, before it runs, and what it costs to move or recompute a context.

It knows a profile and what a step holds, and no policy. The scheduler adds a step up piece by
piece with a `StepCost`; the simulator's executor adds the same step up from its batch. Between
prediction and measurement stands one factor, learnt from every step that ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.batch import Batch, Copy
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
        """Return how long this batch will take, copies included."""
        cost = StepCost(self)
        for chunk in batch.chunks:
            if chunk.is_decode:
                cost.add_decodes(1, chunk.start)
            else:
                cost.add_prefill(chunk.start, chunk.num_tokens)
        copies = max(
            self._copies_ns(batch.parks, self.profile.link_out_ns_per_token),
            self._copies_ns(batch.returns, self.profile.link_in_ns_per_token),
        )
        return int(max(cost.total_ns, copies))

    def _copies_ns(self, copies: Sequence[Copy], ns_per_token: float) -> float:
        blocks = sum([len(copy.block_ids) for copy in copies])
        per_block = ns_per_token * self.profile.block_size
        return self.factor * (len(copies) * self.profile.link_ns + blocks * per_block)

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
        p = self.profile
        per_token = p.link_out_ns_per_token + p.link_in_ns_per_token
        return self.factor * (2 * p.link_ns + per_token * num_tokens)

    def learn(self, predicted_ns: float, elapsed_ns: float) -> None:
        """A step was predicted and measured: move the factor a little towards the truth."""
        if predicted_ns <= 0 or elapsed_ns <= 0:
            return
        ratio = min(max(elapsed_ns / predicted_ns, 1 / MOST_OUT), MOST_OUT)
        factor = self.factor * (1 + LEARNING_RATE * (ratio - 1))
        self.factor = min(max(factor, FACTOR_RANGE[0]), FACTOR_RANGE[1])


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
        if not self.num_rows or self._model is None:
            return 0.0
        p, n = self._model.profile, self.num_tokens
        linear = p.base_ns + p.token_ns * n
        if p.tile_ns:
            linear += p.tile_ns * -(-n // p.tile_tokens)
        if n > p.knee_tokens:
            linear += p.knee_token_ns * (n - p.knee_tokens)
        decode_kv = p.decode_kv_ns * (p.mixed_kv_factor if self.num_prefills else 1.0)
        attention = decode_kv * self.kv_tokens + p.pair_ns * self.pairs
        attention += p.prompt_kv_ns * self.prompt_kv + p.row_ns * self.num_rows
        return self._model.factor * max(linear + attention, p.floor_ns)

    def affordable_prefill(self, start: int, most: int, limit_ns: float) -> int:
        """Return the most prompt tokens behind `start` with which the step stays within limit."""
        if most <= 0 or self._with_prefill(start, most) <= limit_ns:
            return max(most, 0)
        low, high = 0, most  # low fits (or is nothing), high does not
        while high - low > 1:
            middle = (low + high) // 2
            if self._with_prefill(start, middle) <= limit_ns:
                low = middle
            else:
                high = middle
        return low

    def _with_prefill(self, start: int, num_tokens: int) -> float:
        self.add_prefill(start, num_tokens)
        total = self.total_ns
        self.add_prefill(start, num_tokens, -1)
        return total
