"""Windows, budgets and seats, case by case, on both stores."""

from __future__ import annotations

from store_kit import NOON, OpenWorld, allow, ask

from gateway.limits.store import Outcome


async def test_a_bucket_counts_until_all_of_it_is_older_than_sixty_seconds(
    open_world: OpenWorld,
) -> None:
    """Three a minute: the fourth fits when the first one's second is 60 seconds past."""
    scope = allow(requests_per_minute=3)
    async with open_world() as world:
        for _ in range(3):
            reply = await world.store.reserve(ask(scope))
            assert reply.outcome is Outcome.GRANTED
        # Taken at 12:00:00.25, free at 12:01:01.00.
        assert reply.readings == ((3, 0, 60_750_000),)
        reply = await world.store.reserve(ask(scope))
        assert (reply.outcome, reply.readings) == (Outcome.DENIED, ((3, 60_750_000, 60_750_000),))
        world.set(NOON + 60_749_999)
        reply = await world.store.reserve(ask(scope))
        assert (reply.outcome, reply.readings) == (Outcome.DENIED, ((3, 1, 1),))
        world.set(NOON + 60_750_000)
        reply = await world.store.reserve(ask(scope))
        assert (reply.outcome, reply.readings) == (Outcome.GRANTED, ((1, 0, 61_000_000),))
