"""An OTLP collector of a few lines: takes http/protobuf, keeps what came, misbehaves on request.

It knows nothing of Tiergate: messages are read with OpenTelemetry's own definitions.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

REQUESTS = {
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}
DEADLINE_S = 30.0


@dataclass
class Behaviour:
    """What the next answers are: `statuses` are used up one by one, then 200 follows."""

    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    hangs: bool = False
    rejects_spans: int = 0


class Receiver:
    """A running collector; leave it to end it."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.messages: dict[str, list[Any]] = {path: [] for path in REQUESTS}
        self.headers: list[dict[str, str]] = []
        self.num_tries = 0
        self._over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        self.num_tries += 1
        body = handler.rfile.read(int(handler.headers["content-length"]))
        if self.behaviour.hangs:
            self._over.wait()
            return
        if self.behaviour.statuses:
            handler.send_response(self.behaviour.statuses.pop(0))
            if self.behaviour.retry_after:
                handler.send_header("retry-after", self.behaviour.retry_after)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        if handler.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.messages[handler.path].append(REQUESTS[handler.path].FromString(body))
        answer = ExportTraceServiceResponse()
        if self.behaviour.rejects_spans:
            answer.partial_success.rejected_spans = self.behaviour.rejects_spans
        payload = answer.SerializeToString()
        handler.send_response(200)
        handler.send_header("content-type", "application/x-protobuf")
        handler.send_header("content-length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)

    def spans(self) -> list[Any]:
        return [
            span
            for message in self.messages["/v1/traces"]
            for of in message.resource_spans
            for scope in of.scope_spans
            for span in scope.spans
        ]

    def lines(self) -> list[Any]:
        return [
            line
            for message in self.messages["/v1/logs"]
            for of in message.resource_logs
            for scope in of.scope_logs
            for line in scope.log_records
        ]

    def metrics(self) -> Iterator[Any]:
        """Every metric of every message, in the order in which they came."""
        for message in self.messages["/v1/metrics"]:
            for of in message.resource_metrics:
                for scope in of.scope_metrics:
                    yield from scope.metrics

    def latest(self) -> dict[str, Any]:
        """Each metric as it was last told."""
        return {metric.name: metric for metric in self.metrics()}

    def resources(self, path: str) -> list[dict[str, Any]]:
        found = []
        for message in self.messages[path]:
            (field_name,) = [d.name for d in message.DESCRIPTOR.fields]
            found += [plain(one.resource.attributes) for one in getattr(message, field_name)]
        return found


def plain(attributes: Any) -> dict[str, Any]:
    """Return attributes as a plain dictionary."""
    return {one.key: value_of(one.value) for one in attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    return getattr(value, kind)


def wait_for(condition: Any, what: str) -> None:
    """Wait in a thread's way; fail with `what` if it never comes."""
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, f"never happened: {what}"
        time.sleep(0.005)
