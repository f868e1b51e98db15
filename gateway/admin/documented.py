"""Says in /openapi.json what admin routes take that read bodies and queries by themselves."""

from __future__ import annotations

from typing import Any

from gateway.schemas import InputModel, inlined_schema

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be taken."},
    401: {"description": "The admin token or a login is needed."},
    403: {"description": "The caller's role may not do this, or the login is too old."},
    404: {"description": "There is nothing of that name, or not for this caller."},
    408: {"description": "The body did not arrive in time."},
    409: {"description": "There is one of that name already."},
    412: {"description": "It was changed meanwhile."},
    413: {"description": "The body is too large."},
    428: {"description": "If-Match is needed."},
    429: {"description": "Too many attempts, or too many exports."},
    503: {"description": "The database does not answer."},
}


def documented(body: type[InputModel] | None = None, *query: str) -> dict[str, Any]:
    """Return the `openapi_extra` of a route with this body and these parameters of a query."""
    extra: dict[str, Any] = {}
    if body is not None:
        content = {"application/json": {"schema": inlined_schema(body)}}
        extra["requestBody"] = {"required": True, "content": content}
    if query:
        extra["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
            for name in query
        ]
    return extra
