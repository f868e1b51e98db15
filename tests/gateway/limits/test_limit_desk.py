"""What a request holds of its limits is given back once, at its very end, whatever the order."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from store_kit import allow, ask

from engine.core.clock import VirtualClock, utc_now
from gateway.limit_desk import Held
from gateway.limits.headers import openai_headers
from gateway.limits.limiter import Limiter
from gateway.limits.memory_store import MemoryStore
from gateway.limits.rules import Allowance, most_output
from gateway.limits.values import Grant, Sum
from tenants.values import Budget, Limits, Period, Scope, ScopeLimits, Unit, UsageRecord


def row(prompt: int, output: int, cost: int) -> UsageRecord:
    return UsageRecord(
        "r", "t", "k", "free", "free", "m", prompt, 0, output, "stop", True, utc_now(), 1.0,
        cost_nano=cost,
    )  # fmt: skip


ROWS = st.none() | st.builds(row, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))


@given(st.lists(ROWS, max_size=5), st.integers(0, 5), st.booleans())
def test_a_hold_ends_once_with_the_sum_of_what_is_billed(
    rows: list[UsageRecord | None], ended_before: int, is_served: bool
) -> None:
    """Choices may end before all have begun or after; nothing is given back before the last."""

    async def story() -> None:
        limiter = Limiter(MemoryStore(), VirtualClock())
        asked = ask(
            allow(requests_per_minute=5, tokens_per_minute=500), prompt=100, output=100, cost=99
        )
        grant = await limiter.reserve(asked)
        assert isinstance(grant, Grant)
        held = Held(limiter, grant, openai_headers)
        assert held.headers()["x-ratelimit-remaining-tokens"] == "300"
        assert held.headers(is_refused=True)["x-ratelimit-remaining-tokens"] == "500"
        for number, one in enumerate(rows):
            held.began()
            if number < ended_before:
                held.ended(one)
                assert limiter.state.open_holds == 1, "it is not sealed yet"
        held.seal(is_served=is_served)
        for one in rows[ended_before:]:
            assert limiter.state.open_holds == 1, "one has not ended yet"
            held.ended(one)
        assert limiter.state.open_holds == 0
        billed = [one for one in rows if one is not None]
        sums = await limiter.totals(asked.group)
        if not billed and not is_served:
            assert sums.settled == Sum()
            assert sums.released == sums.reserved
        else:
            tokens = sum(one.prompt_tokens + one.output_tokens for one in billed)
            assert sums.settled == Sum(1, tokens, sum(one.cost_nano for one in billed))

    asyncio.run(story())


LIMITS = st.builds(
    Limits,
    tokens_per_minute=st.none() | st.integers(0, 400),
    input_tokens_per_minute=st.none() | st.integers(0, 400),
    output_tokens_per_minute=st.none() | st.integers(0, 400),
    tokens_per_day=st.none() | st.integers(0, 400),
    requests_per_minute=st.none() | st.integers(0, 3),
)
BUDGETS = st.sampled_from(
    [
        (),
        (Budget(Period.DAY, Unit.TOKENS, 150),),
        (Budget(Period.MONTH, Unit.NANO, 900),),
        (Budget(Period.WEEK, Unit.TOKENS, 90), Budget(Period.DAY, Unit.NANO, 500)),
    ]
)


@given(LIMITS, BUDGETS, st.integers(1, 120), st.integers(0, 5), st.integers(0, 9))
def test_the_longest_answer_is_the_longest_that_an_unused_limit_grants(
    limits: Limits, budgets: tuple[Budget, ...], prompt: int, prompt_nano: int, output_nano: int
) -> None:
    """One token more would be refused by limits nobody has touched; so much is not, for tokens."""
    allowed = Allowance(ScopeLimits(Scope.KEY, "k", limits, budgets))
    most = most_output(allowed.rules, prompt, prompt_nano, output_nano)
    longest = 2_000

    async def is_granted(output: int) -> bool:
        limiter = Limiter(MemoryStore(), VirtualClock())
        cost = prompt * prompt_nano + output * output_nano
        asked = ask(allowed, prompt=prompt, output=output, cost=cost)
        return isinstance(await limiter.reserve(asked), Grant)

    granted_at_all = asyncio.run(is_granted(0))
    if most is not None and most >= 0:
        assert not asyncio.run(is_granted(most + 1))
    if granted_at_all:
        assert most is None or most >= 0
        assert asyncio.run(is_granted(longest if most is None else most))
