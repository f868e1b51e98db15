"""What /openapi.json says of the clients' routes: bodies, answers, errors; it checks nothing.

Bodies are read and answers written by hand, so the framework knows of neither. A fuzzer holds the
routes to what is said here (benchmarks/http_fuzz.py).
"""

from __future__ import annotations

from typing import Any

from gateway.dialects.errors import OVERLOADED
from gateway.schemas import InputModel, inlined_schema

TEXT = {"type": "string"}
NULLABLE = {"type": ["string", "null"]}
COUNT = {"type": "integer", "minimum": 0}
ITEMS = {"type": "array", "items": {"type": "object"}}
OPENAI_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {"message": TEXT, "type": TEXT, "param": NULLABLE, "code": NULLABLE},
        }
    },
}
ANTHROPIC_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "error"},
        "request_id": TEXT,
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "additionalProperties": False,
            "properties": {"type": TEXT, "message": TEXT},
        },
    },
}
STATUSES = {
    400: "a field is missing, or has a value that cannot be taken",
    401: "no valid API key",
    403: "the key may not do this",
    404: "no such model, or no such path",
    408: "the body did not arrive in time",
    413: "the body is too long",
    429: "a limit or a budget is reached",
    500: "a fault of the server's",
    503: "no engine, or no capacity",
    504: "the answer took longer than any may",
}


def answer_of(kind: str, *required: str, **fields: Any) -> dict[str, Any]:
    """Return the schema of an answer: an object of that kind with these fields, and others."""
    return {
        "type": "object",
        "required": [*fields, *required],
        "properties": fields,
        "title": kind,
    }


CHAT = answer_of(
    "chat.completion",
    "usage",
    id=TEXT,
    object={"const": "chat.completion"},
    created=COUNT,
    model=TEXT,
    service_tier=TEXT,
    choices=ITEMS,
)
COMPLETION = answer_of(
    "text_completion",
    "usage",
    id=TEXT,
    object={"const": "text_completion"},
    created=COUNT,
    model=TEXT,
    service_tier=TEXT,
    choices=ITEMS,
)
MESSAGE = answer_of(
    "message",
    "usage",
    "stop_sequence",
    id=TEXT,
    type={"const": "message"},
    role={"const": "assistant"},
    model=TEXT,
    content=ITEMS,
    stop_reason=TEXT,
)
TOKEN_COUNT = answer_of("token count", input_tokens=COUNT)
RESPONSE = answer_of(
    "response",
    "usage",
    id=TEXT,
    object={"const": "response"},
    created_at=COUNT,
    model=TEXT,
    status={"enum": ["completed", "incomplete"]},
    output=ITEMS,
    service_tier=TEXT,
)
EMBEDDINGS = answer_of(
    "embeddings",
    "usage",
    object={"const": "list"},
    data=ITEMS,
    model=TEXT,
    service_tier=TEXT,
)
MODEL = answer_of(
    "model", id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT, max_model_len=COUNT
)
MODELS = answer_of("list", object={"const": "list"}, data={"type": "array", "items": MODEL})


def documented(
    answer: dict[str, Any],
    body: type[InputModel] | None = None,
    *,
    streams: bool = False,
    anthropic: bool = False,
) -> dict[str, Any]:
    """Return what is said of one route, for `openapi_extra`."""
    good: dict[str, Any] = {"application/json": {"schema": answer}}
    if streams:
        good["text/event-stream"] = {"schema": TEXT}
    statuses = STATUSES | ({OVERLOADED: "no capacity"} if anthropic else {})
    shape = ANTHROPIC_ERROR if anthropic else OPENAI_ERROR
    failed = {"application/json": {"schema": shape}}
    told: dict[str, Any] = {
        "responses": {
            "200": {"description": "the answer", "content": good},
            **{str(s): {"description": d, "content": failed} for s, d in statuses.items()},
        }
    }
    if body is not None:
        content = {"application/json": {"schema": inlined_schema(body)}}
        told["requestBody"] = {"required": True, "content": content}
    return told
