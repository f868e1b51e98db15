"""Reads bodies, queries and paths of admin requests strictly; what they mean is not known here.

An unknown field or parameter is refused: a filter with a typing error must not look like no filter.
Faults name the field and the rule, never what was sent.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.errors import ApiError, Problem, bad_value
from gateway.request_body import read_body

MAX_BODY = 256 * 1024
BODY_TIMEOUT_S = 15.0
MAX_TEXT = 300
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ID = re.compile(r"[0-9a-f]{32}")

BodyT = TypeVar("BodyT", bound=BaseModel)


async def body_of(request: Request, kind: type[BodyT]) -> BodyT:
    """Return the checked body; raises ApiError."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        # A form of another site can send anything but this.
        raise ApiError(Problem.BAD_REQUEST, "Send JSON, with content-type: application/json.")
    raw = await read_body(request, MAX_BODY, BODY_TIMEOUT_S)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _first_fault(error, kind) from None


def _first_fault(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if fault["type"] == "json_invalid":
        return ApiError(Problem.BAD_JSON, "The request body is not valid JSON.")
    # Only names of ours are repeated.
    known = set(kind.model_fields)
    path = [str(part) for part in fault["loc"] if isinstance(part, int) or part in known]
    param = ".".join(path) or None
    if fault["type"] == "missing":
        names = [str(part) for part in fault["loc"]]
        return ApiError(Problem.MISSING, f"'{'.'.join(names)}' is required.", param=".".join(names))
    if fault["type"] == "extra_forbidden":
        fields = ", ".join(kind.model_fields)
        where = f" in '{param}'" if param else f"; there are: {fields}"
        return bad_value(param, f"There is a field that is not known here{where}.")
    rule = str(fault["msg"]).removeprefix("Value error, ")
    return bad_value(param, f"Invalid value for '{param or 'body'}': {rule[:1].lower()}{rule[1:]}.")


def query_of(request: Request, *names: str, most: int = MAX_TEXT) -> dict[str, str]:
    """Return the query's parameters, each of at most `most` characters.

    Raises ApiError, also for one that is not in `names` or is given twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            allowed = ", ".join(names) or "none"
            raise bad_value(None, f"There is a parameter that is not known here; known: {allowed}.")
        if name in found:
            raise bad_value(name, f"'{name}' is given twice.")
        if len(value) > most or _UNPRINTABLE.search(value):
            raise bad_value(name, f"'{name}' must be plain text of at most {most} characters.")
        found[name] = value
    return found


def name(value: str) -> str:
    """Return a part of a path; what cannot be a name is answered as an unknown one."""
    if len(value) > MAX_TEXT or _UNPRINTABLE.search(value):
        raise nothing_there()
    return value


def row_id(value: str) -> str:
    """Return a part of a path that must be an id: a key in clear is no way to name one here."""
    if _ID.fullmatch(value) is None:
        raise nothing_there()
    return value


def nothing_there() -> ApiError:
    """Return the one answer for what is not there, and for what is not the caller's."""
    return ApiError(Problem.NOT_FOUND, "There is nothing of that name here.")


def moment_of(query: dict[str, str], name: str) -> datetime | None:
    """Return a moment of the query in UTC, which it is without a zone; raises ApiError."""
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise bad_value(
            name, f"'{name}' must be a moment such as 2026-11-01T08:00:00Z (a + is %2B here)."
        ) from None


def flag_of(query: dict[str, str], name: str) -> bool:
    """Return a parameter that is true or false, false where it is not given; raises ApiError."""
    value: Any = query.get(name, "false")
    if value not in ("true", "false"):
        raise bad_value(name, f"'{name}' must be true or false.")
    return bool(value == "true")
