"""Numbers as people type them into forms: a comma never changes an amount unseen."""

from __future__ import annotations

import pytest

from gateway.dashboard.forms import Form
from gateway.dashboard.limits import _amount


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0", 0),
        ("1250", 1250),
        ("1,250", 1250),
        ("12,500,000", 12_500_000),
        ("-1,250", -1250),
        ("1_250", 1250),
        (" 600 ", 600),
        ("", None),
    ],
)
def test_a_whole_number_is_read(typed: str, meant: int | None) -> None:
    form = Form({"amount": typed})
    assert form.number("amount") == meant
    assert form.errors == {}


@pytest.mark.parametrize("typed", ["12,50", "1,5", "1,2500", "1234,567", ",5", "5,", "1,,250"])
def test_a_comma_that_parts_no_thousands_is_refused(typed: str) -> None:
    """Of tokens as of money; it says how numbers are written."""
    form = Form({"amount": typed, "unit": "tokens"})
    assert form.number("amount") is None
    assert form.errors == {
        "amount": "This must be a whole number, with commas as in 12,500 or without."
    }
    for unit, said in (("tokens", "This must be a whole number"), ("nano", "with a point")):
        form = Form({"amount": typed, "unit": unit})
        assert _amount(form) is None
        assert said in form.errors["amount"]
    form = Form({"weight": typed})
    assert form.decimal("weight") is None
    assert form.errors["weight"].endswith("with a point.")


@pytest.mark.parametrize("typed", ["1_5", "many", "1e3", "12.5", "9" * 30, "1,000.5"])
def test_what_is_no_whole_number_is_refused(typed: str) -> None:
    form = Form({"amount": typed})
    assert form.number("amount") is None
    assert form.errors["amount"].startswith("This must be a whole number")
