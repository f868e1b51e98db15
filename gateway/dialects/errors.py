"""Which dialect a path's errors are told in, and the Anthropic form of each; one table beneath.

What went wrong is an `ApiError` and its `Problem` (gateway/errors.py) on every route. The Anthropic
API names the same things by fewer words, has no codes, and a status of its own for overload: see
https://platform.claude.com/docs/en/api/errors. The reason header and the retry headers are those of
the table.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from gateway.errors import ApiError, ProblemSpec

ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_REQUEST_ID = "request-id"
OVERLOADED = 529
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def is_anthropic(path: str) -> bool:
    """True for the routes that speak the Anthropic API."""
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def anthropic_type(spec: ProblemSpec) -> str:
    """Return the Anthropic API's word for a problem."""
    return spec.type if spec.type == "overloaded_error" else _TYPES.get(spec.status, "api_error")


def anthropic_status(spec: ProblemSpec) -> int:
    """Return the status of a problem on an Anthropic route."""
    return OVERLOADED if spec.type == "overloaded_error" else spec.status


def anthropic_body(error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """Return the JSON object told to the caller, in a response or in an event of a stream."""
    told = {"type": anthropic_type(error.spec), "message": error.message}
    body: dict[str, Any] = {"type": "error", "error": told}
    return body if request_id is None else {**body, "request_id": request_id}


def error_response(error: ApiError, path: str, request_id: str) -> Response:
    """Return the error as a response of the route at `path`, which may not exist."""
    plain = error.response()
    if not is_anthropic(path):
        return plain
    kept = {k: v for k, v in plain.headers.items() if k not in ("content-length", "content-type")}
    return Response(
        orjson.dumps(anthropic_body(error, request_id)),
        anthropic_status(error.spec),
        kept,
        media_type="application/json",
    )
