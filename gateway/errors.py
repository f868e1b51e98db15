"""What can go wrong at the door, in one table and one JSON shape; it knows causes by name only.

Every refusal and failure is an `ApiError` made of a `Problem` (status, type, code, reason) and one
sentence for the caller. Sentences never repeat input, keys, hosts or tables. The reasons in
`x-tiergate-reason` are a closed list: a new one is a change of the contract.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson
from starlette.responses import Response

from engine.core.admission import Verdict
from gateway.principal import Principal

REASON_HEADER = "x-tiergate-reason"
MAX_RETRY_AFTER_MS = 120_000  # the OpenAI SDK does not wait longer than this for a hint


@dataclass(frozen=True, slots=True)
class ProblemSpec:
    """One row of the table. `error_type` is the low-cardinality name on metrics and in logs."""

    status: int
    type: str
    code: str | None
    error_type: str
    reason: str | None = None


class Problem(Enum):
    """The whole table; types and codes follow the OpenAI API where it has a word for the case."""

    BAD_REQUEST = ProblemSpec(400, "invalid_request_error", "invalid_value", "invalid_request")
    BAD_JSON = ProblemSpec(400, "invalid_request_error", "invalid_json", "invalid_request")
    MISSING = ProblemSpec(
        400, "invalid_request_error", "missing_required_parameter", "invalid_request"
    )
    UNSUPPORTED = ProblemSpec(400, "invalid_request_error", "unsupported_value", "invalid_request")
    TOO_LONG = ProblemSpec(
        400, "invalid_request_error", "context_length_exceeded", "invalid_request"
    )
    UNAUTHENTICATED = ProblemSpec(401, "authentication_error", "invalid_api_key", "unauthenticated")
    LOGIN_FAILED = ProblemSpec(401, "authentication_error", "invalid_login", "unauthenticated")
    MODEL_FORBIDDEN = ProblemSpec(403, "permission_error", "model_not_allowed", "forbidden")
    ROUTE_FORBIDDEN = ProblemSpec(403, "permission_error", "route_not_allowed", "forbidden")
    TIER_FORBIDDEN = ProblemSpec(403, "permission_error", "service_tier_not_allowed", "forbidden")
    ROLE_FORBIDDEN = ProblemSpec(403, "permission_error", "role_not_allowed", "forbidden")
    LOGIN_TOO_OLD = ProblemSpec(403, "permission_error", "recent_login_required", "forbidden")
    CROSS_SITE = ProblemSpec(403, "permission_error", "cross_site_request", "forbidden")
    NOT_FOUND = ProblemSpec(404, "not_found_error", "not_found", "not_found")
    MODEL_UNKNOWN = ProblemSpec(404, "not_found_error", "model_not_found", "not_found")
    METHOD = ProblemSpec(405, "invalid_request_error", "method_not_allowed", "invalid_request")
    BODY_TIMEOUT = ProblemSpec(408, "invalid_request_error", "request_timeout", "invalid_request")
    CONFLICT = ProblemSpec(409, "invalid_request_error", "already_exists", "invalid_request")
    CHANGED = ProblemSpec(412, "invalid_request_error", "version_changed", "invalid_request")
    BODY_TOO_LARGE = ProblemSpec(
        413, "invalid_request_error", "request_too_large", "invalid_request"
    )
    NEEDS_VERSION = ProblemSpec(428, "invalid_request_error", "version_required", "invalid_request")
    RATE_LIMITED = ProblemSpec(429, "rate_limit_error", "rate_limit_exceeded", "rate_limited")
    # Type and code as the OpenAI API has them: clients tell a spent budget from a rate by the code.
    INSUFFICIENT_QUOTA = ProblemSpec(
        429, "insufficient_quota", "insufficient_quota", "insufficient_quota"
    )
    INTERNAL = ProblemSpec(500, "server_error", "internal_error", "_OTHER")
    ENGINE_FAILED = ProblemSpec(500, "server_error", "engine_error", "engine_error")
    ENGINE_UNAVAILABLE = ProblemSpec(
        503, "server_error", "engine_unavailable", "engine_unavailable"
    )
    LEDGER_UNAVAILABLE = ProblemSpec(
        503, "server_error", "key_check_unavailable", "ledger_unavailable"
    )
    DATABASE_UNAVAILABLE = ProblemSpec(
        503, "server_error", "database_unavailable", "ledger_unavailable"
    )
    PROVIDER_UNAVAILABLE = ProblemSpec(
        503, "server_error", "identity_provider_unavailable", "ledger_unavailable"
    )
    LIMITS_UNAVAILABLE = ProblemSpec(
        503, "server_error", "limit_check_unavailable", "limits_unavailable"
    )
    SATURATED = ProblemSpec(503, "overloaded_error", "queue_full", "saturated", "saturated")
    TIER_FULL = ProblemSpec(503, "overloaded_error", "queue_full", "saturated", "tier-capacity")
    # One fact with two names: the reason header's word, and that of `error.type` on metrics.
    SLO_UNREACHABLE = ProblemSpec(
        503, "overloaded_error", "slo_unattainable", "slo_unattainable", "slo-unreachable"
    )
    NO_CAPACITY = ProblemSpec(503, "overloaded_error", "slo_unattainable", "saturated", "saturated")
    DRAINING = ProblemSpec(503, "overloaded_error", "draining", "draining", "draining")
    DEADLINE = ProblemSpec(504, "server_error", "deadline_exceeded", "deadline_exceeded")


class ApiError(Exception):
    """One refusal or failure, ready to be told to the caller.

    `retry_after_ms` becomes `retry-after` and `retry-after-ms`, bounded to two minutes; None gives
    no hint. Of a header that is named in `headers` as well, that one is sent.
    """

    def __init__(
        self,
        problem: Problem,
        message: str,
        *,
        param: str | None = None,
        retry_after_ms: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.headers = dict(headers or {})
        self.verdict: Verdict | None = None  # what a refusal at the door went by; for records
        self.sender: Principal | None = None  # whose key it was that may not do this

    @property
    def spec(self) -> ProblemSpec:
        """The row of the table."""
        return self.problem.value

    def body(self) -> dict[str, Any]:
        """Return the JSON object told to the caller, in a response or in an event of a stream."""
        spec = self.spec
        return {
            "error": {
                "message": self.message,
                "type": spec.type,
                "param": self.param,
                "code": spec.code,
            }
        }

    def response(self) -> Response:
        """Return the error as a response of its own."""
        headers = {"cache-control": "no-store"}
        if self.retry_after_ms is not None:
            headers.update(retry_headers(self.retry_after_ms))
        headers.update(self.headers)
        if self.spec.reason is not None:
            headers[REASON_HEADER] = self.spec.reason
        return Response(
            orjson.dumps(self.body()), self.spec.status, headers, media_type="application/json"
        )


def retry_headers(after_ms: int) -> dict[str, str]:
    """Return both spellings of the hint; whole seconds are rounded up, never to "at once"."""
    bounded = min(max(after_ms, 1), MAX_RETRY_AFTER_MS)
    return {"retry-after": str(math.ceil(bounded / 1000)), "retry-after-ms": str(bounded)}


def unauthenticated() -> ApiError:
    """Return the one answer to every failure of a key: its cause is nobody's business."""
    return ApiError(
        Problem.UNAUTHENTICATED,
        "Invalid API key. Send a valid one as 'Authorization: Bearer <key>'.",
        headers={"www-authenticate": 'Bearer realm="tiergate"'},
    )


def bad_value(param: str | None, message: str) -> ApiError:
    """Return the answer to a field whose value cannot be taken."""
    return ApiError(Problem.BAD_REQUEST, message, param=param)
