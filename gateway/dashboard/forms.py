"""Reads what a page's form sends, strictly and bounded, and keeps it beside its faults.

A form with a fault is shown again with what was typed and the fault at its field; secrets alone are
not sent back. What the fields mean is the pages' business.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.admin.route import told
from gateway.errors import ApiError, Problem, bad_value
from gateway.request_body import read_body
from tenants.errors import AlreadyExists, InvalidValue, LedgerError, NotFound

FORM = "application/x-www-form-urlencoded"
MAX_FORM = 64 * 1024
MAX_FIELDS = 256
MAX_FIELD = 16 * 1024
TIMEOUT_S = 15.0
_GROUPED = re.compile(r"-?[0-9]{1,3}([,_][0-9]{3})+")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

BodyT = TypeVar("BodyT", bound=BaseModel)


class Form:
    """What was typed, by field, and what is wrong with it; the fault of "" is the whole form's."""

    __slots__ = ("errors", "lists", "values")

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self.values: dict[str, str] = dict(values or {})
        self.lists: dict[str, list[str]] = {}
        self.errors: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """What was typed into a field, trimmed; empty where it was not sent."""
        return self.values.get(name, "").strip()

    def chosen(self, name: str) -> list[str]:
        """What was chosen in a field that takes several."""
        return self.lists.get(name, [])

    def wrong(self, name: str, why: str) -> None:
        """Say what is wrong with a field; the first fault of a field stays."""
        self.errors.setdefault(name, why)

    def number(self, name: str) -> int | None:
        """Return a whole number, None for an empty field; a fault is said at the field."""
        text = self[name]
        if not text:
            return None
        # Elsewhere a comma is the decimal point: "12,50" must not be read as 1,250.
        digits = re.sub("[,_]", "", text) if _GROUPED.fullmatch(text) else text
        if re.fullmatch(r"-?[0-9]{1,18}", digits):
            return int(digits)
        if "," in text:
            self.wrong(name, "This must be a whole number, with commas as in 12,500 or without.")
        else:
            self.wrong(name, "This must be a whole number.")
        return None

    def decimal(self, name: str) -> float | None:
        """Return a number, None for an empty field; a fault is said at the field."""
        text = self[name]
        if not text:
            return None
        if not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text):
            self.wrong(name, "This must be a number such as 0.95, with a point.")
            return None
        return float(text)

    def body(self, kind: type[BodyT], fields: Mapping[str, Any]) -> BodyT | None:
        """Return `fields` checked as a body of the admin API; faults are said at their fields."""
        try:
            return kind.model_validate_json(orjson.dumps(fields))
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False):
                name = str(fault["loc"][0]) if fault["loc"] else ""
                self.wrong(name, _in_words(fault))
            return None

    @contextlib.contextmanager
    def told(self, name: str = "") -> Iterator[None]:
        """Say a rule of the ledger that is broken within the block at the field `name`."""
        try:
            yield
        except (AlreadyExists, InvalidValue, NotFound) as error:
            self.wrong(name, told(error).message)
        except LedgerError as error:
            self.wrong("", told(error).message)


def _in_words(fault: Mapping[str, Any]) -> str:
    """Return what is wrong with a field for somebody who typed it; a rule of ours has its words."""
    limits: Mapping[str, Any] = fault.get("ctx", {})
    match str(fault["type"]):
        case "missing" | "string_type":
            return "This is needed."
        case "string_too_short":
            least = limits["min_length"]
            return "This is needed." if least == 1 else f"This needs at least {least} characters."
        case "string_too_long":
            return f"This may have at most {limits['max_length']} characters."
        case "greater_than_equal":
            return f"This must be at least {limits['ge']}."
        case "less_than_equal":
            return f"This may be at most {limits['le']}."
    rule = str(fault["msg"]).removeprefix("Value error, ")
    return f"{rule[:1].upper()}{rule[1:]}."


async def read_form(request: Request, *names: str, lists: tuple[str, ...] = ()) -> Form:
    """Return the form of a request; raises ApiError for what no form of ours sends.

    `names` are its fields, `lists` those that may come more than once.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise ApiError(Problem.BAD_REQUEST, f"A form is sent as {FORM}.")
    raw = await read_body(request, MAX_FORM, TIMEOUT_S)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError:  # too many fields, or no UTF-8
        raise ApiError(Problem.BAD_REQUEST, "This form cannot be read.") from None
    form = Form()
    for name, value in pairs:
        if name in lists:
            form.lists.setdefault(name, []).append(_plain(name, value))
        elif name not in names:
            raise bad_value(None, "There is a field that this form does not have.")
        elif name in form.values:
            raise bad_value(name, f"'{name}' is given twice.")
        else:
            form.values[name] = _plain(name, value)
    return form


def _plain(name: str, value: str) -> str:
    if len(value) > MAX_FIELD or _UNPRINTABLE.search(value):
        raise bad_value(name, f"'{name}' must be plain text of at most {MAX_FIELD} characters.")
    return value.replace("\r\n", "\n")
