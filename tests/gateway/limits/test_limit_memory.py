"""The memory store keeps what is in use, and forgets what ever was."""

from __future__ import annotations

from store_kit import allow, ask, memory_world

from gateway.limits.memory_store import MemoryStore
from gateway.limits.store import Closing, Mode, Outcome
from gateway.limits.values import Spend
from tenants.values import Budget, Period, Unit


async def test_owners_that_come_and_go_leave_nothing_behind() -> None:
    """Thousands of keys of hundreds of organisations, a few hours long: it does not grow."""
    async with memory_world() as world:
        store = world.store
        assert isinstance(store, MemoryStore)
        most_kept = 0
        for number in range(6000):
            limits = allow(
                f"key:k{number}",
                requests_per_minute=5,
                tokens_per_minute=1000,
                concurrent_requests=2,
            )
            asked = ask(limits, output=10, group=f"g{number % 400}")
            assert (await store.reserve(asked)).outcome is Outcome.GRANTED
            if number % 3:
                await store.settle(Closing(asked, Mode.SETTLE, Spend(output_tokens=5)))
            world.advance(2)
            most_kept = max(most_kept, store.num_kept)
        # 31 keys a minute with three rules each, 400 organisations, holds that nobody settled
        # for 90 minutes, ids closed in the last two minutes.
        assert most_kept < 400 + 62 * 3 + 1850 / 3 * 2 + 60 + 800
        for _ in range(40):
            world.advance(7200)
            for _ in range(30):
                await store.reserve(ask(allow("key:k", requests_per_minute=100), group="last"))
        assert store.num_kept < 100


async def test_a_budget_outlives_the_silence_of_its_owner() -> None:
    """A month that nobody asks in for weeks still counts what was spent at its begin."""
    async with memory_world() as world:
        world.set(world.now_us - 19 * 86_400_000_000)  # the 2nd of the month
        limits = allow("tenant:t", Budget(Period.MONTH, Unit.TOKENS, 100))
        first = ask(limits, output=70)
        reply = await world.store.reserve(first)
        await world.store.reserve(first, {i: (day, 0) for i, day in reply.missing})
        for _ in range(26):
            world.advance(86_400)
            for _ in range(20):
                await world.store.reserve(ask(allow("key:k", requests_per_minute=100), group="x"))
        reply = await world.store.reserve(ask(limits, output=31))
        assert (reply.outcome, reply.readings[0][0]) == (Outcome.DENIED, 70)
