"""The limiter while its store is away, and when it is back: what it grants and what it owes."""

from __future__ import annotations

import asyncio

import pytest
from faulty_store import Fault
from limiter_kit import Bench, play
from store_kit import allow, ask

from gateway.limits.rules import Allowance
from gateway.limits.store import StoreAway
from gateway.limits.values import Away, Denial, Grant, Standing, Sum, Verdict
from tenants.values import Budget, LimiterAway, Period, Unit

MONTH = Budget(Period.MONTH, Unit.TOKENS, 1000)
LOST = [Fault.CALL_LOST, Fault.REPLY_LOST, Fault.LATE]


async def cut(bench: Bench, fault: Fault) -> None:
    """Cut the line, and let three requests find out."""
    bench.store.fault = fault
    for _ in range(3):
        await bench.limiter.reserve(ask(allow("key:finder")), LimiterAway.REFUSE)
    assert bench.limiter.state.state != "closed"


async def mend(bench: Bench) -> None:
    """Let the store answer again, and the limiter notice."""
    bench.store.fault = Fault.NONE
    bench.store.arrive_late()
    await asyncio.sleep(9)
    assert bench.limiter.state.state == "closed"
    assert await bench.limiter.flush(10)


async def granted(bench: Bench, limits: Allowance, tries: int, output: int = 0) -> list[Verdict]:
    verdicts = [await bench.limiter.reserve(ask(limits, output=output)) for _ in range(tries)]
    return [verdict for verdict in verdicts if isinstance(verdict, Grant)]


def standing_of(verdict: Verdict) -> Standing:
    assert not isinstance(verdict, Away)
    return next(iter(verdict.standings()))


def test_a_tier_may_refuse_while_nothing_can_be_counted() -> None:
    """503 with a hint of seconds, at once when the breaker is open, and no hold is left behind."""

    async def story(bench: Bench) -> None:
        limits = allow(requests_per_minute=100)
        await cut(bench, Fault.CALL_LOST)
        before = bench.clock.now_ns()
        verdict = await bench.limiter.reserve(ask(limits), LimiterAway.REFUSE)
        assert isinstance(verdict, Away)
        assert 250 <= verdict.retry_after_ms <= 4000
        assert bench.clock.now_ns() == before, "an open breaker asks nobody"
        assert bench.limiter.state.open_holds == 0
        await mend(bench)
        assert isinstance(await bench.limiter.reserve(ask(limits), LimiterAway.REFUSE), Grant)

    play(story)


@pytest.mark.parametrize(
    ("workers", "limit", "share"), [(4, 103, 25), (4, 3, 1), (1, 7, 7), (3, 0, 0)]
)
def test_a_tier_may_let_in_its_share(workers: int, limit: int, share: int) -> None:
    """The limit over the workers, rounded down, at least 1 where there is any limit at all."""

    async def story(bench: Bench) -> None:
        limits = allow(requests_per_minute=limit)
        await cut(bench, Fault.CALL_LOST)
        let_in = await granted(bench, limits, limit + 5)
        assert len(let_in) == share
        if let_in:
            assert let_in[0].is_local
            assert standing_of(let_in[-1]).remaining == 0
        assert bench.limiter.state.granted_locally == share

    play(story, workers)


def test_who_is_within_its_limits_is_not_blamed() -> None:
    """Over this worker's share is 503, over the whole limit is 429."""

    async def story(bench: Bench) -> None:
        limits = allow(tokens_per_minute=100)
        await cut(bench, Fault.CALL_LOST)
        share = await bench.limiter.reserve(ask(limits, output=26))
        assert isinstance(share, Away)
        whole = await bench.limiter.reserve(ask(limits, output=101))
        assert isinstance(whole, Denial)
        assert whole.wait_us is None

    play(story)


def test_a_budget_that_was_spent_stays_spent() -> None:
    """A worker knows what it last heard: its share is of what was left, and none of nothing."""

    async def story(bench: Bench) -> None:
        spent, half = allow("tenant:spent", MONTH), allow("tenant:half", MONTH)
        bench.spent = {"bmt:tenant:spent": 999, "bmt:tenant:half": 500, "bmt:tenant:new": 601}
        assert len(await granted(bench, spent, 2, output=1)) == 1
        (other,) = await granted(bench, half, 1, output=100)
        bench.limiter.settle(other.ask.id, prompt_tokens=0, output_tokens=100)
        assert await bench.limiter.flush(5)
        await cut(bench, Fault.CALL_LOST)
        assert len(await granted(bench, spent, 1, output=1)) == 0
        # 1000 - 600 are left, for four workers 100 each.
        assert len(await granted(bench, half, 7, output=20)) == 5
        # Never heard of: the ledger is asked. 399 are left, 99 for each.
        assert len(await granted(bench, allow("tenant:new", MONTH), 7, output=33)) == 3

    play(story)


def test_seats_taken_before_count_in_the_emergency() -> None:
    """Eight seats, two a worker: one that has two open already lets in no third."""

    async def story(bench: Bench) -> None:
        limits = allow(concurrent_requests=8)
        first, _ = await granted(bench, limits, 2)
        await cut(bench, Fault.CALL_LOST)
        assert await granted(bench, limits, 1) == []
        bench.limiter.settle(first.ask.id, prompt_tokens=0, output_tokens=0)
        assert len(await granted(bench, limits, 2)) == 1

    play(story)


@pytest.mark.parametrize("fault", LOST)
def test_when_it_is_back_it_knows_what_was_let_in_without_it(fault: Fault) -> None:
    """Open and ended requests of the outage count, to the token, and the books balance."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH, concurrent_requests=100, requests_per_minute=400)
        before = await granted(bench, limits, 5, output=10)
        await cut(bench, fault)
        during = await granted(bench, limits, 6, output=10)
        assert len(during) == 6
        for let_in, output in ((before[0], 3), (during[0], 4), (during[1], 5)):
            bench.limiter.settle(let_in.ask.id, prompt_tokens=0, output_tokens=output)
        for let_in in (before[1], during[2]):
            bench.limiter.release(let_in.ask.id)
        await mend(bench)
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert totals.settled == Sum(3, 12)
        assert totals.open == Sum(6, 60), "three of before, three of the outage"
        verdict = await bench.limiter.reserve(ask(limits, output=1))
        assert isinstance(verdict, Grant)
        used = {s.rule.dimension.value: s.used for s in verdict.standings()}
        assert used == {"requests_per_minute": 10, "concurrent_requests": 7, "budget": 73}
        for let_in in (*before, *during):
            bench.limiter.settle(let_in.ask.id, prompt_tokens=0, output_tokens=10)
        assert await bench.limiter.flush(5)
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert totals.settled == Sum(9, 72)
        assert totals.open == Sum(1, 1)

    play(story)


@pytest.mark.parametrize("fault", LOST)
def test_a_refused_request_leaves_nothing_in_the_store(fault: Fault) -> None:
    """Whether the lost ask was done, or is done when everybody has forgotten it."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", concurrent_requests=10, tokens_per_minute=1000)
        bench.store.fault = fault
        verdict = await bench.limiter.reserve(ask(limits, output=10), LimiterAway.REFUSE)
        assert isinstance(verdict, Away)
        bench.store.fault = Fault.NONE
        assert await bench.limiter.flush(10)
        bench.store.arrive_late()
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert totals.open == Sum()
        used = [s.used for s in (await bench.limiter.reserve(ask(limits))).standings()]
        assert used == [0, 1]

    play(story)


@pytest.mark.parametrize("fault", LOST)
def test_a_settlement_that_may_have_been_lost_counts_once(fault: Fault) -> None:
    """Sent until it is confirmed, and taken the first time only."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH)
        first, second = await granted(bench, limits, 2, output=100)
        bench.store.fault = fault
        bench.limiter.settle(first.ask.id, prompt_tokens=1, output_tokens=30)
        bench.limiter.release(second.ask.id)
        await asyncio.sleep(5)
        await mend(bench)
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert (totals.settled, totals.open) == (Sum(1, 31), Sum())
        verdict = await bench.limiter.reserve(ask(limits))
        assert standing_of(verdict).used == 31

    play(story)


def test_a_store_that_lost_its_memory_is_told_again() -> None:
    """Seats and reservations of what is open, and what ended meanwhile, are there again."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH, concurrent_requests=3, tokens_per_minute=900)
        open_one, ended, _ = await granted(bench, limits, 3, output=300)
        await cut(bench, Fault.CALL_LOST)
        bench.store.lose_memory()
        bench.limiter.settle(ended.ask.id, prompt_tokens=0, output_tokens=50)
        await mend(bench)
        verdict = await bench.limiter.reserve(ask(limits, output=1))
        assert isinstance(verdict, Grant)
        assert [s.used for s in verdict.standings()] == [651, 3, 651]
        bench.limiter.settle(open_one.ask.id, prompt_tokens=0, output_tokens=0)
        assert await bench.limiter.flush(5)
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert totals.settled == Sum(2, 50)

    play(story)


def test_a_store_that_lost_its_memory_unnoticed_is_told_at_the_next_renewal() -> None:
    """Nobody called it while it was down: ten seconds later it knows what is open."""

    async def story(bench: Bench) -> None:
        limits = allow(concurrent_requests=1)
        (held,) = await granted(bench, limits, 1)
        bench.store.lose_memory()
        await asyncio.sleep(11)
        assert isinstance(await bench.limiter.reserve(ask(limits)), Denial)
        bench.limiter.settle(held.ask.id, prompt_tokens=0, output_tokens=0)
        assert isinstance(await bench.limiter.reserve(ask(limits)), Grant)
        assert bench.limiter.state.adopted == 1

    play(story)


def test_a_lost_budget_begins_with_the_ledger_and_counts_no_row_twice() -> None:
    """What ended long before the seed is in it; what ended just now may not be, and counts."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH)
        early, late = await granted(bench, limits, 2, output=100)
        await cut(bench, Fault.CALL_LOST)
        bench.store.lose_memory()
        bench.limiter.settle(early.ask.id, prompt_tokens=0, output_tokens=70)
        bench.spent["bmt:tenant:t"] = 70  # its row is written while the store is away
        await asyncio.sleep(30)
        bench.limiter.settle(late.ask.id, prompt_tokens=0, output_tokens=7)
        await mend(bench)
        verdict = await bench.limiter.reserve(ask(limits))
        assert standing_of(verdict).used == 77

    play(story)


def test_a_ledger_that_is_away_stops_nobody() -> None:
    """A window nobody can begin is counted here, by share, until the ledger answers."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH)
        bench.ledger_is_away = True
        refused = await bench.limiter.reserve(ask(limits, output=1), LimiterAway.REFUSE)
        assert isinstance(refused, Away)
        verdicts = await granted(bench, limits, 4, output=100)
        assert len(verdicts) == 2, "a quarter of the budget"
        bench.limiter.settle(verdicts[0].ask.id, prompt_tokens=0, output_tokens=60)
        bench.ledger_is_away = False
        assert await bench.limiter.flush(10)
        await asyncio.sleep(2)
        verdict = await bench.limiter.reserve(ask(limits, output=1))
        assert isinstance(verdict, Grant)
        assert not verdict.is_local
        assert standing_of(verdict).used == 161
        assert (await bench.limiter.totals("acme")).balanced

    play(story)


def test_an_outage_that_comes_and_goes_leaves_the_books_balanced() -> None:
    """A line that fails every few seconds, in all three ways, under a stream of requests."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", tokens_per_minute=100_000, concurrent_requests=1000)
        expected = 0

        async def one(number: int) -> int:
            await asyncio.sleep(number * 0.05)
            asked = ask(limits, output=100)
            verdict = await bench.limiter.reserve(asked)
            if not isinstance(verdict, Grant):
                return 0
            await asyncio.sleep(1 + number % 7)
            if number % 5 == 0:
                bench.limiter.release(asked.id)
                return 0
            bench.limiter.settle(asked.id, prompt_tokens=0, output_tokens=number % 90)
            return number % 90

        async def weather() -> None:
            for round_ in range(9):
                bench.store.fault = (*LOST, Fault.NONE)[round_ % 4]
                await asyncio.sleep(1.7)
            bench.store.fault = Fault.NONE

        spoiling = asyncio.create_task(weather())
        expected = sum(await asyncio.gather(*[one(n) for n in range(400)]))
        await spoiling
        await mend(bench)
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert totals.open == Sum()
        assert totals.settled.tokens == expected
        assert bench.limiter.state.opened >= 2
        bench.store.fault = Fault.CALL_LOST
        with pytest.raises(StoreAway):
            await bench.limiter.totals("acme")

    play(story)
