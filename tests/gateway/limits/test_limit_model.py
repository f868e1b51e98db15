"""Both stores against a limiter that keeps every event: each answer, to the last microsecond."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_limiter import NaiveLimiter, is_sliding
from redis_kit import RedisServer
from store_kit import OpenWorld, World, memory_world, redis_world

from gateway.limits.calendar import unix_us
from gateway.limits.rules import Allowance
from gateway.limits.store import NO_SEEDS, Closing, Mode, Outcome, Seeds
from gateway.limits.values import NOTHING, Ask, Spend
from tenants.values import Budget, Limits, Period, Scope, ScopeLimits, Unit

LEASE_US, KEEP_US = 30_000_000, 600_000_000

small = st.none() | st.integers(1, 6) | st.integers(0, 20)
tokens = st.none() | st.integers(100, 500) | st.integers(0, 500)
budgets = st.lists(
    st.builds(
        Budget,
        period=st.sampled_from(Period),
        amount=st.integers(0, 2000),
        unit=st.sampled_from(Unit),
        alert_percent=st.none() | st.integers(1, 100),
    ),
    max_size=3,
    unique_by=lambda b: (b.period, b.unit),
).map(tuple)
limits = st.builds(
    Limits,
    requests_per_minute=small,
    tokens_per_minute=tokens,
    input_tokens_per_minute=tokens,
    output_tokens_per_minute=tokens,
    requests_per_day=small,
    tokens_per_day=tokens,
    concurrent_requests=small,
)


@st.composite
def owners(draw: st.DrawFn) -> tuple[Allowance, ...]:
    """Draw the limits of two keys, their tenant and its organisation."""
    names = ((Scope.KEY, "a"), (Scope.KEY, "b"), (Scope.TENANT, "t"), (Scope.ORGANISATION, "o"))
    return tuple(
        Allowance(ScopeLimits(scope, target, draw(limits), draw(budgets)))
        for scope, target in names
    )


amounts = st.integers(0, 120)
spends = st.builds(
    Spend,
    requests=st.integers(0, 1),
    prompt_tokens=amounts,
    output_tokens=amounts,
    cost_nano=st.integers(0, 500),
)
most = st.builds(Spend, prompt_tokens=amounts, output_tokens=amounts, cost_nano=amounts)
# Mostly short: windows that are full and partly left are where mistakes would be.
PAUSES_S = (0, 0.000001, 0.3, 0.999999, 1, 2.5, 7.3, 13, 20)
LONG_S = (29.999999, 30, 59, 59.999999, 60, 60.000001, 61, 700, 3_600, 43_200, 129_600)
pauses = st.one_of(
    st.sampled_from(PAUSES_S), st.sampled_from(PAUSES_S), st.sampled_from(LONG_S)
).map(lambda seconds: round(seconds * 1_000_000))
# A store keeps a calendar window for a day beyond its end; nothing is told of later than that.
ages = pauses.map(lambda us: min(us, 3_600_000_000))
# The borders where calendars go wrong: a leap day, a year's end, months of each length.
STARTS = [
    unix_us(datetime(*when, tzinfo=UTC))
    for when in (
        (2026, 11, 21, 12, 0, 0, 250_000),
        (2028, 2, 28, 23, 59, 59, 999_999),
        (2026, 12, 31, 23, 59, 30),
        (2027, 2, 28, 23, 0, 0),
        (2000, 2, 29, 12, 0, 0),
        (2100, 2, 28, 23, 59, 59),
        (2026, 11, 29, 23, 59, 0),
    )
]
keys = st.sampled_from([("key:a", "tenant:t", "organisation:o"), ("key:b", "tenant:t")])
steps = st.one_of(
    *[st.tuples(st.just("ask"), keys, most)] * 5,
    st.tuples(st.just("adopt"), keys, most, ages),
    st.tuples(st.just("again"), st.integers(0, 30)),
    *[st.tuples(st.just("settle"), st.integers(0, 30), spends)] * 2,
    st.tuples(st.just("release"), st.integers(0, 30)),
    st.tuples(st.just("charge"), keys, spends, ages, ages),
    st.tuples(st.just("renew"), st.integers(0, 30)),
    *[st.tuples(st.just("pause"), pauses)] * 3,
)
stories = st.tuples(
    owners(), st.sampled_from(STARTS), st.integers(0, 300), st.lists(steps, max_size=50)
)


class Pair:
    """A store and its judge, told the same."""

    def __init__(self, world: World, owners: tuple[Allowance, ...], base: int) -> None:
        self.world = world
        self.judge = NaiveLimiter(LEASE_US, KEEP_US)
        self.owners = {owner.name: owner for owner in owners}
        self.base = base
        self.seen: list[Ask] = []
        self.adopted = False

    def make(self, names: tuple[str, ...], spend: Spend) -> Ask:
        made = Ask(f"r{len(self.seen)}", "acme", tuple(self.owners[n] for n in names), spend)
        self.seen.append(made)
        return made

    def seeds_for(self, missing: tuple[tuple[int, int], ...]) -> Seeds:
        return {index: (day, (self.base + day) % 211) for index, day in missing}

    async def reserve(self, ask: Ask, mode: Mode, age_us: int = 0) -> None:
        seeds: Seeds = NO_SEEDS
        while True:
            reply = await self.world.store.reserve(ask, seeds, mode=mode, age_us=age_us)
            assert reply == self.judge.reserve(ask, seeds, mode, age_us, self.world.now_us)
            if reply.outcome is not Outcome.UNSEEDED:
                break
            assert not seeds, "what was asked for was given"
            seeds = self.seeds_for(reply.missing)
        if mode is Mode.ASK and not self.adopted:
            for rule in filter(is_sliding, ask.rules):
                assert self.judge.most_in_any_minute(rule) <= rule.limit

    async def close(self, closing: Closing) -> None:
        seeds: Seeds = NO_SEEDS
        while True:
            closed = await self.world.store.settle(closing, seeds)
            expected = self.judge.settle(closing, seeds, self.world.now_us)
            # A store need not remember a closed hold for ever.
            if {closed.outcome, expected.outcome} != {Outcome.CLOSED, Outcome.UNKNOWN}:
                assert closed == expected
            if closed.outcome is not Outcome.UNSEEDED:
                return
            assert not seeds
            seeds = self.seeds_for(closed.missing)

    async def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case "ask", names, spend:
                await self.reserve(self.make(names, spend), Mode.ASK)
            case "adopt", names, spend, age_us:
                self.adopted = True
                await self.reserve(self.make(names, spend), Mode.ADOPT, age_us)
            case "charge", names, spend, age_us, ended_us:
                self.adopted = True
                ended_us = min(age_us, ended_us)
                ask = self.make(names, spend)
                await self.close(Closing(ask, Mode.CHARGE, spend, age_us, ended_us))
            case "pause", us:
                self.world.set(self.world.now_us + us)
            case _ if not self.seen:
                pass
            case "again", which:
                ask = self.seen[which % len(self.seen)]
                if ask.id in self.judge.holds:  # due or not: what was swept is over
                    await self.reserve(ask, Mode.ASK)
            case "settle", which, spend:
                ask = self.seen[which % len(self.seen)]
                held = ask.most
                if spend.tokens > held.tokens or spend.cost_nano > held.cost_nano:
                    self.adopted = True  # more than was reserved: no limit holds that back
                await self.close(Closing(ask, Mode.SETTLE, spend))
            case "release", which:
                ask = self.seen[which % len(self.seen)]
                await self.close(Closing(ask, Mode.RELEASE, NOTHING))
            case "renew", which:
                ask = self.seen[which % len(self.seen)]
                (outcome,) = await self.world.store.renew([ask])
                is_open = self.judge.renew(ask, self.world.now_us)
                assert (outcome is Outcome.GRANTED) == is_open
        totals = await self.world.store.totals("acme")
        assert totals == self.judge.totals(self.world.now_us)
        assert totals.balanced


async def tell(open_world: OpenWorld, story: tuple[Any, ...]) -> None:
    allowances, start, base, plot = story
    async with open_world(start, lease_us=LEASE_US, keep_us=KEEP_US) as world:
        pair = Pair(world, allowances, base)
        for step in plot:
            await pair.step(step)


@given(stories)
@settings(max_examples=400, deadline=None)
def test_memory_answers_as_the_limiter_that_keeps_everything(story: tuple[Any, ...]) -> None:
    """Grants, waits, resets, alerts and totals are those of the judge, for any story."""
    asyncio.run(tell(memory_world, story))


@pytest.fixture(scope="module")
def on_redis(shared_redis: RedisServer) -> OpenWorld:
    return redis_world(shared_redis)


@given(story=stories)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_redis_answers_as_the_limiter_that_keeps_everything(
    on_redis: OpenWorld, story: tuple[Any, ...]
) -> None:
    """The script decides what the judge decides, with the same code of the test."""
    asyncio.run(tell(on_redis, story))
