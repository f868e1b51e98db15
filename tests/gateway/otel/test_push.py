"""Pushing beside collectors that refuse, vanish and hang: nobody waits, everything is counted."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door
from otlp_receiver import Receiver, plain

from engine.core.clock import NS_PER_S, MonotonicClock
from gateway import metric_names as names
from gateway.instruments import Instruments
from gateway.logging import FIELDS, Repeated
from gateway.otel import push as pushing
from gateway.otel.exporters import Counts
from gateway.otel.push import Push, resource_attributes
from gateway.settings import Settings
from gateway.workers.metrics import COMMON
from gateway.workers.place import ALONE, Place

CLOCK = MonotonicClock()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def traces_only(url: str, **more: Any) -> dict[str, Any]:
    return {"otlp_endpoint": url, "otlp_signals": "traces", "trace_sample": 1.0, **more}


def traced(door: Door) -> Counts:
    return door.services.push.counts["traces"]


async def test_a_collector_that_is_busy_is_asked_again(tmp_path: Path, receiver: Receiver) -> None:
    """503 and 429 cost a pause, not the batch; headers of the operator's go along."""
    receiver.behaviour.statuses, receiver.behaviour.retry_after = [503, 429], "0"
    settings = traces_only(receiver.url, otlp_headers="x-token=se%20cret,x-two=2")
    async with open_door(tmp_path, settings=settings) as door:
        await door.post(CHAT, chat_body(max_tokens=1))
        await eventually(lambda: traced(door).sent == 1, "it arrived")
        assert receiver.num_tries == 3
        assert len(receiver.messages["/v1/traces"]) == 1
        assert receiver.headers[0]["x-token"] == "se cret"
        assert receiver.headers[0]["content-encoding"] == "gzip"


async def test_what_a_collector_will_never_take_is_counted_as_failed(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.behaviour.statuses = [400]
    async with open_door(tmp_path, settings=traces_only(receiver.url)) as door:
        await door.post(CHAT, chat_body(max_tokens=1))
        await eventually(lambda: traced(door).failed == 1, "it is given up")
        await door.post(CHAT, chat_body(max_tokens=1))
        await eventually(lambda: traced(door).sent == 1, "the next one is sent")
        text = (await door.http.get("/metrics")).text
    for state, count in (("sent", 1), ("failed", 1), ("dropped", 0)):
        labels = f'{{tiergate_signal="traces",tiergate_state="{state}"}}'
        assert f"tiergate_telemetry_items_total{labels} {count}.0" in text


async def test_a_full_queue_drops_and_counts_and_nobody_waits(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a collector hangs answers go on; memory is bounded, and what is lost is counted."""
    monkeypatch.setattr(pushing, "MOST_TRACES", 5)
    monkeypatch.setattr(pushing, "TRACES_AT_ONCE", 2)
    receiver.behaviour.hangs = True
    async with open_door(tmp_path, settings=traces_only(receiver.url)) as door:
        for _ in range(12):
            assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
        assert traced(door).dropped == 12 - 5
        assert traced(door).sent == 0


def test_the_end_is_bounded_whatever_the_collector_does(receiver: Receiver) -> None:
    """Hanging, gone, or never there: ending takes its limit, not the time limits of tries."""
    receiver.behaviour.hangs = True
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for url in (receiver.url, gone, "http://256.256.256.256:1"):
            settings = Settings(otlp_endpoint=url, otlp_signals="metrics,logs", otlp_timeout_s=60)
            made = Instruments()
            made.observe(names.OPEN_ANSWERS, lambda: [(1, {})])
            push = Push(settings, made, CLOCK, ALONE, lambda _id: None, unexplained)
            push.start()
            logging.getLogger("tests").warning("something to push")
            before_ns = CLOCK.now_ns()
            push.close()
            assert CLOCK.now_ns() - before_ns < 20 * NS_PER_S


async def unexplained(_name: str) -> None:
    return None


async def test_log_lines_arrive_as_they_are_on_stderr(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Same message, same fields, by their names here and there, in the trace of their request."""
    caplog.set_level(logging.INFO)
    settings = {"otlp_endpoint": receiver.url, "otlp_signals": "logs,traces", "trace_sample": 1.0}
    async with open_door(tmp_path, settings=settings) as door:
        answer = await door.post(CHAT, chat_body("Hi", stream=True, max_tokens=3))
        trace_id = answer.headers["traceresponse"].split("-")[1]
        await eventually(
            lambda: [line for line in receiver.lines() if line.trace_id.hex() == trace_id],
            "the access line",
        )
        (line,) = [line for line in receiver.lines() if line.trace_id.hex() == trace_id]
        (record,) = [
            one
            for one in caplog.records
            if one.name == "gateway.access" and getattr(one, FIELDS)["trace_id"] == trace_id
        ]
    assert line.body.string_value == "request"
    assert line.severity_text == "info"
    assert abs(line.time_unix_nano - record.created * 1e9) < 1e6
    told = plain(line.attributes)
    fields = {name: value for name, value in getattr(record, FIELDS).items() if value is not None}
    del fields["trace_id"]
    assert told.pop("logger.name") == "gateway.access"
    expected = {pushing_name(name): value for name, value in fields.items()}
    assert told == expected
    assert not any(name.startswith("tiergate.log.") for name in told), "every field is documented"


def pushing_name(field: str) -> str:
    from gateway.otel.span_names import LOG_FIELDS

    return LOG_FIELDS[field][0]


async def test_an_unforeseen_fault_is_told_without_its_message(
    tmp_path: Path, receiver: Receiver
) -> None:
    """A stack trace's message may hold somebody's prompt."""
    settings = {"otlp_endpoint": receiver.url, "otlp_signals": "logs"}
    async with open_door(tmp_path, settings=settings):
        try:
            raise ValueError("the prompt was: swordfish")
        except ValueError as error:
            logging.getLogger("tests").error("failed", exc_info=error)
        await eventually(
            lambda: [one for one in receiver.lines() if one.body.string_value == "failed"], "it"
        )
    (line,) = [one for one in receiver.lines() if one.body.string_value == "failed"]
    told = plain(line.attributes)
    assert told["exception.type"] == "ValueError"
    assert "test_push.py" in told["exception.stacktrace"]
    assert b"swordfish" not in line.SerializeToString()


def test_every_process_is_an_instance_of_its_own() -> None:
    """Workers, and gateways that share their settings, are told apart."""
    settings = Settings(otlp_resource="deployment.environment.name=prod,service.namespace=llm")
    found = [resource_attributes(settings, Place(i, 2, Path("/x"))) for i in range(2)]
    found += [resource_attributes(settings, ALONE) for _ in range(2)]
    assert len({one["service.instance.id"] for one in found}) == 4
    assert [one.get("tiergate.worker") for one in found] == ["0", "1", None, None]
    assert {one["deployment.environment.name"] for one in found} == {"prod"}
    named = Settings(otlp_resource="service.instance.id=pod-1,service.name=mine")
    assert resource_attributes(named, ALONE)["service.instance.id"] == "pod-1"
    assert resource_attributes(named, ALONE)["service.name"] == "mine"
    workers = [resource_attributes(named, Place(i, 2, Path("/x"))) for i in range(2)]
    assert [one["service.instance.id"] for one in workers] == ["pod-1-0", "pod-1-1"]


def test_what_all_workers_read_off_one_engine_is_pushed_once(receiver: Receiver) -> None:
    """Sums over instances would otherwise count the engine's requests once for each worker."""
    for index in range(2):
        made = Instruments()
        for name in (*COMMON, names.OPEN_ANSWERS):
            made.observe(name, lambda: [(1, {})])
        settings = Settings(otlp_endpoint=receiver.url, otlp_signals="metrics")
        place = Place(index, 2, Path("/x"))
        push = Push(settings, made, CLOCK, place, lambda _id: None, unexplained)
        push.start()
        push.close()  # the last push is part of the end
        told = {name for name in receiver.latest() if not name.startswith("tiergate.telemetry")}
        common = {name for name in COMMON if ":" not in name}
        assert told == ({names.OPEN_ANSWERS} | common if index == 0 else {names.OPEN_ANSWERS})
        receiver.messages["/v1/metrics"].clear()


def test_a_library_that_repeats_itself_is_heard_once_a_minute() -> None:
    """A collector that is away for a night must not fill the disk with one sentence."""
    heard = Repeated()

    def line(name: str, at_s: float, message: str = "cannot %s") -> bool:
        record = logging.LogRecord(name, logging.ERROR, "", 0, message, ("send",), None)
        record.created = at_s
        return heard.filter(record)

    library = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert [line(library, at) for at in (0, 1, 59, 61, 62)] == [True, False, False, True, False]
    assert line(library, 62, "something else")
    assert all(line("gateway.app", at) for at in (0, 1, 2))


async def test_the_event_loop_is_free_while_a_gateway_ends(receiver: Receiver) -> None:
    """`close` blocks, so it is called in a thread."""
    receiver.behaviour.hangs = True
    settings = Settings(otlp_endpoint=receiver.url, otlp_signals="metrics")
    made = Instruments()
    made.observe(names.OPEN_ANSWERS, lambda: [(1, {})])
    push = Push(settings, made, CLOCK, ALONE, lambda _id: None, unexplained)
    push.start()
    ending = asyncio.create_task(asyncio.to_thread(push.close))
    ticks = 0
    while not ending.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await ending
    assert ticks > 20
