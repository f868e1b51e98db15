"""The frame's parts by themselves: forms, cookies with an end, numbers in words, where to go on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from urllib.parse import quote

import pytest
from starlette.requests import Request

from gateway.admin.bodies import TenantBody
from gateway.admin.onward import safe_next
from gateway.admin.seal import opened, sealed
from gateway.dashboard import filters
from gateway.dashboard.forms import MAX_FIELD, MAX_FIELDS, MAX_FORM, Form, read_form
from gateway.errors import ApiError
from tenants.errors import AlreadyExists, DatabaseUnavailable

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
SECRET = b"s" * 32


def request(body: bytes, kind: str = "application/x-www-form-urlencoded") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def test_a_form_is_read_as_it_was_typed() -> None:
    form = await read_form(
        request(b"name=+caf%C3%A9+&note=a%0D%0Ab&scopes=chat&scopes=models&empty="),
        "name", "note", "empty", lists=("scopes",),
    )  # fmt: skip
    assert form["name"] == "café"
    assert form.values["name"] == " café "
    assert form.values["note"] == "a\nb"
    assert form.chosen("scopes") == ["chat", "models"]
    assert (form["empty"], form["not sent"]) == ("", "")


@pytest.mark.parametrize(
    "body",
    [
        b"other=1",
        b"name=1&name=2",
        b"name=%00",
        b"name=%ff",
        b"name=%ED%A0%80",
        b"\xff",
        b"name=" + b"x" * (MAX_FIELD + 1),
        b"&".join(b"scopes=1" for _ in range(MAX_FIELDS + 1)),
        b"x" * (MAX_FORM + 1),
    ],
    ids=["unknown", "twice", "NUL", "not UTF-8", "surrogate", "not ASCII", "long", "many", "large"],
)
async def test_what_no_form_of_ours_sends_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        await read_form(request(body), "name", lists=("scopes",))
    assert caught.value.spec.status in (400, 413)


async def test_another_content_type_is_refused() -> None:
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        with pytest.raises(ApiError):
            await read_form(request(b"name=1", kind), "name")


def test_faults_land_at_their_fields() -> None:
    """Of a body of the API, of the ledger, and of numbers; the first of a field stays."""
    form = Form({"n": "1,000", "bad": "1e5", "share": "0.95", "none": ""})
    assert (form.number("n"), form.number("none"), form.decimal("share")) == (1000, None, 0.95)
    assert form.number("bad") is None
    assert form.errors["bad"] == "This must be a whole number."
    assert form.body(TenantBody, {"name": "", "tier": "premium", "organisation": "x\0"}) is None
    assert set(form.errors) == {"bad", "name", "organisation"}
    with form.told("name"):
        raise AlreadyExists("there is one")
    assert form.errors["name"] != "There is one of that name already."
    with form.told("tier"):
        raise AlreadyExists("there is one")
    assert form.errors["tier"] == "There is one of that name already."
    with form.told("tier"):
        raise DatabaseUnavailable("away")
    assert form.errors[""] == "The database does not answer."


def test_a_sealed_value_is_good_for_its_time_and_purpose_only() -> None:
    end = NOW + timedelta(minutes=1)
    value = sealed({"said": "ü"}, "flash", SECRET, end)
    found = opened(value, "flash", SECRET, NOW)
    assert found is not None
    assert found["said"] == "ü"
    assert opened(value, "flash", SECRET, end) is None
    assert opened(value, "token login", SECRET, NOW) is None
    assert opened(value, "flash", b"t" * 32, NOW) is None
    text, _, signature = value.partition(".")
    for wrong in ("", ".", text, f"{text}x.{signature}", f"{text}.{signature[:-1]}", "ü.ü"):
        assert opened(wrong, "flash", SECRET, NOW) is None


@pytest.mark.parametrize(
    ("path", "onward"),
    [
        ("/admin/keys", "/admin/keys"),
        ("/admin/requests?tier=free&missed=true", "/admin/requests?tier=free&missed=true"),
        (f"/admin/tenants/{quote('zwölf')}", "/admin/tenants/zw%C3%B6lf"),
        ("/admin/login?next=/admin", "/admin"),
        ("/admin//evil.example", "/admin"),
        ("//evil.example/admin", "/admin"),
        ("https://evil.example/admin", "/admin"),
        ("/admin/\\evil.example", "/admin"),
        ("/admin\n/keys", "/admin"),
        ("/adminx", "/admin"),
        ("", "/admin"),
        ("/admin/" + "x" * 2000, "/admin"),
    ],
)
def test_after_a_login_one_goes_on_to_a_page_of_ours(path: str, onward: str) -> None:
    assert safe_next(path) == onward


def test_numbers_have_units_and_exactness() -> None:
    """Of shares, 100 % and 0 % are said only where they are exact."""
    plain = {
        filters.ms(0.26): "0.3 ms", filters.ms(256): "256 ms", filters.ms(2560): "2.56 s",
        filters.ms(None): "–", filters.ns(5_000_000): "5.0 ms", filters.count(12345): "12,345",
        filters.share(Fraction(99_999, 100_000)): ">99.9 %", filters.share(1): "100.0 %",
        filters.share(0.00001): "<0.1 %", filters.share(0): "0.0 %", filters.share(-0.5): "-50.0 %",
        filters.nano(1_500_000_000): "1.50", filters.nano(12): "0.000000012",
        filters.nbytes(2048): "2.0 KiB", filters.rate(3.14159): "3.1", filters.span(7200): "2 h",
    }  # fmt: skip
    for shown, expected in plain.items():
        assert shown.replace("\N{NO-BREAK SPACE}", " ") == expected


def test_moments_are_utc_and_escaped() -> None:
    assert "2026-11-22 03:00:00" in filters.moment(NOW)
    assert filters.moment(NOW).count("<time") == 1
    assert "2 min ago" in filters.ago(NOW - timedelta(minutes=2), NOW).replace("\xa0", " ")
