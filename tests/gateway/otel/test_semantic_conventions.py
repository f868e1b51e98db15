"""Every name, unit, type and attribute on the wire, against the conventions' own files.

The facts are those of OpenTelemetry's semantic conventions v1.41.0 (semantic_conventions.json says
from which files). What they do not name must be `tiergate.*`, and be in our own tables.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body
from otlp_receiver import Receiver, plain

from gateway import metric_names as names
from gateway.otel import span_names as say

FACTS = json.loads((Path(__file__).parent / "semantic_conventions.json").read_text())
INSTRUMENT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")
UNIT = re.compile(r"|s|By|\{[a-z]+\}")  # UCUM, and annotations in braces; shares have none
PYTHON_TYPES = {"string": str, "int": int, "double": float, "boolean": bool, "enum": str}
# Unlike all others these have no series before something has gone wrong, or was learned.
SELDOM = {
    names.TELEMETRY_OVERFLOWS, names.STEP_FACTOR, names.STEP_ERROR, names.FORECAST_ERROR,
    names.FORECAST_COVERAGE, names.PREDICTOR_ERROR, names.CANCEL_DURATION,
    names.LENGTH_ERROR, names.LENGTH_COVERAGE, names.LENGTH_ORDER,
}  # fmt: skip


async def traffic(door: Door) -> None:
    """Something of everything that is measured."""
    for stream in (True, False):
        await door.post(CHAT, chat_body("Hi", stream=stream, n=2, max_tokens=3))
        await door.post(TEXT, text_body("Hi", stream=stream, max_tokens=3), tier="free")
    await door.post("/v1/embeddings", {"model": "talker", "input": "Hi"})
    await door.post(CHAT, chat_body("Hi", max_tokens=-1))
    await door.http.post(CHAT, json=chat_body())
    async with door.http.stream(
        "POST", CHAT, json=chat_body("Hi", stream=True, temperature=1, max_tokens=400),
        headers=door.auth(),
    ) as stream:  # fmt: skip
        assert stream.status_code == 200
        await anext(stream.aiter_bytes())
    await door.idle()


def points_of(metric: Any) -> list[Any]:
    return list(getattr(metric, metric.WhichOneof("data")).data_points)


async def test_every_metric_on_the_wire(tmp_path: Path) -> None:
    with Receiver() as receiver:
        settings = {"otlp_endpoint": receiver.url, "otlp_interval_s": 0.1, "trace_sample": 1.0}
        async with open_door(tmp_path, settings=settings) as door:
            await traffic(door)
            count = len(receiver.messages["/v1/metrics"])
            await eventually(
                lambda: len(receiver.messages["/v1/metrics"]) > count + 1, "two more pushes"
            )
        latest = receiver.latest()
    for name, metric in latest.items():
        assert INSTRUMENT_NAME.fullmatch(name), name
        assert UNIT.fullmatch(metric.unit), (name, metric.unit)
        assert metric.description == names.DESCRIPTIONS[name]
        if metric.HasField("sum"):
            assert metric.sum.is_monotonic, name
            assert metric.sum.aggregation_temporality == 2
        keys = [set(plain(point.attributes)) for point in points_of(metric)]
        if name.startswith("tiergate."):
            assert name not in FACTS["all_gen_ai_metrics"]
            known = {*FACTS["attributes"], names.OVERFLOW}
            assert all(k in known or k.startswith("tiergate.") for one in keys for k in one), name
            continue
        fact = FACTS["metrics"][name]  # everything else is the conventions'
        assert metric.HasField(fact["instrument"])
        assert metric.unit == fact["unit"]
        required = {k for k, level in fact["attributes"].items() if level == "required"}
        for one, point in zip(keys, points_of(metric), strict=True):
            assert required <= one, name
            assert {k for k in one if not k.startswith("tiergate.")} <= set(fact["attributes"])
            assert set(fact["boundaries"]) <= set(point.explicit_bounds), name
            values = plain(point.attributes)
            assert values[names.OPERATION] in FACTS["attributes"][names.OPERATION]["values"]
            assert values[names.MODEL] == "talker"
            if "error.type" in fact["attributes"]:
                assert values.get(names.ERROR_TYPE, "x")
    pulled_only = {name for name in names.DESCRIPTIONS if ":" in name}
    assert set(names.DESCRIPTIONS) - pulled_only - set(latest) <= SELDOM
    # Exactly the conventions' borders where nothing of ours is promised.
    for name in (names.SERVER_DURATION, names.TOKEN_USAGE):
        for point in points_of(latest[name]):
            assert list(point.explicit_bounds) == FACTS["metrics"][name]["boundaries"]


async def test_every_span_on_the_wire(tmp_path: Path) -> None:
    with Receiver() as receiver:
        settings = {"otlp_endpoint": receiver.url, "trace_sample": 1.0}
        async with open_door(tmp_path, settings=settings) as door:
            await traffic(door)
        spans = receiver.spans()
        (resource, *_) = receiver.resources("/v1/traces")
    assert {"service.name", "service.instance.id", "service.version"} <= set(resource)
    assert resource["service.name"] == "tiergate"
    servers = [span for span in spans if span.kind == 2]
    models = [span for span in spans if span.kind == 3]
    assert len(servers) == 8
    assert {span.name for span in models} == {
        "chat talker", "text_completion talker",
    }  # fmt: skip
    for span in spans:
        for key, value in plain(span.attributes).items():
            assert key in say.ATTRIBUTES, key
            if key.startswith("tiergate."):
                continue
            kind = FACTS["attributes"][key]["type"]
            if kind == "string[]":
                assert all(isinstance(one, str) for one in value)
            else:
                assert type(value) is PYTHON_TYPES[kind], (key, value)
    for span in servers:
        found = set(plain(span.attributes))
        assert set(FACTS["http_server_span"]["required"]) <= found
    for span in models:
        attributes = plain(span.attributes)
        kind = "embeddings" if attributes[names.OPERATION] == "embeddings" else "inference"
        fact = FACTS["spans"][f"gen_ai.{kind}"]["attributes"]
        assert {k for k, level in fact.items() if level == "required"} <= set(attributes)
        assert span.name == f"{attributes[names.OPERATION]} {attributes[names.MODEL]}"
        assert attributes[names.OPERATION] in FACTS["attributes"][names.OPERATION]["values"]
        # What the conventions let one record of contents only on request is never recorded.
        opt_in = {k for k, level in fact.items() if level == "opt_in"}
        assert not opt_in & set(attributes)
        if len(spans) and attributes.get(say.CHOICE_COUNT) is not None:
            assert attributes[say.CHOICE_COUNT] == 2
