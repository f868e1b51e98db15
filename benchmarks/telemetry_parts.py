"""What each part of telemetry takes of a processor, per request; the least of many repetitions.

The least is what it costs without neighbours, and can be had beside them. `loop_us` is spent on the
event loop, `thread_us` in the SDK's threads. Used by telemetry_cost; by hand:
python -m benchmarks.telemetry_parts
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from engine.core.clock import MonotonicClock, utc_now
from engine.core.request import FinishReason, Slo
from engine.core.stats import RequestStats
from gateway.logging import FIELDS
from gateway.otel.drawing import Ended, Pen, draw
from gateway.otel.exporters import RequestSpan, Sender, line_record
from gateway.otel.log_lines import Line, PushHandler, log_record
from gateway.otel.sampler import Sampler
from gateway.otel.trace_context import CURRENT, Trace
from gateway.otel.tracing import Tracing
from gateway.request_records import DoorRecord
from gateway.stopwatch import Stopwatch
from gateway.telemetry import AnswerRecord, Telemetry
from gateway.wishes import NO_WISHES
from tenants.slo import Verdict

CLOCK = MonotonicClock()
BATCH = 128
SCOPE = InstrumentationScope("tiergate", "0")
RESOURCE = Sender(Resource.create({"service.name": "tiergate"}))
SECOND = 10**9


def least_us(work: Callable[[], object], times: int, repeats: int = 40) -> float:
    """Return the least time of one of `times` calls, over `repeats`."""
    best = float("inf")
    for _ in range(repeats):
        began_ns = CLOCK.now_ns()
        for _ in range(times):
            work()
        best = min(best, (CLOCK.now_ns() - began_ns) / times / 1000)
    return round(best, 1)


def ended_request(trace: Trace) -> Ended:
    """A streamed answer of one choice, as the door and the engine note it."""
    slo = Slo(ttft_ns=SECOND, tbt_ns=SECOND // 10)
    name = "chatcmpl-" + "a" * 32
    plan: Any = SimpleNamespace(
        heading=SimpleNamespace(id=name, model="builtin", service_tier="priority"),
        shape=SimpleNamespace(operation="chat"),
        principal=SimpleNamespace(tenant=SimpleNamespace(id="b" * 32), key_id="c" * 32),
        arrival=utc_now(), arrival_ns=SECOND, stream=True, slo=slo, wishes=NO_WISHES,
        sampling=SimpleNamespace(max_tokens=64), is_paced=False, num_choices=1,
        tier=SimpleNamespace(name="premium", version=1),
        prompt_of=lambda _: range(30), engine_id=lambda _: name, estimate_of=lambda _: None,
    )  # fmt: skip
    door = DoorRecord(plan, "req_" + "d" * 24)
    watch = Stopwatch(SECOND, 30, slo)
    watch.tokens(1, 2 * SECOND)
    door.admitted_ns, door.ended_ns, door.outcome = SECOND + 10**6, 4 * SECOND, "ok"
    door.forecast = {"ttft_ns": 1e9, "high_ns": 2e9, "on_time": 0.9}
    choice = door.choices[0]
    choice.stopwatch, choice.finish_reason = watch, "length"
    choice.stats = RequestStats(
        name, "b", "premium", FinishReason.LENGTH, SECOND, 3 * SECOND, SECOND + 2 * 10**6,
        2 * SECOND, 3 * SECOND, 30, 0, 64, 0,
    )  # fmt: skip
    return Ended(
        trace, "POST", "/v1/chat/completions", "http", "1.1", 200, SECOND, 4 * SECOND,
        door.request_id, access_fields(), door,
    )  # fmt: skip


def access_fields() -> dict[str, Any]:
    return {
        "method": "POST", "route": "/v1/chat/completions", "status": 200, "ms": 812.3,
        "request_id": "req_" + "d" * 24, "tenant": "b" * 32, "key": "c" * 32,
        "id": "chatcmpl-" + "a" * 32, "operation": "chat", "tier": "premium", "stream": True,
        "prompt_tokens": 30, "outcome": "ok", "output_tokens": 64, "ttft_ms": 31.2,
        "worst_gap_ms": 12.0,
    }  # fmt: skip


def parts() -> dict[str, dict[str, float]]:
    """Return every part's cost."""
    tracing = Tracing(CLOCK, Sampler(1.0, 10.0, CLOCK))
    unsampled = Tracing(CLOCK, Sampler(0.0, 10.0, CLOCK))
    headers = [(b"host", b"x"), (b"content-type", b"application/json")] * 3
    trace = tracing.begin(headers, CLOCK.now_ns())
    assert trace is not None
    ended = ended_request(trace)

    def spans() -> Sequence[ReadableSpan]:
        return list(draw(Pen(ended, 0, RESOURCE, SCOPE), ended))

    drawn = [span for _ in range(BATCH) for span in spans()]
    encode_us = least_us(lambda: encode_spans(drawn).SerializeToString(), 1) / BATCH
    lines: list[Line] = []
    handler = PushHandler(lines.append)
    record = logging.LogRecord("gateway.access", logging.INFO, "", 0, "request", (), None)
    setattr(record, FIELDS, access_fields())

    def take_line() -> None:
        handler.emit(record)
        ReadWriteLogRecord(line_record(lines.pop()), RESOURCE, SCOPE)

    handler.emit(record)
    line = lines.pop()

    def encode_lines() -> None:
        made = [ReadableLogRecord(log_record(line), RESOURCE, SCOPE) for _ in range(BATCH)]
        encode_logs(made).SerializeToString()

    return {
        "metrics": {"loop_us": measured_us(None)},
        "exemplars": {"loop_us": round(measured_us(trace) - measured_us(None), 1)},
        "trace, not sampled": {"loop_us": least_us(lambda: unsampled.begin(headers, 0), 500)},
        "trace, sampled": {
            "loop_us": round(
                least_us(lambda: tracing.begin(headers, 0), 500)
                + least_us(lambda: RequestSpan(ended, RESOURCE), 500),
                1,
            ),
            "thread_us": round(least_us(spans, 100) + encode_us, 1),
        },
        "access line": {
            "loop_us": least_us(take_line, 200),
            "thread_us": round(least_us(encode_lines, 1) / BATCH, 1),
        },
    }


def measured_us(trace: Trace | None) -> float:
    """Return what counting one answer takes: metrics are kept whether or not they are pushed."""
    telemetry = Telemetry([])
    answer = AnswerRecord(
        "chat", "builtin", "premium", "b" * 32, "ok", SECOND, SECOND // 10, 63, 1,
        Verdict(True, True, True, True), 30, 64,
    )  # fmt: skip
    token = CURRENT.set(trace)
    taken = least_us(lambda: telemetry.answered(answer), 500)
    CURRENT.reset(token)
    return taken


if __name__ == "__main__":
    print(json.dumps(parts(), indent=2))
