"""How long a step will take, before it runs, and what it costs to move or recompute a context.

It knows a profile and what a step holds, and no policy. The scheduler adds a step up piece by
piece with a `StepCost`; the simulator's executor adds the same step up from its batch. Every step
that ran corrects it (latency_learning.py): the prices of the profile's form, and above them two
levels, one of steps with a prompt and one of steps without, by which the device is slower than its
prices at present. Prices of the link are the profile's: copies go on beside steps, and nobody
times them.
"""

from __future__ import annotations

import math
from operator import mul

from engine.core.batch import Batch
from engine.core.latency_learning import Level, PriceLearner
from engine.core.latency_profile import LatencyProfile
from engine.core.step_errors import RecentErrors
from engine.core.step_features import Held, features, knee_of, prices_of, tile_of

FACTOR_RANGE = (0.001, 1000.0)  # by what a profile may be wrong; a time beyond it counts as that
OTHERS_SHARE = 0.5  # of what one level learns, the other learns too
SCALE_RATE = 0.05
EXACT = 1e-6  # errors below are those of rounding to nanoseconds, and teach nothing


class LatencyModel:
    """Predicts times from a profile, corrected by what was measured."""

    __slots__ = (
        "_alone",
        "_alone_prices",
        "_beside_prompt",
        "_knee",
        "_known",
        "_learner",
        "_lesson",
        "_prompt_prices",
        "_scale",
        "_tile",
        "errors",
        "profile",
    )

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self.errors = RecentErrors()
        self._knee, self._tile = knee_of(profile), tile_of(profile)
        self._known = (*prices_of(profile), 0.0)  # fresh caches have no price until it is learnt
        self._learner = PriceLearner(self._known)
        self._alone, self._beside_prompt = Level(), Level()
        self._scale = 1.0  # of the prices, over the profile's, in recent steps
        self._lesson: tuple[list[float], float, float, Level] | None = None
        self._publish()

    def _publish(self) -> None:
        """Put levels and prices together, for the many questions until the next lesson."""
        base, token, tile, knee_token, kv, mixed_kv, pair, prompt_kv, prompt, row, fresh = (
            self._learner.prices
        )
        tile_tokens, knee, floor = self._tile or 1, self._knee or 0, self.profile.floor_ns
        now = self._alone.value
        self._alone_prices = (
            (now * base, now * (token + row), now * kv, now * fresh, now * floor),
            (now * tile, tile_tokens, now * knee_token, knee),
        )
        now = self._beside_prompt.value
        self._prompt_prices = (
            (now * (base + prompt), now * token, now * row, now * (kv + mixed_kv), now * floor),
            (now * tile, tile_tokens, now * knee_token, knee),
            (now * pair, now * prompt_kv, now * fresh),
        )

    @property
    def factor(self) -> float:
        """How many times as long as in the profile recent steps take by what was learnt.

        It may be set where that is known: every step then takes so many times what it would.
        """
        return self._scale * math.sqrt(self._alone.value * self._beside_prompt.value)

    @factor.setter
    def factor(self, value: float) -> None:
        for level in (self._alone, self._beside_prompt):
            level.set(value / self._scale)
        self._publish()

    @property
    def fixed_ns(self) -> float:
        """What a full step costs without its tokens: the base less what the knee makes free."""
        base_ns, _, _, knee_token_ns, *_ = self._learner.prices
        fixed_ns = base_ns - knee_token_ns * (self._knee or 0)
        return self._beside_prompt.value * max(0.0, fixed_ns)

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
        return p.link_ns + per_token * num_tokens

    def prefill_ns(self, start: int, num_tokens: int) -> float:
        """Return what these prompt tokens add to steps that are full anyway: no base, no floor."""
        pairs = num_tokens * (start + num_tokens / 2)
        return self._token_ns() * num_tokens + self._prompt_prices[2][0] * pairs

    def decode_ns(self, num_cached: float) -> float:
        """Return what one more decode adds to a full, mixed step."""
        _, _, row_ns, kv_ns, _ = self._prompt_prices[0]
        return self._token_ns() + row_ns + kv_ns * num_cached

    def _token_ns(self) -> float:
        """Return what one more token adds past the knee, tiles smoothed out."""
        tile_ns, tile_tokens, knee_token_ns, _ = self._prompt_prices[1]
        return self._prompt_prices[0][1] + knee_token_ns + tile_ns / tile_tokens

    def park_ns(self, num_tokens: int) -> float:
        """Return the link's time to carry a context of that many tokens to the host and back."""
        out_ns = self.copy_ns(num_tokens, is_return=False)
        return out_ns + self.copy_ns(num_tokens, is_return=True)

    def return_ns(self, num_tokens: int) -> float:
        """Return the link's time to carry a context of that many tokens back to the device."""
        return self.profile.link_ns + self.profile.link_in_ns_per_token * num_tokens

    def learn(self, held: Held, predicted_ns: float, elapsed_ns: float) -> None:
        """A step that held this was predicted and measured: correct the levels.

        The prices follow with `settle`, which takes longer: nobody waits for it. Times that cannot
        be (nothing, negative, infinite, not a number) teach nothing.
        """
        if not (0 < predicted_ns < math.inf and 0 < elapsed_ns < math.inf):
            return
        ratio = predicted_ns / elapsed_ns
        self.errors.add(abs(ratio - 1.0))
        if abs(ratio - 1.0) < EXACT:
            return
        row = [*features(held, self._knee, self._tile), held.fresh]
        prices_ns = sum(map(mul, row, self._learner.prices))
        told_ns = max(prices_ns, self.profile.floor_ns)
        if not 0 < told_ns < math.inf:
            return
        level, other = self._alone, self._beside_prompt
        if held.num_prefills:
            level, other = other, level
        before, stood = level.log, level.logs.copy()
        log_ratio = math.log(elapsed_ns) - math.log(told_ns)
        bound = level.learn(log_ratio)
        other.follow(level, stood, OTHERS_SHARE)
        self._publish()
        if prices_ns == told_ns:  # else it is the floor, and no price shows
            error = min(max(log_ratio - before, -2 * bound), 2 * bound)
            self._lesson = (row, prices_ns, math.exp(before + error), level)

    def settle(self) -> None:
        """Correct the prices by what the last step taught."""
        if self._lesson is None:
            return
        (row, told_ns, ratio, level), self._lesson = self._lesson, None
        known_ns = sum(map(mul, row, self._known))
        if not 0 < known_ns < math.inf:
            return
        scale, (least, most) = told_ns / known_ns, FACTOR_RANGE
        ratio = min(max(ratio, least / scale), most / scale)
        self._scale += SCALE_RATE * (scale - self._scale)
        self._learner.learn(row, told_ns, ratio, level, self._scale)
        self._publish()

    def held_ns(
        self,
        num_tokens: float,
        num_rows: float,
        num_prefills: float,
        kv_tokens: float,
        pairs: float,
        prompt_kv: float,
        fresh: float = 0.0,
    ) -> float:
        """Return the time of a step that holds just this (see `StepCost`); 0 for an empty one.

        No prompt makes a step cheaper, whatever the two levels are.
        """
        if not num_rows:
            return 0.0
        if not num_prefills:
            return self.decodes_ns(num_rows, kv_tokens, fresh)
        whole_ns = self.prompts_ns(num_tokens, num_rows, kv_tokens, pairs, prompt_kv, fresh)
        if num_rows > num_prefills and self._alone.value > self._beside_prompt.value:
            return max(whole_ns, self.decodes_ns(num_rows - num_prefills, kv_tokens, fresh))
        return whole_ns

    def decodes_ns(self, num_rows: float, kv_tokens: float, fresh: float = 0.0) -> float:
        """Return the time of a step of so many decodes that read `kv_tokens` in all."""
        (base, each, kv, cold, floor), (tile, tile_tokens, knee_token, knee) = self._alone_prices
        total = base + each * num_rows + kv * kv_tokens + cold * fresh
        if tile:
            total += tile * -(-num_rows // tile_tokens)
        if knee_token and num_rows > knee:
            total += knee_token * (num_rows - knee)
        return total if total > floor else floor

    def prompts_ns(
        self,
        num_tokens: float,
        num_rows: float,
        kv_tokens: float,
        pairs: float,
        prompt_kv: float,
        fresh: float = 0.0,
    ) -> float:
        """Return the time of a step that holds a prompt; see `StepCost`."""
        (base, token, row, kv, floor), steps, (pair, cached, cold) = self._prompt_prices
        tile, tile_tokens, knee_token, knee = steps
        total = base + token * num_tokens + row * num_rows + kv * kv_tokens
        if tile:
            total += tile * -(-num_tokens // tile_tokens)
        if knee_token and num_tokens > knee:
            total += knee_token * (num_tokens - knee)
        total += pair * pairs + cached * prompt_kv + cold * fresh
        return total if total > floor else floor


class StepCost:
    """The cost of one step while it is planned; times are nanoseconds."""

    __slots__ = (
        "_model",
        "fresh",
        "kv_tokens",
        "num_prefills",
        "num_rows",
        "num_tokens",
        "pairs",
        "prompt_kv",
    )

    def __init__(self, model: LatencyModel | None) -> None:
        self._model = model
        self.fresh = 0.0  # see `freshness`; it is not the step's doing, and outlasts `clear`
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
    def held(self) -> Held:
        """What the step holds, as a value."""
        return Held(
            self.num_tokens,
            self.num_rows,
            self.num_prefills,
            self.kv_tokens,
            self.pairs,
            self.prompt_kv,
            self.fresh,
        )

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
            self.fresh,
        )

    def affordable_prefill(self, start: int, most: int, limit_ns: float) -> int:
        """Return the most prompt tokens behind `start` with which the step stays within limit."""
        if most <= 0 or self._model is None:
            return max(most, 0)
        prompts_ns, num_tokens, pairs = self._model.prompts_ns, self.num_tokens, self.pairs
        num_rows, kv_tokens, prompt_kv = self.num_rows + 1, self.kv_tokens, self.prompt_kv + start
        num_decodes, fresh = self.num_rows - self.num_prefills, self.fresh
        if num_decodes and self._model.decodes_ns(num_decodes, kv_tokens, fresh) > limit_ns:
            return 0
        low, high = 0, most + 1  # low fits (or is nothing), high does not (or is too many)
        middle = most
        while high - low > 1:
            with_it_ns = prompts_ns(
                num_tokens + middle,
                num_rows,
                kv_tokens,
                pairs + middle * (start + middle / 2),
                prompt_kv,
                fresh,
            )
            if with_it_ns <= limit_ns:
                low = middle
            else:
                high = middle
            middle = (low + high) // 2
        return low
