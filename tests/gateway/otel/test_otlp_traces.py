"""Traces of a real gateway with real traffic, as an independent receiver gets them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body
from otlp_receiver import Receiver, plain

from gateway import metric_names as names
from gateway.logging import FIELDS
from gateway.otel import span_names as say

CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"}
SECRET = "correct horse battery staple"
SERVER, INTERNAL, CLIENT = 2, 1, 3
ERROR = 2


def pushing(receiver: Receiver, **more: Any) -> dict[str, Any]:
    """Settings that push everything, soon."""
    return {
        "otlp_endpoint": receiver.url,
        "otlp_signals": "metrics,traces,logs",
        "otlp_interval_s": 0.1,
        "trace_sample": 1.0,
        **more,
    }


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    with Receiver() as running:
        yield running


def by_name(spans: list[Any]) -> dict[str, Any]:
    return {span.name: span for span in spans}


async def spans_of(receiver: Receiver, trace_id: str, at_least: int) -> list[Any]:
    found: list[Any] = []

    def enough() -> bool:
        found[:] = [one for one in receiver.spans() if one.trace_id.hex() == trace_id]
        return len(found) >= at_least

    await eventually(enough, f"{at_least} spans of {trace_id}")
    return found


def traced(answer: Any) -> str:
    """The trace id that an answer was told, which is not the caller's own header."""
    return str(answer.headers["traceresponse"].split("-")[1])


def everything(receiver: Receiver) -> bytes:
    return b"".join(
        message.SerializeToString() for kind in receiver.messages.values() for message in kind
    )


async def test_a_served_request_is_drawn_inside_its_callers_trace(
    tmp_path: Path, receiver: Receiver
) -> None:
    """Server span under the caller's, then admit, queue and the model, in order and in touch."""
    async with open_door(tmp_path, settings=pushing(receiver)) as door:
        answer = await door.post(CHAT, chat_body(SECRET, stream=True, max_tokens=5), **PARENT)
        assert answer.status_code == 200
        assert traced(answer) == CALLER_TRACE
        spans = by_name(await spans_of(receiver, CALLER_TRACE, 6))
        server, admit = spans["POST /v1/chat/completions"], spans[say.ADMIT]
        queue, model = spans[say.QUEUE], spans["chat talker"]
        prefill, decode = spans[say.PREFILL], spans[say.DECODE]
        assert len(spans) == 6

        assert server.parent_span_id.hex() == CALLER_SPAN
        assert server.span_id.hex() == answer.headers["traceresponse"].split("-")[2]
        assert {one.parent_span_id for one in (admit, queue, model)} == {server.span_id}
        assert {one.parent_span_id for one in (prefill, decode)} == {model.span_id}
        assert (server.kind, model.kind, queue.kind) == (SERVER, CLIENT, INTERNAL)
        assert server.flags & 0x300 == 0x300  # the parent is known to be remote
        assert admit.flags & 0x300 == 0x100
        assert server.status.code != ERROR

        assert server.start_time_unix_nano == admit.start_time_unix_nano
        assert admit.end_time_unix_nano == queue.start_time_unix_nano
        assert queue.end_time_unix_nano == model.start_time_unix_nano
        assert model.start_time_unix_nano == prefill.start_time_unix_nano
        assert prefill.end_time_unix_nano == decode.start_time_unix_nano
        assert decode.end_time_unix_nano == model.end_time_unix_nano
        assert model.end_time_unix_nano <= server.end_time_unix_nano
        told = [event.name for event in model.events]
        assert sorted(told) == sorted([say.FIRST_TOKEN, say.LAST_TOKEN, say.FIRST_TOKEN_DUE])

        asked = plain(model.attributes)
        (choice_id,) = [json.loads(e[6:])["id"] for e in answer.text.split("\n\n")[:1]]
        assert asked[names.OPERATION] == "chat"
        assert asked[names.PROVIDER] == "tiergate"
        assert asked[names.MODEL] == asked[say.RESPONSE_MODEL] == "talker"
        assert asked[say.RESPONSE_ID] == choice_id
        assert asked[say.STREAM] is True
        assert asked[say.FINISH_REASONS] == ["length"]
        assert asked[say.OUTPUT_TOKENS] == asked[say.MAX_TOKENS] == 5
        (row,) = await door.usage_of(choice_id)
        assert asked[say.INPUT_TOKENS] == row.prompt_tokens
        assert asked[say.FIRST_CHUNK] == pytest.approx(row.ttft_ms / 1000, abs=1e-4)
        assert asked[say.SERVICE_TIER] == "priority"
        assert asked[names.TIER] == "premium"
        assert asked[names.TENANT] == row.tenant_id
        assert asked[say.MET] is row.slo_met
        seen = plain(server.attributes)
        assert seen[say.HTTP_ROUTE] == seen[say.URL_PATH] == CHAT
        assert (seen[say.HTTP_METHOD], seen[say.HTTP_STATUS]) == ("POST", 200)
        assert seen[say.URL_SCHEME] == "http"
        assert seen[names.OUTCOME] == "ok"
        assert names.ERROR_TYPE not in seen

        story = await door.http.get(
            f"/admin/api/requests/{choice_id}",
            headers={"authorization": f"Bearer {door.admin_token}"},
        )
        assert story.json()["door"]["trace_id"] == CALLER_TRACE


async def test_every_attribute_is_documented_and_nothing_said_is_sent(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """All routes, good ends and bad: no prompt, no answer, no key, no name outside the tables."""
    caplog.set_level(logging.INFO)
    async with open_door(tmp_path, settings=pushing(receiver)) as door:
        await door.post(CHAT, chat_body(SECRET, n=2, max_tokens=12))
        await door.post(TEXT, text_body([SECRET, "x"], max_tokens=12, user=SECRET))
        await door.post("/v1/embeddings", {"model": "talker", "input": SECRET})
        await door.post(CHAT, chat_body(SECRET, max_tokens=-1))
        await door.post(CHAT, SECRET.encode())
        await door.http.post(CHAT, json=chat_body(SECRET), headers={"authorization": SECRET})
        await door.http.get("/v1/" + SECRET.replace(" ", "/"))
        await door.post(CHAT, chat_body("x", max_tokens=1), tracestate=SECRET, **PARENT)
        last = await spans_of(receiver, CALLER_TRACE, 4)
        assert last
        key = door.keys["premium"]
        await eventually(lambda: len(receiver.lines()) >= 8, "log lines")
    spans = receiver.spans()
    known = {*say.SPANS, "POST /v1/chat/completions", "POST /v1/completions"}
    known |= {"POST /v1/embeddings", "chat talker", "text_completion talker", "embeddings talker"}
    assert {span.name for span in spans} <= known
    for span in spans:
        assert set(plain(span.attributes)) <= set(say.ATTRIBUTES)
        for event in span.events:
            assert event.name in say.EVENTS
            assert set(plain(event.attributes)) <= set(say.ATTRIBUTES)
    raw = everything(receiver)
    for secret in (*SECRET.split(), "abcdefghijkl", key, key[-20:]):
        at = raw.find(secret.encode())
        assert at < 0, raw[max(at - 200, 0) : at + 100]


async def test_ends_of_every_kind_are_told(tmp_path: Path, receiver: Receiver) -> None:
    """Refused, not understood, unknown, left: each has the spans that it came to."""
    async with open_door(tmp_path, settings=pushing(receiver, max_queue=1)) as door:
        unknown = await door.http.post(CHAT, json=chat_body())
        (server,) = await spans_of(receiver, traced(unknown), 1)
        assert plain(server.attributes)[names.ERROR_TYPE] == "401"
        assert server.status.code != ERROR  # a client's fault is none of ours

        door.close_gate()
        first = asyncio.create_task(door.post(CHAT, chat_body("Hi", max_tokens=2)))
        await eventually(lambda: door.services.admission.waiting == 1, "one waits")
        refused = await door.post(CHAT, chat_body("Hi", max_tokens=2))
        assert refused.status_code == 503
        spans = by_name(await spans_of(receiver, traced(refused), 2))
        assert set(spans) == {"POST /v1/chat/completions", say.ADMIT}
        assert spans["POST /v1/chat/completions"].status.code == ERROR
        assert plain(spans[say.ADMIT].attributes)[say.REASON] == "saturated"
        assert plain(spans[say.ADMIT].attributes)[say.RETRY_AFTER_MS] > 0
        door.open_gate()
        served = await first
        assert len(await spans_of(receiver, traced(served), 6)) == 6

        async with door.http.stream(
            "POST", CHAT, json=chat_body("Hi", stream=True, temperature=1, max_tokens=400),
            headers=door.auth(),
        ) as stream:  # fmt: skip
            left = traced(stream)
            assert stream.status_code == 200
            await anext(stream.aiter_bytes())
        spans = by_name(await spans_of(receiver, left, 4))
        seen = plain(spans["POST /v1/chat/completions"].attributes)
        assert seen[names.OUTCOME] == seen[names.ERROR_TYPE] == "client_disconnected"
        assert spans["POST /v1/chat/completions"].status.code != ERROR


async def test_what_took_its_memory_is_on_the_span(tmp_path: Path, receiver: Receiver) -> None:
    """Two answers that do not fit together: the one that gave way says so, as the engine does."""
    options = {"step_s": 0, "num_blocks": 22}
    engine = {"policy": "sarathi", "prefix_caching": False}
    async with open_door(
        tmp_path, settings=pushing(receiver), engine=engine, options=options
    ) as door:
        body = chat_body("Hi", temperature=1, max_tokens=300)
        answers = await asyncio.gather(door.post(CHAT, body), door.post(CHAT, body))
        events = []
        for answer in answers:
            model = by_name(await spans_of(receiver, traced(answer), 6))["chat talker"]
            told = [event for event in model.events if event.name == say.PREEMPTED]
            assert plain(model.attributes)[say.PREEMPTIONS] == len(told)
            events += told
        assert events
        assert {plain(event.attributes)[say.REASON] for event in events} <= {"growth", "newcomer"}


async def test_a_parked_request_shows_where_it_was(tmp_path: Path, receiver: Receiver) -> None:
    """The time on the host is a span of its own inside the model's, as long as the engine says."""
    options = {"step_s": 0, "num_blocks": 22, "host_blocks": 100, "elapsed_ns": 20_000_000}
    engine = {
        "policy": "fastserve",
        "policy_options": (("starvation_s", 1e6),),
        "prefix_caching": False,
    }
    async with open_door(
        tmp_path, settings=pushing(receiver), engine=engine, options=options
    ) as door:
        body = chat_body("Hi", temperature=1, max_tokens=250)
        answers = await asyncio.gather(*(door.post(CHAT, body) for _ in range(3)))
        stays = 0
        for answer in answers:
            spans = await spans_of(receiver, traced(answer), 6)
            model = by_name(spans)["chat talker"]
            parked = [span for span in spans if span.name == say.PARKED]
            assert plain(model.attributes)[say.PARKS] == len(parked)
            stays += len(parked)
            for span in parked:
                assert span.parent_span_id == model.span_id
                assert model.start_time_unix_nano <= span.start_time_unix_nano
                assert span.start_time_unix_nano < span.end_time_unix_nano
                assert span.end_time_unix_nano <= model.end_time_unix_nano
        assert stays


async def test_who_is_not_sampled_pays_nothing_and_is_told_nothing(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """No span, no header, no exemplar; its line still names the trace that its caller has."""
    caplog.set_level(logging.INFO)
    async with open_door(tmp_path, settings=pushing(receiver, trace_sample=0.0)) as door:
        plain_answer = await door.post(CHAT, chat_body(max_tokens=1))
        declined = {"traceparent": PARENT["traceparent"][:-1] + "0"}
        followed = await door.post(CHAT, chat_body(max_tokens=1), **declined)
        assert "traceresponse" not in {*plain_answer.headers, *followed.headers}
        forced = await door.post(CHAT, chat_body(max_tokens=1), traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")  # fmt: skip  # noqa: E501
        assert {one.trace_id.hex() for one in await spans_of(receiver, traced(forced), 6)} == {
            "1" * 32
        }
    assert {span.trace_id.hex() for span in receiver.spans()} == {"1" * 32}
    lines = [r for r in caplog.records if r.name == "gateway.access"]
    ids = [getattr(line, FIELDS).get("trace_id") for line in lines]
    assert CALLER_TRACE in ids


async def test_without_an_endpoint_nothing_is_traced_but_a_callers_id_is_logged(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Off is off: no thread, no ids of our own."""
    caplog.set_level(logging.INFO)
    assert door.services.push.counts == {}
    answer = await door.post(CHAT, chat_body(max_tokens=1), **PARENT)
    bare = await door.post(CHAT, chat_body(max_tokens=1))
    assert "traceresponse" not in {*answer.headers, *bare.headers}
    lines = [r for r in caplog.records if r.name == "gateway.access"]
    assert [getattr(line, FIELDS).get("trace_id") for line in lines] == [CALLER_TRACE, None]


async def test_a_gateway_ends_while_its_collector_hangs(tmp_path: Path, receiver: Receiver) -> None:
    """The lifespan's end is bounded, and the event loop is free meanwhile."""
    loop = asyncio.get_running_loop()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    receiver.behaviour.hangs = True
    async with open_door(tmp_path, settings=pushing(receiver)) as door:
        await door.post(CHAT, chat_body(max_tokens=1))
        await eventually(lambda: receiver.num_tries > 0, "a try hangs")
        ticking = asyncio.create_task(tick())
        began = loop.time()
    ticking.cancel()
    # Three seconds for telemetry; what is shown is that no try's time limit (10 s each) is waited.
    assert loop.time() - began < 25
    assert ticks > 20
