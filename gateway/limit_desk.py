"""Between a request and its limits: reserves the most it can take, settles what it is billed.

A request that no limit concerns costs nothing here and is not counted. Of all others the limiter is
asked once, before admission; what it grants stays with the request as a `Held`, which hears what
the meter makes of every choice, and settles when the last one has ended: budgets are charged by the
very rows that the bill is made of. It knows no HTTP beyond the headers it hands on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from gateway.errors import ApiError, Problem
from gateway.limits.allowances import Allowances
from gateway.limits.headers import explain, retry_headers
from gateway.limits.limiter import Limiter
from gateway.limits.rules import MOST, Allowance, most_output
from gateway.limits.values import Alert, Ask, Away, Denial, Grant, Spend
from gateway.plan import Plan
from gateway.principal import Principal
from tenants.values import TierRecord, UsageRecord

logger = logging.getLogger(__name__)

# A single request that costs more than this (four million units of the currency) counts as this.
MOST_COST = MOST // 2

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
RateHeaders = Callable[[Grant | Denial], dict[str, str]]


class Held:
    """What one request has reserved, from its grant until all its choices have ended.

    It settles by itself: once it is sealed (no choice will begin any more) and every choice that
    began has ended. Where nothing was billed to anybody it is released, as if it had never come.
    """

    __slots__ = (
        "_cost_nano",
        "_grant",
        "_is_sealed",
        "_is_served",
        "_limiter",
        "_num_open",
        "_output_tokens",
        "_prompt_tokens",
        "_rate_headers",
        "id",
    )

    def __init__(self, limiter: Limiter, grant: Grant, rate_headers: RateHeaders) -> None:
        self._limiter = limiter
        self._grant = grant
        self._rate_headers = rate_headers
        self.id = grant.ask.id
        self._num_open = 0
        self._is_sealed = False
        self._is_served = False
        self._prompt_tokens = self._output_tokens = self._cost_nano = 0

    def headers(self, *, is_refused: bool = False) -> dict[str, str]:
        """Return where the limits stand: with this request, or as if it had not come."""
        grant = self._grant
        if is_refused:
            pairs = zip(grant.readings, grant.ask.costs(), strict=True)
            readings = tuple(
                (max(used - cost, 0), wait_us, reset_us)
                for (used, wait_us, reset_us), cost in pairs
            )
            grant = dataclasses.replace(grant, readings=readings)
        return self._rate_headers(grant)

    def began(self) -> None:
        """A choice is on its way to the engine; `ended` follows, once."""
        self._num_open += 1

    def ended(self, row: UsageRecord | None) -> None:
        """A choice is over, and this is what is billed for it; None where nothing is."""
        self._num_open -= 1
        if row is not None:
            self._is_served = True
            self._prompt_tokens += row.prompt_tokens
            self._output_tokens += row.output_tokens
            self._cost_nano += row.cost_nano
        self._close()

    def seal(self, *, is_served: bool = False) -> None:
        """No further choice begins. `is_served`: it was answered even if nothing was billed."""
        self._is_sealed = True
        self._is_served = self._is_served or is_served
        self._close()

    def _close(self) -> None:
        if not self._is_sealed or self._num_open:
            return
        if not self._is_served:
            self._limiter.release(self.id)
            return
        self._limiter.settle(
            self.id,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            cost_nano=min(self._cost_nano, MOST_COST),
        )


class LimitDesk:
    """The one place that asks the limiter; used from the event loop.

    `lower_tiers` returns those that a plan may be served, and billed, in other than its own.
    """

    def __init__(
        self, limiter: Limiter, lower_tiers: Callable[[Plan], Sequence[TierRecord]]
    ) -> None:
        self.limiter = limiter
        self._lower_tiers = lower_tiers
        self._allowances = Allowances()

    def allowances(self, plan: Plan) -> tuple[Allowance, ...]:
        """Return the limits that concern a request; none, for most."""
        limits = plan.principal.limits
        return self._allowances.of(limits, plan.heading.model) if limits else ()

    async def reserve(self, plan: Plan, allowances: tuple[Allowance, ...]) -> Held:
        """Take the most that a request can come to, from all its limits or from none.

        In memory nothing is waited for. Raises ApiError: 429 for a limit or a budget, 503 while
        limits cannot be counted and the tier serves nothing uncounted.
        """
        ask = Ask(plan.heading.id, plan.principal.organisation_id, allowances, self._most(plan))
        verdict = await self.limiter.reserve(ask, plan.tier.on_limiter_away)
        headers_of = plan.shape.limit_headers
        if isinstance(verdict, Away):
            raise ApiError(
                Problem.LIMITS_UNAVAILABLE,
                "Limits cannot be checked at the moment. Please retry.",
                retry_after_ms=verdict.retry_after_ms,
            )
        if isinstance(verdict, Denial):
            raise denied(verdict, headers_of(verdict))
        return Held(self.limiter, verdict, headers_of)

    def _most(self, plan: Plan) -> Spend:
        prompt_tokens = sum(map(len, plan.prompts))
        output_tokens = plan.most_output_tokens
        cost_nano = max(
            prompt_tokens * max(tier.price_prompt_nano, tier.price_cached_nano)
            + output_tokens * tier.price_output_nano
            for tier in (plan.tier, *self._lower_tiers(plan))
        )
        return Spend(1, prompt_tokens, output_tokens, min(cost_nano, MOST_COST))


def affordable(
    most: int, principal: Principal, model: str, tier: TierRecord, prompts: Sequence[int], num: int
) -> int:
    """Return the longest answer, at most `most`, that the caller's limits could ever grant.

    For who does not say how long an answer may be: its limits would refuse the longest there is,
    always, and nobody shall be made to send `max_tokens`. `prompts` are their tokens, and each has
    `num` answers. At least 1: refusing is for the limits.
    """
    limits = [source for source in principal.limits if source.model in ("", model)]
    rules = (rule for source in limits for rule in Allowance(source).rules)
    prompt_nano = max(tier.price_prompt_nano, tier.price_cached_nano)
    found = most_output(rules, sum(prompts), prompt_nano, tier.price_output_nano)
    return most if found is None else max(min(most, found // (num * len(prompts))), 1)


def denied(denial: Denial, rate: Mapping[str, str]) -> ApiError:
    """Return the refusal of a request that is over a limit, or whose budget is spent."""
    retry = retry_headers(denial)
    after_ms = retry.get("retry-after-ms")
    return ApiError(
        Problem.INSUFFICIENT_QUOTA if denial.is_budget else Problem.RATE_LIMITED,
        explain(denial),
        retry_after_ms=None if after_ms is None else int(after_ms),
        headers={**rate, **retry},
    )


def tell_alert(alert: Alert) -> None:
    """Tell the operator, once, that a budget has reached the share he wants to hear of."""
    rule = alert.rule
    logger.warning(
        "the %s budget of %s %s has reached %d of %d %s",
        rule.kind.name.lower(),
        rule.owner.scope,
        rule.owner.target_id,
        rule.alert_at,
        rule.limit,
        rule.counted.name.lower(),
    )
