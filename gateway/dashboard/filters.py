"""How numbers and moments are written on pages: with their unit, and a dash for what is not there.

Templates know these functions by name; they know no page.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction

from markupsafe import Markup

NONE = "–"
NBSP = "\N{NO-BREAK SPACE}"
NANO = 1_000_000_000


def ms(value: float | None) -> str:
    """Return a duration in ms with the unit that reads best."""
    if value is None:
        return NONE
    size = abs(value)
    if size < 10:
        return f"{value:.1f}{NBSP}ms"
    if size < 1000:
        return f"{value:.0f}{NBSP}ms"
    if size < 120_000:
        return f"{value / 1000:.2f}{NBSP}s" if size < 10_000 else f"{value / 1000:.1f}{NBSP}s"
    if size < 2 * 3_600_000:
        return f"{value / 60_000:.0f}{NBSP}min"
    return f"{value / 3_600_000:.1f}{NBSP}h"


def ns(value: float | None) -> str:
    """Return a duration in ns likewise."""
    return NONE if value is None else ms(value / 1e6)


def count(value: float | None) -> str:
    """Return a whole number with thousands apart."""
    return NONE if value is None else f"{round(value):,}"


def rate(value: float | None) -> str:
    """Return a number a second, with one digit where it is small."""
    if value is None:
        return NONE
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def share(value: float | Fraction | None, digits: int = 1) -> str:
    """Return a share of 1 as per cent; 100 % and 0 % are said only where they are exact."""
    if value is None:
        return NONE
    percent = float(value) * 100
    text = f"{percent:.{digits}f}"
    if float(text) == 100 and percent < 100:
        text = f">{100 - 10**-digits:.{digits}f}"
    if float(text.lstrip(">")) == 0 and percent > 0:
        text = f"<{10**-digits:.{digits}f}"
    return f"{text}{NBSP}%"


def nano(value: int | None) -> str:
    """Return billionths of the currency as an amount of it."""
    if value is None:
        return NONE
    text = f"{value / NANO:,.9f}".rstrip("0")
    whole, _, part = text.partition(".")
    return f"{whole}.{part:0<2}"


def nbytes(value: float | None) -> str:
    """Return bytes with a binary unit."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f}{NBSP}{unit}" if unit == "B" else f"{value:.1f}{NBSP}{unit}"


def moment(value: datetime | None) -> Markup | str:
    """Return a moment as a `time` element in UTC, to the second."""
    if value is None:
        return NONE
    text = f"{value:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{}">{}&nbsp;UTC</time>').format(
        value.isoformat().replace("+00:00", "Z"), text
    )


def day(value: datetime | None) -> Markup | str:
    """Return the day of a moment."""
    if value is None:
        return NONE
    return Markup('<time datetime="{0}">{0}</time>').format(f"{value:%Y-%m-%d}")


def ago(value: datetime | None, now: datetime) -> Markup | str:
    """Return how long ago a moment was, with the moment itself as the title."""
    if value is None:
        return NONE
    seconds = (now - value).total_seconds()
    text = span(abs(seconds))
    text = f"in {text}" if seconds < -1 else f"{text} ago"
    iso = value.isoformat().replace("+00:00", "Z")
    return Markup('<time datetime="{0}" title="{1} UTC">{2}</time>').format(
        iso, f"{value:%Y-%m-%d %H:%M:%S}", text
    )


def span(seconds: float) -> str:
    """Return a time in the largest unit that has two of it."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{NBSP}{unit}"
    return f"{seconds:.0f}{NBSP}s"


FILTERS = {
    f.__name__: f for f in (ms, ns, count, rate, share, nano, nbytes, moment, day, ago, span)
}
