"""The outermost layer of every request: its id, its arrival, its access line; it knows no route.

A client's own `x-request-id` is kept when it is short, plain and looks like no key, and echoed on
every response, also on errors; the Anthropic routes have it under their API's name too. A request
of the APIs gets its place in a trace here, and one that is traced is told so. The arrival
is the first byte of the request where our server stamped it (gateway/server.py), else the moment
this layer sees the request.
"""

from __future__ import annotations

import logging
import re
import secrets
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.core.clock import NS_PER_MS, Clock
from gateway.dialects.errors import ANTHROPIC_REQUEST_ID, is_anthropic
from gateway.logging import FIELDS
from gateway.otel.trace_context import CURRENT
from gateway.otel.tracing import Tracing
from gateway.streaming import EXTENSION

logger = logging.getLogger("gateway.access")

REQUEST_ID = "x-request-id"
TRACE_RESPONSE = "traceresponse"  # of the W3C's draft for answers; in the form of a traceparent
TRACED = "/v1/"  # paths that have traces
# Ids are logged and echoed: a key that was put there by mistake must not be.
_SANE_ID = re.compile(r"(?!.*tg[ka]_)[A-Za-z0-9._:-]{1,128}", re.IGNORECASE)


def request_id_of(headers: Headers) -> str:
    """Return the client's request id if it is sane, else a new one."""
    sent = headers.get(REQUEST_ID, "")
    return sent if _SANE_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"


class Edge:
    """ASGI middleware; puts into the request's state: `request_id`, `arrival_ns`, `send_body`.

    `send_body` is the server's own `send`: once the headers are out no layer has anything to do
    with a body, and six layers a token add up.
    """

    def __init__(self, app: ASGIApp, clock: Clock, tracing: Tracing | None = None) -> None:
        self._app = app
        self._clock = clock
        self._tracing = tracing or Tracing(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log one line about it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        now_ns = self._clock.now_ns()
        arrival_ns = scope.get("extensions", {}).get(EXTENSION, {}).get("arrival_ns", now_ns)
        request_id = request_id_of(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, arrival_ns=arrival_ns, log={}, send_body=send)
        trace = None
        if scope["path"].startswith(TRACED):
            trace = self._tracing.begin(scope["headers"], arrival_ns)
        token = CURRENT.set(trace)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if is_anthropic(scope["path"]):
                    headers[ANTHROPIC_REQUEST_ID] = request_id
                if trace is not None and trace.is_sampled:
                    headers[TRACE_RESPONSE] = trace.header
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if trace is not None:
                state["log"]["trace_id"] = trace.trace_id
            self._log(scope, state, status, arrival_ns)
            if trace is not None and trace.is_sampled:
                self._tracing.ended(trace, scope, status, arrival_ns)
            CURRENT.reset(token)

    def _log(self, scope: Scope, state: dict[str, Any], status: int, arrival_ns: int) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        duration_ms = (self._clock.now_ns() - arrival_ns) / NS_PER_MS
        fields = {
            "method": scope["method"],
            # A matched route's own pattern: a path may hold anything a stranger typed.
            "route": getattr(scope.get("route"), "path", None),
            "status": status,
            "ms": round(duration_ms, 1),
            "request_id": state["request_id"],
            **state["log"],
        }
        logger.info("request", extra={FIELDS: fields})
