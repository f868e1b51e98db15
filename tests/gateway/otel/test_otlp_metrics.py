"""Metrics as they are pushed: the same as are scraped, with examples, and bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from door_kit import CHAT, Door, chat_body, eventually, open_door
from otlp_receiver import Receiver, plain
from prometheus_client.parser import text_string_to_metric_families

from gateway import metric_names as names
from gateway.instruments import Example, Histogram, Instruments, Tally
from gateway.prometheus_text import PrometheusText, prometheus_name

PARENT = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    with Receiver() as running:
        yield running


def pushing(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"otlp_endpoint": receiver.url, "otlp_interval_s": 0.1, "trace_sample": 1.0, **more}


def scraped(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of a scrape."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def pushed(receiver: Receiver) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every point as last pushed, under the names that a scrape has."""
    found = {}
    for metric in receiver.latest().values():
        name = prometheus_name(metric.name)
        for point in getattr(metric, metric.WhichOneof("data")).data_points:
            labels = {k.replace(".", "_"): str(v) for k, v in plain(point.attributes).items()}
            if metric.HasField("histogram"):
                found[f"{name}_sum", frozenset(labels.items())] = point.sum
                found[f"{name}_count", frozenset(labels.items())] = point.count
                total, borders = 0, [*map(str, point.explicit_bounds), "+Inf"]
                for border, count in zip(borders, point.bucket_counts, strict=True):
                    total += count
                    key = frozenset([*labels.items(), ("le", border)])
                    found[f"{name}_bucket", key] = total
                continue
            value = getattr(point, point.WhichOneof("value"))
            ending = "_total" if metric.HasField("sum") else ""
            found[name + ending, frozenset(labels.items())] = value
    return found


async def latest_is_settled(door: Door, receiver: Receiver) -> None:
    """Wait until a push was made after everything was over."""
    await door.idle()
    count = len(receiver.messages["/v1/metrics"])
    await eventually(lambda: len(receiver.messages["/v1/metrics"]) > count + 1, "two more pushes")


async def test_what_is_pushed_is_what_is_scraped(tmp_path: Path, receiver: Receiver) -> None:
    """After real traffic every series has the same value both ways; only vLLM's names differ."""
    async with open_door(tmp_path, settings=pushing(receiver)) as door:
        for number in range(6):
            stream = number % 2 == 0
            await door.post(CHAT, chat_body("Hi", stream=stream, max_tokens=3), tier="free")
        await door.post(CHAT, chat_body("Hi", max_tokens=-1))
        await door.http.post(CHAT, json=chat_body())
        await latest_is_settled(door, receiver)
        moving = {prometheus_name(names.TELEMETRY_ITEMS) + "_total"}
        here: dict[Any, float] = {}

        async def is_the_same() -> bool:
            here.clear()
            here.update(scraped((await door.http.get("/metrics")).text))
            sides = [here, pushed(receiver)]
            pulled, told = (
                {k: v for k, v in side.items() if k[0] not in moving and k[0][:5] != "vllm:"}
                for side in sides
            )
            return pulled == told

        await eventually(is_the_same, "a push and a scrape say the same")
        requests = receiver.latest()[names.REQUESTS]
        assert sum(p.as_int for p in requests.sum.data_points) == 8
        vllm = {key[0] for key in here if key[0].startswith("vllm:")}
        assert vllm == {
            names.VLLM_WAITING, names.VLLM_RUNNING, names.VLLM_KV_USE, names.VLLM_CACHE,
        }  # fmt: skip


async def test_an_example_leads_to_the_trace(tmp_path: Path, receiver: Receiver) -> None:
    """The first token's histogram has an exemplar with the id of the very request."""
    async with open_door(tmp_path, settings=pushing(receiver, trace_sample=0.0)) as door:
        await door.post(CHAT, chat_body("Hi", max_tokens=3))
        answer = await door.post(CHAT, chat_body("Hi", max_tokens=3), **PARENT)
        usage = await door.usage_of(answer.json()["id"])
        await eventually(
            lambda: any(
                metric.name == names.SERVER_TTFT and point.exemplars
                for metric in receiver.metrics()
                for point in metric.histogram.data_points
            ),
            "an exemplar",
        )
        found = [
            (metric.name, example)
            for metric in receiver.metrics()
            for point in metric.histogram.data_points
            for example in point.exemplars
        ]
        assert {name for name, _ in found} == {
            names.SERVER_TTFT, names.SERVER_TPOT, names.SERVER_DURATION,
        }  # fmt: skip
        assert len(found) == 3, "one each, pushed once, and none of the request that is not traced"
        (ttft,) = [example for name, example in found if name == names.SERVER_TTFT]
        assert (
            f"00-{ttft.trace_id.hex()}-{ttft.span_id.hex()}-01" == answer.headers["traceresponse"]
        )
        assert ttft.trace_id.hex() in PARENT["traceparent"]
        assert abs(ttft.as_double * 1000 - usage[0].ttft_ms) < 0.1
        span = next(s for s in await server_spans(receiver) if s.trace_id == ttft.trace_id)
        assert span.start_time_unix_nano < ttft.time_unix_nano < span.end_time_unix_nano


async def server_spans(receiver: Receiver) -> list[Any]:
    await eventually(receiver.spans, "spans")
    return [span for span in receiver.spans() if span.kind == 2]


async def test_every_promise_is_a_border(tmp_path: Path, receiver: Receiver) -> None:
    """A share on time can be read off a bucket: tiers' targets are borders of what they bound."""
    async with open_door(tmp_path, settings=pushing(receiver)) as door:
        await door.post(CHAT, chat_body("Hi", stream=True, max_tokens=4))
        await latest_is_settled(door, receiver)
        latest = receiver.latest()
        for tier in door.services.tiers.current:
            for name, target_ms in (
                (names.SERVER_TTFT, tier.ttft_ms),
                (names.QUEUE_DURATION, tier.ttft_ms),
                (names.GAP, tier.tbt_ms),
            ):
                (point, *_) = latest[name].histogram.data_points
                assert target_ms / 1000 in point.explicit_bounds
        thresholds = latest[names.SLO_THRESHOLD].gauge.data_points
        assert len(thresholds) == 2 * len(door.services.tiers.current)


def test_a_full_counter_folds_the_rest_into_one_series_and_says_so() -> None:
    """Totals stay right, memory stays bounded, and an operator can see it."""
    made = Instruments()
    tally = made.tally(names.SLO_REQUESTS, names.TENANT)
    tally.series.most = 3
    made.observe(names.TELEMETRY_OVERFLOWS, made.overflows, is_counter=True)
    for number in range(10):
        for _ in range(2):
            tally.add(1, f"tenant {number}")
    readings = {tuple(attributes.items()): n for n, attributes in tally.read()}
    assert len(readings) == 4
    assert readings[((names.OVERFLOW, True),)] == 14
    assert sum(readings.values()) == 20
    text = PrometheusText(made).render().decode()
    assert 'tiergate_slo_requests_total{otel_metric_overflow="true"} 14.0' in text
    assert (
        'tiergate_telemetry_overflows_total{tiergate_metric="tiergate.slo.requests"} 14.0' in text
    )


def test_a_full_histogram_likewise() -> None:
    histogram = Histogram((1.0, 2.0), names.MODEL, most=2)
    for number in range(5):
        histogram.record(1.5, f"model {number}")
        histogram.exemplify(Example(1.5, 1, "aa" * 16, "bb" * 8), f"model {number}")
    readings = histogram.read(takes_examples=True)
    assert [reading.count for reading in readings] == [1, 1, 3]
    assert readings[-1].attributes == {names.OVERFLOW: True}
    assert [len(reading.examples) for reading in readings] == [1, 1, 0]


def test_a_value_on_a_border_is_below_it_and_sums_are_exact() -> None:
    """As Prometheus and OTLP define their buckets: upper borders belong to them."""
    histogram = Histogram((0.1, 0.2), names.TIER)
    for value in (0.1, 0.1000001, 0.2, 0.3, 0.0):
        histogram.record(value, "premium")
    histogram.record_many(0.05, ("premium",), 4)
    (reading,) = histogram.read()
    assert reading.counts == (7, 2, 1)
    assert reading.count == 10
    assert abs(reading.total - 0.7500001) < 1e-9


def test_a_tally_costs_no_more_series_than_values() -> None:
    tally = Tally(names.TIER)
    tally.add(0, "premium")
    tally.add(2, "premium")
    assert tally.read() == [(2, {names.TIER: "premium"})]
