"""What every EngineClient promises, held to both: the engine in a thread and in its own process."""

from __future__ import annotations

import asyncio

import pytest
import scripted_executor as scripted
from engine_kit import ClientMaker, Gate, config_of, eventually, order_of, read, tokens_of

from engine.core.errors import EngineUnavailable, RequestRefused
from engine.core.request import FinishReason
from engine.core.stats import RequestStats, StepStats


async def test_sixty_four_streams_get_their_own_tokens(make_client: ClientMaker) -> None:
    """Concurrent requests all run to their end, each with exactly its tokens and its record."""
    engine = make_client(config_of())
    finished: list[RequestStats] = []
    steps: list[StepStats] = []
    engine.add_finish_listener(finished.append)
    engine.add_step_listener(steps.append)
    await engine.start()
    assert engine.ready
    assert engine.info is not None
    assert engine.info.runner == "scripted"
    orders = [
        order_of(f"r{i}", prompt=tuple(range(i, 2 * i + 3)), max_tokens=20 + i % 7, tenant=f"t{i}")
        for i in range(64)
    ]
    answers = await asyncio.gather(*[read(engine.submit(order)) for order in orders])
    for order, events in zip(orders, answers, strict=True):
        assert tokens_of(events) == scripted.expected_tokens(order)
        assert events[-1].finish_reason is FinishReason.LENGTH
        assert [event.stats is None for event in events] == [True] * (len(events) - 1) + [False]
    by_id = {stats.request_id: stats for stats in finished}
    assert len(finished) == len(by_id) == 64
    for order in orders:
        stats = by_id[order.id]
        assert stats.num_output_tokens == order.sampling.max_tokens
        assert (stats.tenant, stats.num_prompt_tokens) == (order.tenant, len(order.prompt))
    assert [s.step for s in steps] == list(range(steps[0].step, steps[0].step + len(steps)))
    assert engine.snapshot is not None
    assert engine.snapshot.finished_total == 64
    assert engine.snapshot.free_blocks == engine.snapshot.num_blocks


async def test_a_stream_that_has_ended_stays_ended(make_client: ClientMaker) -> None:
    """After the last event a reader gets an empty list, as often as it asks."""
    engine = make_client(config_of())
    await engine.start()
    stream = engine.submit(order_of("a"))
    await read(stream)
    assert await stream.next_events() == []


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding"])
async def test_abort_frees_everything_within_two_steps(
    make_client: ClientMaker, gate: Gate, state: str
) -> None:
    """An abort in any state ends the request as CANCELLED and its blocks are free (law L7)."""
    engine = make_client(
        config_of(
            # Steps slow enough that the gate closes long before a prompt of 125 steps is through.
            options={"gate": gate.folder, "step_s": 0.02},
            max_batch_tokens=16,
            max_batch_requests=1,
        )
    )
    await engine.start()
    if state == "waiting":
        blocker = engine.submit(order_of("blocker", max_tokens=4000))
        await blocker.next_events()
    prompt = tuple(range(2000)) if state == "prefilling" else (5, 6, 7)
    stream = engine.submit(order_of("victim", prompt=prompt, max_tokens=2000))
    if state == "decoding":
        await stream.next_events()
    else:
        field = "waiting" if state == "waiting" else "running"
        await eventually(lambda: getattr(engine.snapshot, field) == 1, f"it is {state}")
    gate.close()
    await gate.step_waits()
    assert engine.snapshot is not None
    step = engine.snapshot.step
    engine.abort("victim")
    gate.open()
    events = await read(stream)
    assert events[-1].finish_reason is FinishReason.CANCELLED
    assert bool(tokens_of(events)) == (state == "decoding")
    if state == "waiting":
        engine.abort("blocker")
        await read(blocker)
    else:
        # The step that was under way, and at most one more.
        assert engine.snapshot.step - step <= 2
    await eventually(
        lambda: (
            engine.snapshot is not None
            and engine.snapshot.waiting == engine.snapshot.running == 0
            and engine.snapshot.free_blocks == engine.snapshot.num_blocks
        ),
        "all blocks are free",
    )


async def test_abort_and_stop_of_unknown_requests_are_ignored(make_client: ClientMaker) -> None:
    """Ids that are unknown or have ended change nothing."""
    engine = make_client(config_of())
    await engine.start()
    order = order_of("a")
    answer = await read(engine.submit(order))
    for request_id in ("a", "never"):
        engine.abort(request_id)
        engine.stop(request_id, 1)
    assert tokens_of(answer) == scripted.expected_tokens(order)
    assert tokens_of(await read(engine.submit(order_of("b")))) != []


async def test_stop_counts_the_tokens_before_the_stop(make_client: ClientMaker) -> None:
    """A stop string found by the door ends the request as STOP and bills what came before it."""
    engine = make_client(config_of(options={"step_s": 0.001}))
    await engine.start()
    stream = engine.submit(order_of("a", max_tokens=4000))
    seen = 0
    while seen < 5:
        seen += len(await stream.next_events())
    engine.stop("a", 3)
    last = (await read(stream))[-1]
    assert last.finish_reason is FinishReason.STOP
    assert last.stats is not None
    assert last.stats.num_output_tokens == 3


async def test_a_refusal_arrives_as_the_last_event(make_client: ClientMaker) -> None:
    """What the core refuses ends as REJECTED with a record and a reason from the closed list."""
    engine = make_client(config_of(max_model_len=64))
    finished: list[RequestStats] = []
    engine.add_finish_listener(finished.append)
    await engine.start()
    (event,) = await read(engine.submit(order_of("a", max_tokens=64, tier="free")))
    assert event.finish_reason is FinishReason.REJECTED
    assert event.stats is not None
    assert event.stats.detail.startswith("never_fits: ")
    assert (event.stats.tier, event.stats.num_output_tokens) == ("free", 0)
    assert finished == [event.stats]


async def test_too_many_open_requests_are_refused_at_the_door(
    make_client: ClientMaker, gate: Gate
) -> None:
    """The table of streams is bounded; who comes to a full one is REJECTED, the others are not."""
    engine = make_client(config_of(options={"gate": gate.folder}, max_open_requests=2))
    await engine.start()
    gate.close()
    kept = [engine.submit(order_of(name)) for name in ("a", "b")]
    (event,) = await read(engine.submit(order_of("c")))
    assert event.finish_reason is FinishReason.REJECTED
    assert event.stats is not None
    assert event.stats.detail.startswith("queue_full: ")
    gate.open()
    for stream in kept:
        assert (await read(stream))[-1].finish_reason is FinishReason.LENGTH


async def test_an_id_in_use_is_refused(make_client: ClientMaker, gate: Gate) -> None:
    """Two open requests of one id would share a bill: the second raises, the first goes on."""
    engine = make_client(config_of(options={"gate": gate.folder}))
    await engine.start()
    gate.close()
    order = order_of("a")
    stream = engine.submit(order)
    with pytest.raises(RequestRefused, match="already open"):
        engine.submit(order)
    gate.open()
    assert tokens_of(await read(stream)) == scripted.expected_tokens(order)


async def test_a_slow_reader_stalls_nobody(make_client: ClientMaker) -> None:
    """Others finish while one stream is not read at all; later it has every token (fault F12)."""
    engine = make_client(config_of())
    await engine.start()
    slow_order = order_of("slow", max_tokens=500)
    slow = engine.submit(slow_order)
    orders = [order_of(f"r{i}", prompt=(i, 1), max_tokens=100) for i in range(8)]
    answers = await asyncio.gather(*[read(engine.submit(order)) for order in orders])
    assert [tokens_of(a) for a in answers] == [scripted.expected_tokens(o) for o in orders]
    assert tokens_of(await read(slow)) == scripted.expected_tokens(slow_order)


async def test_a_fault_costs_a_request_and_no_engine(make_client: ClientMaker) -> None:
    """A request whose every step meets an ExecutorFault fails; the engine goes on (fault F1)."""
    engine = make_client(config_of())
    await engine.start()
    bad = await read(engine.submit(order_of("bad", prompt=(scripted.FAULT, 1))))
    assert bad[-1].finish_reason is FinishReason.FAILED
    assert bad[-1].stats is not None
    assert "memory ran out" in bad[-1].stats.detail
    assert engine.ready
    order = order_of("next")
    assert tokens_of(await read(engine.submit(order))) == scripted.expected_tokens(order)


async def test_closing_ends_open_streams_and_bills_them(make_client: ClientMaker) -> None:
    """After close every stream has a FAILED end, every record was told, nothing is taken."""
    engine = make_client(config_of(options={"step_s": 0.001}))
    finished: list[RequestStats] = []
    engine.add_finish_listener(finished.append)
    await engine.start()
    streams = [engine.submit(order_of(f"r{i}", max_tokens=4000)) for i in range(3)]
    for stream in streams:
        await stream.next_events()
    await engine.close()
    assert not engine.ready
    assert {stats.request_id for stats in finished} == {"r0", "r1", "r2"}
    for stream in streams:
        last = (await read(stream))[-1]
        assert last.finish_reason is FinishReason.FAILED
        assert last.stats is not None
        assert last.stats.num_output_tokens > 0
    with pytest.raises(EngineUnavailable):
        engine.submit(order_of("late"))
    await engine.close()  # again: harmless


async def test_nothing_is_taken_before_the_start(make_client: ClientMaker) -> None:
    """A client that was never started says so, and closes."""
    engine = make_client(config_of())
    assert not engine.ready
    assert engine.info is None
    assert engine.snapshot is None
    with pytest.raises(EngineUnavailable):
        engine.submit(order_of("a"))
    engine.abort("a")


async def test_after_a_crash_the_streams_have_ended_with_the_reason(
    make_client: ClientMaker,
) -> None:
    """An exception in the executor ends every request as FAILED, with what it said (F1)."""
    engine = make_client(config_of(options={"step_s": 0.001}))
    await engine.start()
    stream = engine.submit(order_of("innocent", max_tokens=4000))
    await stream.next_events()
    guilty = engine.submit(order_of("guilty", prompt=(scripted.RAISE,)))
    for ended in (stream, guilty):
        last = (await read(ended))[-1]
        assert last.finish_reason is FinishReason.FAILED
        assert last.stats is not None
        assert "the device is gone" in last.stats.detail
