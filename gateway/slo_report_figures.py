"""Writes the figures of a report's page, each with the line and field that it is of.

`tiergate slo verify` compares every one of them with its line. Shares and times are cut, never
rounded up: 99.99999 % is not shown as 100 %.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from fractions import Fraction

from tenants.slo_report import text_of
from tenants.slo_report_sums import Line

NONE = "–"


def esc(text: object) -> str:
    """Return text as HTML shows it, also within quotes."""
    return html.escape(str(text), quote=True)


def figure(number: int, line: Line, name: str, form: str) -> str:
    """Return a field of a line in one of the forms, as HTML."""
    text = shown(text_of(line.get(name, "")), form)
    return f'<data value="{number}:{name}" data-as="{form}">{esc(text)}</data>'


def shown(text: str, form: str) -> str:
    """Return a field's text in one of the forms; `–` where it is empty."""
    if form == "verdict":
        return _WORDS.get(text, "not counted")
    if form == "kept":
        return {"true": "kept", "false": "not kept"}.get(text, "nothing counted")
    if not text:
        return NONE
    if form in ("count", "number"):
        return grouped(Fraction(text), 0 if form == "count" else 2)
    if form in ("percent", "share"):
        return f"{grouped(Fraction(text) * 100, 3 if form == 'percent' else 1)} %"
    if form == "objective":
        return f"{percent_of(Fraction(text))} %"
    if form == "ns":
        return f"{grouped(Fraction(text) / 1_000_000, 1)} ms"
    if form == "ms":
        return f"{grouped(Fraction(text), 0)} ms"
    if form in ("when", "minute"):
        return f"{text[:10]} {text[11 : 19 if form == 'when' else 16]}"
    return text[:10] if form == "day" else text


_WORDS: Mapping[str, str] = {"true": "kept", "false": "missed"}


def grouped(value: Fraction, decimals: int) -> str:
    """Return a number in groups of three digits, cut after so many decimals."""
    scaled = abs(value.numerator) * 10**decimals // value.denominator
    whole, rest = divmod(scaled, 10**decimals)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole:,}" + (f".{rest:0{decimals}d}" if decimals else "")


def percent_of(share: Fraction) -> str:
    """Return a decimal share as percent with as many digits as it has: 99, 99.5, 99.999."""
    scaled = share * 100
    decimals = 0
    while scaled.denominator != 1 and decimals < 40:
        scaled, decimals = scaled * 10, decimals + 1
    digits = str(scaled.numerator // scaled.denominator)
    if not decimals:
        return digits
    digits = digits.zfill(decimals + 1)
    return f"{digits[:-decimals]}.{digits[-decimals:]}"
