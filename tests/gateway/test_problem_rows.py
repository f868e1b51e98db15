"""Every row of the table of problems, told by the routes of both APIs: status, type, hints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.errors import error_response
from gateway.errors import MAX_RETRY_AFTER_MS, REASON_HEADER, ApiError, Problem

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
REASONS = {"saturated", "slo-unreachable", "queue-timeout", "evicted", "draining", "tier-capacity"}
ANTHROPIC_TYPES = {
    *("invalid_request_error", "authentication_error", "permission_error", "not_found_error"),
    *("request_too_large", "rate_limit_error", "api_error", "overloaded_error", "timeout_error"),
}


def told(problem: Problem, path: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    error = ApiError(problem, "One sentence.", **more)
    response = error_response(error, path, "req_1")
    return response, json.loads(bytes(response.body))


@pytest.mark.parametrize("problem", Problem)
def test_a_row_is_told_to_an_openai_client(problem: Problem) -> None:
    """Status, type and code are the row's; there is nothing else in the body."""
    response, body = told(problem, OPENAI, param="field")
    spec = problem.value
    assert response.status_code == spec.status
    assert body == {
        "error": {
            "message": "One sentence.",
            "type": spec.type,
            "param": "field",
            "code": spec.code,
        }
    }
    assert response.headers.get(REASON_HEADER) == spec.reason
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("problem", Problem)
def test_a_row_is_told_to_an_anthropic_client(problem: Problem) -> None:
    """The type is one that its SDK knows; overload is 529, a limit or a budget 429."""
    response, body = told(problem, ANTHROPIC)
    assert body["type"] == "error"
    assert body["error"]["type"] in ANTHROPIC_TYPES
    assert body["error"]["message"] == "One sentence."
    is_overload = problem.value.reason is not None
    assert response.status_code == (529 if is_overload else problem.value.status)
    assert (body["error"]["type"] == "rate_limit_error") == (problem.value.status == 429)
    assert response.headers.get(REASON_HEADER) == problem.value.reason


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("problem", Problem)
def test_hints_are_bounded_and_what_is_said_of_them_wins(problem: Problem, path: str) -> None:
    """A hint is in both spellings and at most two minutes, unless its header is named itself."""
    response, _ = told(problem, path, retry_after_ms=10**9)
    assert response.headers["retry-after-ms"] == str(MAX_RETRY_AFTER_MS)
    assert response.headers["retry-after"] == str(MAX_RETRY_AFTER_MS // 1000)
    own = {"retry-after": "600", "retry-after-ms": "600000", "x-should-retry": "false"}
    response, _ = told(problem, path, retry_after_ms=600_000, headers=own)
    assert {name: response.headers[name] for name in own} == own
    response, _ = told(problem, path)
    assert not {"retry-after", "retry-after-ms", "x-should-retry"}.intersection(response.headers)


def test_reasons_are_the_closed_list() -> None:
    """A new reason is a change of the contract; limits and budgets have codes, not reasons."""
    assert {p.value.reason for p in Problem} - {None} <= REASONS
    assert Problem.RATE_LIMITED.value.reason is None
    assert Problem.INSUFFICIENT_QUOTA.value.reason is None
