"""One gateway, pushed to VictoriaMetrics and scraped by Prometheus: both tell what happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from backends import Backend, prometheus, victoria
from door_kit import CHAT, chat_body, eventually, open_door
from otlp_receiver import Receiver, plain

from gateway import metric_names as names
from gateway.prometheus_text import prometheus_name

SENT = {"premium": 7, "free": 4}
REQUESTS = "tiergate_requests_total"


async def told(backend: Backend, expression: str) -> list[tuple[dict[str, str], float]]:
    return await asyncio.to_thread(backend.query, expression)


async def test_pushed_and_scraped_backends_agree_with_what_was_sent(tmp_path: Path) -> None:
    """Counts, sums of tokens, buckets and gauges, for all tiers, through both wires."""
    for name in ("vm", "prom", "door"):
        (tmp_path / name).mkdir()
    with victoria(tmp_path / "vm") as pushed:
        settings = {
            "otlp_endpoint": f"{pushed.url}/opentelemetry",
            "otlp_signals": "metrics",
            "otlp_interval_s": 0.2,
            "otlp_resource": "deployment.environment.name=test,service.instance.id=door-1",
        }
        async with open_door(tmp_path / "door", settings=settings) as door:
            with prometheus(tmp_path / "prom", door.url.removeprefix("http://")) as pulled:
                for tier, count in SENT.items():
                    for number in range(count):
                        body = chat_body("Hi", stream=number % 2 == 0, max_tokens=3)
                        assert (await door.post(CHAT, body, tier=tier)).status_code == 200
                await door.post(CHAT, chat_body("Hi", max_tokens=-1))
                await door.idle()
                rows = await door.usage(sum(SENT.values()))

                async def everything_is_there() -> bool:
                    sums = [
                        sum(
                            value for _, value in await told(one, f"last_over_time({REQUESTS}[1m])")
                        )
                        for one in (pushed, pulled)
                    ]
                    return sums == [sum(SENT.values()) + 1] * 2

                await eventually(everything_is_there, "both know of all requests")
                for one in (pushed, pulled):
                    await compare(one, rows)
                up = await told(pulled, "up")
                assert [value for _, value in up] == [1.0]
                # The same series, whichever way they came: nothing is in one place only.
                series = [await series_of(one) for one in (pushed, pulled)]
                only_scraped = {name for name in series[1] if name.startswith(("vllm:", "scrape_"))}
                assert series[0] - {"target_info"} == series[1] - only_scraped - {"up"}
                assert f"{prometheus_name(names.SERVER_TTFT)}_bucket" in series[0]
                (instance,) = {
                    metric["service.instance.id"] if "service.instance.id" in metric
                    else metric.get("service_instance_id", metric.get("instance", ""))
                    for metric, _ in await told(pushed, f"last_over_time({REQUESTS}[1m])")
                }  # fmt: skip
                assert instance == "door-1"


async def compare(backend: Backend, rows: list[Any]) -> None:
    """Hold a backend's answers against what was sent, and against the ledger."""

    async def value(expression: str) -> float:
        found = await told(backend, expression)
        assert len(found) == 1, (expression, found)
        return found[0][1]

    for tier, count in SENT.items():
        ok = f'{REQUESTS}{{tiergate_tier="{tier}",tiergate_outcome="ok"}}'
        assert await value(f"sum({ok})") == count
        ttft = prometheus_name(names.SERVER_TTFT)
        inside = f'{{tiergate_tier="{tier}"}}'
        assert await value(f"sum({ttft}_count{inside})") == count
        target = await value(
            f'{prometheus_name(names.SLO_THRESHOLD)}{{tiergate_tier="{tier}",'
            'tiergate_slo_objective="ttft"}'
        )
        # Both are the same number, and each backend writes it in its own way.
        on_time = f'{{tiergate_tier="{tier}",le=~"{target:g}|{target}"}}'
        met = sum(row.ttft_ms <= target * 1000 for row in rows if row.tier_served == tier)
        assert await value(f"sum({ttft}_bucket{on_time})") == met
        tokens = f'{prometheus_name(names.TOKENS)}_total{{tiergate_tier="{tier}",'
        output = sum(row.output_tokens for row in rows if row.tier_served == tier)
        assert await value(f'sum({tokens}gen_ai_token_type="output"}})') == output
        all_slo = f'{{tiergate_tier="{tier}",tiergate_slo_objective="all"}}'
        name = prometheus_name(names.TIER_SLO_REQUESTS)
        assert await value(f"sum({name}_total{all_slo})") == count


async def series_of(backend: Backend) -> set[str]:
    answer = await asyncio.to_thread(httpx.get, f"{backend.url}/api/v1/label/__name__/values")
    return set(answer.json()["data"])


async def test_metrics_traces_and_logs_of_one_request_belong_together(tmp_path: Path) -> None:
    """One trace id leads from a bucket's example to the spans and to the log line."""
    with Receiver() as receiver:
        settings = {
            "otlp_endpoint": receiver.url,
            "otlp_signals": "metrics,traces,logs",
            "otlp_interval_s": 0.2,
            "trace_sample": 1.0,
            "log_level": "info",
        }
        async with open_door(tmp_path, settings=settings) as door:
            answer = await door.post(CHAT, chat_body("Hi", max_tokens=3))
            trace_id = answer.headers["traceresponse"].split("-")[1]

            def all_there() -> bool:
                examples = {
                    example.trace_id.hex()
                    for metric in receiver.metrics()
                    for point in metric.histogram.data_points
                    for example in point.exemplars
                }
                spans = [s for s in receiver.spans() if s.trace_id.hex() == trace_id]
                return trace_id in examples and len(spans) == 6

            await eventually(all_there, "an example and the spans")
        resources = [receiver.resources(path)[0] for path in ("/v1/metrics", "/v1/traces")]
        assert resources[0] == resources[1]
        (server,) = [s for s in receiver.spans() if s.kind == 2]
        assert plain(server.attributes)["tiergate.request.id"] == answer.headers["x-request-id"]
