"""Windows, budgets and seats at their borders, on both stores, in virtual time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from store_kit import NOON, OpenWorld, World, allow, ask

from gateway.limits.calendar import DAY_US, span, unix_us
from gateway.limits.rules import Allowance, Kind
from gateway.limits.store import Closing, Mode, Outcome, Reply
from gateway.limits.values import NEVER, NOTHING, Ask, Spend
from tenants.values import Budget, Period, Unit


async def seeded(world: World, asked: Ask, amount: int = 0) -> Reply:
    """Reserve, and give every window that begins this amount."""
    reply = await world.store.reserve(asked)
    if reply.outcome is Outcome.UNSEEDED:
        seeds = {index: (day, amount) for index, day in reply.missing}
        reply = await world.store.reserve(asked, seeds)
    return reply


async def settle(world: World, asked: Ask, output: int) -> tuple[int, ...]:
    """Settle, and return whose alert it was."""
    closed = await world.store.settle(Closing(asked, Mode.SETTLE, Spend(output_tokens=output)))
    assert closed.outcome is Outcome.GRANTED
    return closed.alerts


async def test_a_bucket_counts_until_all_of_it_is_older_than_sixty_seconds(
    open_world: OpenWorld,
) -> None:
    """Three a minute: the fourth fits when the first one's second is 60 seconds past."""
    limits = allow(requests_per_minute=3)
    async with open_world() as world:
        for _ in range(3):
            reply = await world.store.reserve(ask(limits))
            assert reply.outcome is Outcome.GRANTED
        # Taken at 12:00:00.25, free at 12:01:01.00.
        assert reply.readings == ((3, 0, 60_750_000),)
        reply = await world.store.reserve(ask(limits))
        assert (reply.outcome, reply.readings) == (Outcome.DENIED, ((3, 60_750_000, 60_750_000),))
        world.set(NOON + 60_749_999)
        reply = await world.store.reserve(ask(limits))
        assert (reply.outcome, reply.readings) == (Outcome.DENIED, ((3, 1, 1),))
        world.set(NOON + 60_750_000)
        reply = await world.store.reserve(ask(limits))
        assert (reply.outcome, reply.readings) == (Outcome.GRANTED, ((1, 0, 61_000_000),))


async def test_the_wait_ends_when_just_enough_has_left(open_world: OpenWorld) -> None:
    """Not when the window is empty: 300 of 900 tokens leave each ten seconds."""
    limits = allow(tokens_per_minute=900)
    async with open_world() as world:
        for _ in range(3):
            await world.store.reserve(ask(limits, output=300))
            world.advance(10)
        for output, wait_s in ((1, 30.75), (300, 30.75), (301, 40.75), (900, 50.75)):
            reply = await world.store.reserve(ask(limits, output=output))
            assert reply.readings == ((900, wait_s * 1_000_000, 50_750_000),)
        reply = await world.store.reserve(ask(limits, output=901))
        assert reply.readings == ((900, NEVER, 50_750_000),)


async def test_a_refund_goes_into_the_second_it_was_taken_from(open_world: OpenWorld) -> None:
    """What comes back is free at once; what stays leaves when the whole would have left."""
    limits = allow(tokens_per_minute=900)
    async with open_world() as world:
        first, second = ask(limits, output=500), ask(limits, output=400)
        await world.store.reserve(first)
        world.advance(20)
        await world.store.reserve(second)
        world.advance(20)
        await settle(world, first, 100)
        reply = await world.store.reserve(ask(limits, output=450))
        assert reply.readings == ((500, 20_750_000, 40_750_000),)
        await settle(world, second, 0)
        reply = await world.store.reserve(ask(limits, output=450))
        assert reply.readings[0][0] == 550
        world.advance(20.75)
        reply = await world.store.reserve(ask(limits, output=450))
        assert reply.readings[0][0] == 900, "the first's 100 have left, nothing else"


async def test_the_reset_is_of_what_is_still_there(open_world: OpenWorld) -> None:
    """A second from which all came back does not hold up the reset."""
    limits = allow(tokens_per_minute=900)
    async with open_world() as world:
        await world.store.reserve(ask(limits, output=300))
        world.advance(20)
        for later_s in (0, 1):
            given_back = ask(limits, output=300)
            await world.store.reserve(given_back)
            await settle(world, given_back, 0)
            world.advance(later_s)
            reply = await world.store.reserve(ask(limits))
            assert reply.readings == ((300, 0, 40_750_000 - later_s * 1_000_000),)


async def test_all_or_nothing_over_every_rule(open_world: OpenWorld) -> None:
    """One rule that refuses leaves the others as they were."""
    key = allow("key:a", requests_per_minute=5, tokens_per_minute=10_000, concurrent_requests=5)
    tenant = allow("tenant:t", Budget(Period.DAY, Unit.NANO, 100), tokens_per_day=50)
    async with open_world() as world:
        assert (await seeded(world, ask(key, tenant, output=50, cost=40))).outcome is (
            Outcome.GRANTED
        )
        before = await world.store.totals("acme")
        reply = await world.store.reserve(ask(key, tenant, output=1, cost=1))
        assert reply.outcome is Outcome.DENIED
        assert [used for used, _, _ in reply.readings] == [1, 50, 1, 50, 40]
        assert [wait > 0 for _, wait, _ in reply.readings] == [False, False, False, True, False]
        assert await world.store.totals("acme") == before


@pytest.mark.parametrize("period", Period)
@pytest.mark.parametrize(
    "border",
    [
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
        datetime(2028, 2, 29, tzinfo=UTC),
        datetime(2028, 3, 1, tzinfo=UTC),
        datetime(2100, 3, 1, tzinfo=UTC),
        datetime(2026, 3, 29, tzinfo=UTC),  # the clocks of Europe change; ours do not
        datetime(2026, 11, 23, tzinfo=UTC),
    ],
)
async def test_budgets_begin_anew_to_the_microsecond(
    open_world: OpenWorld, period: Period, border: datetime
) -> None:
    """A token too many a microsecond before the border is refused, and taken at it if it is one."""
    limits = allow("tenant:t", Budget(period, Unit.TOKENS, 100))
    end_us = unix_us(border)
    begins = {
        Period.DAY: True,
        Period.WEEK: border.weekday() == 0,
        Period.MONTH: border.day == 1,
    }[period]
    async with open_world(end_us - 1) as world:
        assert (await seeded(world, ask(limits, output=100))).outcome is Outcome.GRANTED
        reply = await world.store.reserve(ask(limits, output=1))
        assert reply.outcome is Outcome.DENIED
        assert (reply.readings[0][1] == 1) is begins
        world.set(end_us)
        reply = await seeded(world, ask(limits, output=1))
        assert (reply.outcome is Outcome.GRANTED) is begins


async def test_the_script_knows_the_calendar(open_world: OpenWorld) -> None:
    """Every day of four years around a leap year, and the ends of odd centuries, day by day."""
    kinds = (Kind.DAY, Kind.WEEK, Kind.MONTH)
    limits = allow("tenant:t", *[Budget(period, Unit.TOKENS, 1) for period in Period])
    days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(4 * 365 + 1)]
    days += [datetime(year, 2, 27, tzinfo=UTC) + timedelta(days=n)
             for year in (1970, 2000, 2100, 2400) for n in range(4)]  # fmt: skip
    async with open_world() as world:
        for day in sorted(days):
            moment = unix_us(day) + 12_345_678
            world.set(moment)
            reply = await world.store.reserve(ask(limits))
            assert [first for _, first in reply.missing] == [span(k, moment)[0] for k in kinds]
        for kind in kinds:
            first, beyond = span(kind, moment)
            assert first * DAY_US <= moment < beyond * DAY_US


async def test_a_window_begins_with_what_the_ledger_has(open_world: OpenWorld) -> None:
    """A seed for another window than the present one is not taken."""
    limits = allow("tenant:t", Budget(Period.WEEK, Unit.TOKENS, 100))
    async with open_world() as world:
        asked = ask(limits, output=31)
        reply = await world.store.reserve(asked)
        ((index, day),) = reply.missing
        assert (reply.outcome, index) == (Outcome.UNSEEDED, 0)
        late = await world.store.reserve(asked, {0: (day - 7, 70)})
        assert late.outcome is Outcome.UNSEEDED
        reply = await world.store.reserve(asked, {0: (day, 70)})
        assert (reply.outcome, reply.readings[0][0]) == (Outcome.DENIED, 70)
        again = await world.store.reserve(ask(limits, output=30), {0: (day, 0)})
        assert again.readings[0][0] == 100, "the first seed stands"


@pytest.mark.parametrize(("spent", "tells"), [(79, ()), (80, (0,)), (81, (0,))])
async def test_an_alert_is_at_its_share_and_once(
    open_world: OpenWorld, spent: int, tells: tuple[int, ...]
) -> None:
    limits = allow("tenant:t", Budget(Period.DAY, Unit.TOKENS, 1000, alert_percent=8))
    async with open_world() as world:
        first, second = ask(limits, output=500), ask(limits, output=500)
        await seeded(world, first)
        await seeded(world, second)
        assert await settle(world, first, spent) == tells
        assert await settle(world, second, 80) == (() if tells else (0,))


async def test_what_takes_nothing_of_a_rule_is_not_held_up_by_it(open_world: OpenWorld) -> None:
    """A request that costs nothing goes on where the money is spent, or was taken away since."""
    async with open_world() as world:
        rich = allow("tenant:t", Budget(Period.DAY, Unit.NANO, 100))
        poor = allow("tenant:t", Budget(Period.DAY, Unit.NANO, 50))
        assert (await seeded(world, ask(rich, cost=100))).outcome is Outcome.GRANTED
        for limits in (rich, poor):
            assert (await seeded(world, ask(limits, cost=1))).outcome is Outcome.DENIED
            assert (await seeded(world, ask(limits, output=9))).outcome is Outcome.GRANTED


async def test_a_seat_is_free_when_its_lease_ends(open_world: OpenWorld) -> None:
    """To the microsecond; a renewal takes it up again even though another sits there now."""
    limits = allow(concurrent_requests=1)
    async with open_world(lease_us=30_000_000) as world:
        lost = ask(limits)
        await world.store.reserve(lost)
        world.advance(29.999999)
        assert (await world.store.reserve(ask(limits))).outcome is Outcome.DENIED
        world.advance(0.000001)
        assert (await world.store.reserve(ask(limits))).outcome is Outcome.GRANTED
        assert await world.store.renew([lost]) == (Outcome.GRANTED,)
        reply = await world.store.reserve(ask(limits))
        assert (reply.outcome, reply.readings[0][0]) == (Outcome.DENIED, 2)


async def test_the_wait_for_a_seat_is_estimated_from_how_long_seats_are_held(
    open_world: OpenWorld,
) -> None:
    """A second while nobody has left; then the mean hold over the holders, within bounds."""
    limits = allow(concurrent_requests=2)
    async with open_world(lease_us=600_000_000) as world:
        first, second = ask(limits), ask(limits)
        await world.store.reserve(first)
        await world.store.reserve(second)
        reply = await world.store.reserve(ask(limits))
        assert reply.readings[0][1] == 1_000_000
        world.advance(8)
        await settle(world, first, 0)
        await world.store.reserve(ask(limits))
        reply = await world.store.reserve(ask(limits))
        assert reply.readings[0][1] == 4_000_000
        world.advance(8)
        await settle(world, second, 0)
        await world.store.reserve(ask(limits))
        reply = await world.store.reserve(ask(limits))
        assert reply.readings[0][1] == 4_500_000, "an eighth of the way from 8 to 16, over two"


async def test_what_was_closed_stays_closed(open_world: OpenWorld) -> None:
    """A command that arrives after its hold was released, or was never known, finds it closed."""
    limits = allow(tokens_per_minute=100)
    async with open_world() as world:
        late = ask(limits, output=100)
        closed = await world.store.settle(Closing(late, Mode.RELEASE, NOTHING))
        assert closed.outcome is Outcome.UNKNOWN
        assert (await world.store.reserve(late)).outcome is Outcome.CLOSED
        assert (await world.store.reserve(late, mode=Mode.ADOPT)).outcome is Outcome.CLOSED
        assert await world.store.renew([late]) == (Outcome.CLOSED,)
        totals = await world.store.totals("acme")
        assert totals.balanced
        assert totals.reserved.tokens == 0


async def test_asking_again_takes_nothing_again(open_world: OpenWorld) -> None:
    """A call that is sent twice, its first answer lost, is let in once."""
    limits = allow(tokens_per_minute=100, concurrent_requests=1)
    async with open_world() as world:
        asked = ask(limits, output=100)
        for _ in range(3):
            reply = await world.store.reserve(asked)
            assert (reply.outcome, [r[0] for r in reply.readings]) == (Outcome.GRANTED, [100, 1])
        for mode in (Mode.CHARGE, Mode.CHARGE, Mode.RELEASE):
            await world.store.settle(Closing(asked, mode, Spend(output_tokens=60)))
        reply = await world.store.reserve(ask(limits, output=1))
        assert [r[0] for r in reply.readings] == [61, 1]


async def test_time_does_not_run_back(open_world: OpenWorld) -> None:
    """A server's clock set back by up to a minute stands still; by more it is believed."""
    limits = allow(requests_per_minute=1)
    async with open_world() as world:
        assert (await world.store.reserve(ask(limits))).outcome is Outcome.GRANTED
        world.set(NOON - 60_000_000)
        reply = await world.store.reserve(ask(limits))
        assert (reply.outcome, reply.at_us) == (Outcome.DENIED, NOON)
        world.set(NOON - 3_600_000_000)
        reply = await world.store.reserve(ask(limits))
        assert (reply.outcome, reply.at_us) == (Outcome.GRANTED, NOON - 3_600_000_000)


async def test_the_largest_amounts_are_exact(open_world: OpenWorld) -> None:
    """Up to 2**53 - 1 nothing is rounded: not in a sum, a bound, a seed or a record."""
    most = 2**53 - 1
    limits = allow("tenant:t", Budget(Period.DAY, Unit.NANO, most))
    async with open_world() as world:
        half = most // 2
        first, second = ask(limits, cost=half), ask(limits, cost=half)
        assert (await seeded(world, first, 1)).readings[0][0] == half + 1
        assert (await seeded(world, second)).readings[0][0] == most
        assert (await seeded(world, ask(limits, cost=1))).outcome is Outcome.DENIED
        spent = Spend(cost_nano=half - 1)
        await world.store.settle(Closing(first, Mode.SETTLE, spent))
        assert (await seeded(world, ask(limits, cost=2))).outcome is Outcome.DENIED
        assert (await seeded(world, ask(limits, cost=1))).outcome is Outcome.GRANTED
        totals = await world.store.totals("acme")
        assert totals.balanced
        assert totals.reserved.cost_nano == most
        assert totals.released.cost_nano == 1


async def test_organisations_do_not_share(open_world: OpenWorld) -> None:
    """The same owner's name in another organisation is another owner."""
    limits: Allowance = allow(requests_per_minute=1)
    async with open_world() as world:
        for group in ("acme", "apex"):
            reply = await world.store.reserve(ask(limits, group=group))
            assert reply.outcome is Outcome.GRANTED
        assert (await world.store.totals("acme")).reserved.requests == 1
