"""Several workers push beside each other: an instance each, and the engine's part once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from door_kit import eventually
from otlp_receiver import Receiver, plain
from redis_kit import RedisServer
from workers_kit import open_house

from gateway import metric_names as names

REQUESTS = 24


async def test_workers_are_instances_whose_counts_add_up(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Sums over instances are the truth, for what each counts and for the engine's own numbers."""
    with Receiver() as receiver:
        more = {
            "otlp_endpoint": receiver.url,
            "otlp_interval_s": 0.2,
            "otlp_headers": "x-token=secret",
            "trace_sample": 1.0,
        }
        async with open_house(tmp_path, redis_server.url, workers=2, settings=more) as house:
            answers = await asyncio.gather(*(house.post() for _ in range(REQUESTS)))
            assert {answer.status_code for answer in answers} == {200}

            def latest() -> dict[str, dict[str, float]]:
                """Return the sum of each metric by instance, as last told."""
                found: dict[str, dict[str, float]] = {}
                for message in receiver.messages["/v1/metrics"]:
                    for of in message.resource_metrics:
                        instance = plain(of.resource.attributes)["service.instance.id"]
                        for scope in of.scope_metrics:
                            for metric in scope.metrics:
                                if metric.HasField("sum"):
                                    total = sum(p.as_int for p in metric.sum.data_points)
                                    found.setdefault(metric.name, {})[instance] = total
                return found

            await eventually(
                lambda: sum(latest().get(names.REQUESTS, {}).values()) == REQUESTS, "all requests"
            )
            told = latest()
            assert len(told[names.REQUESTS]) == 2
            assert len(told[names.COMPUTED_TOKENS]) == 1, "read off the one engine, pushed once"
            await eventually(
                lambda: len([s for s in receiver.spans() if s.kind == 2]) == REQUESTS, "all spans"
            )
        ids = {answer.headers["traceresponse"].split("-")[1] for answer in answers}
        assert {span.trace_id.hex() for span in receiver.spans()} == ids
        senders = {one["service.instance.id"] for one in receiver.resources("/v1/traces")}
        assert senders <= set(told[names.REQUESTS])
        numbers = {one["tiergate.worker"] for one in receiver.resources("/v1/metrics")}
        assert numbers == {"0", "1"}
        assert {one.get("x-token") for one in receiver.headers} == {"secret"}
