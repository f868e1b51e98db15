"""The table of streams on an event loop: who is woken, when, how often; what a lost end says."""

from __future__ import annotations

import asyncio

import pytest
from engine_kit import order_of, read

from engine.core.request import FinishReason, RequestOrder, Slo, TbtMode
from engine.core.stats import RequestStats, StepStats, TokenEvent
from engine.serving.streams import EventStream, StreamTable

MS = 1_000_000


def token(order: RequestOrder, token_id: int, at_ns: int = 0) -> TokenEvent:
    return TokenEvent(order.id, token_id, at_ns)


def end(stream: EventStream) -> TokenEvent:
    return stream.final_event(FinishReason.STOP, "", 0)


async def test_a_reader_wakes_once_for_all_events_of_a_step() -> None:
    """Two tokens and the end in one step are one list, not three wake-ups."""
    table = StreamTable(limit=8)
    order = order_of("a")
    stream = table.open(order)
    reader = asyncio.create_task(stream.next_events())
    await asyncio.sleep(0)
    events = [token(order, 1), token(order, 2), end(stream)]
    table.dispatch(events, None)
    assert await reader == events
    assert await stream.next_events() == []
    assert "a" not in table


async def test_listeners_know_before_the_reader() -> None:
    """Whoever sees the last event may count on the bill being written already."""
    table = StreamTable(limit=8)
    heard: list[str] = []
    table.add_finish_listener(lambda stats: heard.append("finish"))
    table.add_step_listener(lambda stats: heard.append("step"))
    stream = table.open(order_of("a"))

    async def read() -> None:
        await stream.next_events()
        heard.append("reader")

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    table.dispatch([end(stream)], StepStats(*range(9)))
    await reader
    assert heard == ["finish", "step", "reader"]


async def test_listeners_know_before_a_reader_who_is_on_its_way() -> None:
    """Also when a token has just woken the reader and the end comes in the same breath."""
    table = StreamTable(limit=8)
    heard: list[RequestStats] = []
    table.add_finish_listener(heard.append)
    order = order_of("a")
    stream = table.open(order)
    seen: list[tuple[TokenEvent, int]] = []

    async def read() -> None:
        while events := await stream.next_events():
            seen.extend((event, len(heard)) for event in events)

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    first, last = token(order, 1), end(stream)
    table.dispatch([first], None)
    table.dispatch([last], None)
    await reader
    assert seen == [(first, 0), (last, 1)]


async def test_a_listener_that_raises_harms_nobody() -> None:
    """Its exception goes to the loop's handler; others and the reader get everything."""
    table = StreamTable(limit=8)
    caught: list[object] = []
    heard: list[RequestStats] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: caught.append(context["exception"])
    )

    def broken(stats: RequestStats) -> None:
        raise KeyError("metering is broken")

    table.add_finish_listener(broken)
    table.add_finish_listener(heard.append)
    stream = table.open(order_of("a"))
    event = end(stream)
    table.dispatch([event], None)
    assert await stream.next_events() == [event]
    await asyncio.sleep(0)
    assert heard == [event.stats]
    assert [type(error) for error in caught] == [KeyError]


async def test_events_of_ended_requests_are_dropped() -> None:
    """A token that comes after the end on this side disturbs nothing."""
    table = StreamTable(limit=8)
    order = order_of("a")
    stream = table.open(order)
    table.fail_all("engine restarted", 5)
    table.dispatch([token(order, 1)], None)
    (last,) = await stream.next_events()
    assert last.finish_reason is FinishReason.FAILED
    assert await stream.next_events() == []


async def test_a_cancelled_reader_may_come_back() -> None:
    """Giving up waiting loses no event."""
    table = StreamTable(limit=8)
    order = order_of("a")
    stream = table.open(order)
    reader = asyncio.create_task(stream.next_events())
    await asyncio.sleep(0)
    table.dispatch([token(order, 1)], None)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert [event.token_id for event in await stream.next_events()] == [1]


@pytest.mark.parametrize(
    ("mode", "times_ms", "late"),
    [
        (TbtMode.GAP, [0, 100, 201, 301], 1),  # one gap above 100 ms
        (TbtMode.STREAM, [0, 50, 199, 301], 1),  # the fourth was due at 300 ms
        (TbtMode.STREAM, [0, 100, 200, 300], 0),
        (TbtMode.GAP, [500], 0),  # the first token has no gap
    ],
)
async def test_a_lost_end_counts_late_tokens_as_promised(
    mode: TbtMode, times_ms: list[int], late: int
) -> None:
    """The record made on this side judges lateness by the request's own SLO."""
    table = StreamTable(limit=8)
    order = order_of("a", slo=Slo(tbt_ns=100 * MS, tbt_mode=mode))
    stream = table.open(order)
    table.dispatch([token(order, 1, at * MS) for at in times_ms], None)
    table.fail_all("engine restarted", 1000 * MS)
    stats = (await read(stream))[-1].stats
    assert stats is not None
    assert stats.late_tokens == late
    assert stats.num_output_tokens == len(times_ms)
    assert (stats.first_token_ns, stats.last_token_ns) == (times_ms[0] * MS, times_ms[-1] * MS)
    assert stats.first_scheduled_ns is None  # only the engine knew
