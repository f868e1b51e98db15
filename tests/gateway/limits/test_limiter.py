"""The limiter while its store answers: holds, leases, seeds, alerts, and the sums of law L47."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from faulty_store import Fault
from limiter_kit import Bench, play
from store_kit import allow, ask

from gateway.limits.calendar import unix_us
from gateway.limits.values import Denial, Grant, Sum
from tenants.values import Budget, Period, Unit

BEFORE_DECEMBER = unix_us(datetime(2026, 11, 30, 23, 55, tzinfo=UTC))
MONTH = Budget(Period.MONTH, Unit.TOKENS, 1000, alert_percent=80)


def test_what_was_not_used_is_free_again_and_the_books_balance() -> None:
    """Settled, released and repeated: reserved = settled + released + open throughout."""

    async def story(bench: Bench) -> None:
        limits = allow(tokens_per_minute=1000, requests_per_minute=10)
        first, second, third = (ask(limits, prompt=100, output=200) for _ in range(3))
        for each in (first, second, third):
            assert isinstance(await bench.limiter.reserve(each), Grant)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=200)), Denial)
        bench.limiter.settle(first.id, prompt_tokens=100, output_tokens=30)
        bench.limiter.settle(
            first.id, prompt_tokens=100, output_tokens=200
        )  # only the first counts
        bench.limiter.release(second.id)
        bench.limiter.release(second.id)
        bench.limiter.settle("never-let-in", prompt_tokens=5, output_tokens=5)
        # A settlement stands in line before the next ask of its worker: nothing to wait for.
        verdict = await bench.limiter.reserve(ask(limits, output=200))
        assert isinstance(verdict, Grant)
        tokens, requests = sorted(verdict.standings(), key=lambda s: -s.rule.limit)
        assert (tokens.used, tokens.remaining) == (130 + 300 + 200, 370)
        assert (requests.used, requests.remaining) == (3, 7), "who was released never came"
        totals = await bench.limiter.totals("acme")
        assert totals.balanced
        assert (totals.settled, totals.released) == (Sum(1, 130), Sum(1, 470))
        assert (totals.reserved, totals.open) == (Sum(4, 1100), Sum(2, 500))

    play(story)


def test_a_request_asks_once() -> None:
    """An id that is open, being asked for, or over is a fault of the caller and told so."""

    async def story(bench: Bench) -> None:
        limits = allow(requests_per_minute=10)
        once = ask(limits)
        asking = asyncio.create_task(bench.limiter.reserve(once))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="asks twice"):
            await bench.limiter.reserve(once)
        await asking
        with pytest.raises(ValueError, match="asks twice"):
            await bench.limiter.reserve(once)
        bench.limiter.release(once.id)
        with pytest.raises(ValueError, match="over already"):
            await bench.limiter.reserve(once)

    play(story)


def test_a_caller_that_is_cancelled_holds_nothing() -> None:
    """Cancelled at any moment of the ask, before or after the store has let it in."""

    async def story(bench: Bench) -> None:
        limits = allow(concurrent_requests=1, tokens_per_minute=100)
        for step in range(12):
            asking = asyncio.create_task(bench.limiter.reserve(ask(limits, output=100)))
            await asyncio.sleep(step * 0.0002)
            asking.cancel()
            gone = await asyncio.gather(asking, return_exceptions=True)
            if isinstance(gone[0], Grant):
                bench.limiter.release(gone[0].ask.id)
            assert await bench.limiter.flush(5)
            totals = await bench.limiter.totals("acme")
            assert totals.balanced
            assert totals.open == Sum()
        assert bench.limiter.state.open_holds == 0

    play(story)


def test_a_lease_is_renewed_while_its_worker_lives_and_ends_with_it() -> None:
    """Seats are held for as long as a request runs, and 30 seconds longer than its worker."""

    async def story(bench: Bench) -> None:
        limits = allow(concurrent_requests=1, tokens_per_minute=10_000)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=500)), Grant)
        await asyncio.sleep(600)
        assert isinstance(await bench.limiter.reserve(ask(limits)), Denial)
        bench.store.fault = Fault.CALL_LOST  # for the store the worker is dead
        await asyncio.sleep(31)
        after = await bench.store.inner.reserve(ask(limits))
        assert after.outcome.name == "GRANTED"
        # Nobody ever said what it had used: an hour later it counts as used up.
        await asyncio.sleep(3700)
        totals = await bench.store.inner.totals("acme")
        assert totals.balanced
        assert totals.lapsed == Sum(2, 500)
        assert totals.open == Sum()

    play(story)


def test_the_ledger_is_asked_once_per_window() -> None:
    """A hundred requests that meet a new window wait for one question, and none asks again."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH)
        bench.spent = {"bmt:tenant:t": 940}
        asks = [ask(limits, output=10) for _ in range(100)]
        verdicts = await asyncio.gather(*[bench.limiter.reserve(each) for each in asks])
        assert sum(isinstance(verdict, Grant) for verdict in verdicts) == 6
        assert bench.asked == [("bmt:tenant:t", datetime(2026, 11, 1, tzinfo=UTC))]
        await asyncio.sleep(600)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=10)), Grant)
        assert bench.asked[1:] == [("bmt:tenant:t", datetime(2026, 12, 1, tzinfo=UTC))]

    play(story, start_us=BEFORE_DECEMBER)


def test_a_budget_says_how_much_and_when_again() -> None:
    """To the token at the border of a month, and the denial names it as a budget."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH, requests_per_minute=1000)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=999)), Grant)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=1)), Grant)
        verdict = await bench.limiter.reserve(ask(limits, output=1))
        assert isinstance(verdict, Denial)
        assert verdict.is_budget
        december = datetime(2026, 12, 1, tzinfo=UTC)
        assert verdict.wait_us is not None
        assert verdict.at_us + verdict.wait_us == december.timestamp() * 1_000_000
        await asyncio.sleep(verdict.wait_us / 1_000_000 - 0.01)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=1)), Denial)
        await asyncio.sleep(0.01)
        assert isinstance(await bench.limiter.reserve(ask(limits, output=1000)), Grant)

    play(story, start_us=BEFORE_DECEMBER)


def test_an_alert_tells_of_what_was_spent_not_of_what_was_reserved() -> None:
    """At 80 percent spent, once; large reservations that come back do not set it off."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH)
        for output in (400, 399, 1, 50):
            each = ask(limits, output=990 - 400 * (output != 400) - 399 * (output in (1, 50)))
            assert isinstance(await bench.limiter.reserve(each), Grant)
            assert bench.alerts == [] or output == 50
            bench.limiter.settle(each.id, prompt_tokens=0, output_tokens=output)
            assert await bench.limiter.flush(1)
        assert [alert.rule.key for alert in bench.alerts] == ["bmt:tenant:t"]
        assert bench.limiter.state.alerts == 1

    play(story)


def test_what_can_never_fit_is_told_so() -> None:
    """An ask above the limit itself is refused without a time to come back."""

    async def story(bench: Bench) -> None:
        verdict = await bench.limiter.reserve(ask(allow(tokens_per_minute=100), output=101))
        assert isinstance(verdict, Denial)
        assert verdict.wait_us is None

    play(story)


def test_a_late_settlement_is_harmless() -> None:
    """After the minute and after the month in which it was reserved nothing changes now."""

    async def story(bench: Bench) -> None:
        limits = allow("tenant:t", MONTH, tokens_per_minute=1000)
        old = ask(limits, output=600)
        assert isinstance(await bench.limiter.reserve(old), Grant)
        await asyncio.sleep(600)
        new = await bench.limiter.reserve(ask(limits, output=300))
        assert [standing.used for standing in new.standings()] == [300, 300]
        bench.limiter.settle(old.id, prompt_tokens=0, output_tokens=10)
        newer = await bench.limiter.reserve(ask(limits, output=300))
        assert [standing.used for standing in newer.standings()] == [600, 600]
        assert (await bench.limiter.totals("acme")).balanced

    play(story, start_us=BEFORE_DECEMBER)
