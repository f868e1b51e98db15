"""Calendar windows in UTC, counted in days since 1970: where they begin and end; it counts nothing.

Daylight saving does not exist in UTC, and a leap second is one that Unix time does not count: every
day has 86,400 seconds. Python's calendar and the arithmetic in limits.lua are held to each other by
a test.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from engine.core.clock import utc_now
from gateway.limits.rules import Kind

DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)


def unix_us(moment: datetime) -> int:
    """Return an aware moment as microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def wall_us() -> int:
    """Return the time now by this machine's wall clock, in microseconds since 1970."""
    return unix_us(utc_now())


def moment_of(us: int) -> datetime:
    """Return microseconds since 1970 as an aware UTC moment."""
    return _EPOCH + us * _MICROSECOND


def span(kind: Kind, at_us: int) -> tuple[int, int]:
    """Return the first day of the window that holds a moment, and the first day of the next."""
    day = at_us // DAY_US
    if kind is Kind.DAY:
        return day, day + 1
    if kind is Kind.WEEK:
        monday = day - (day + 3) % 7  # 1970 began on a Thursday
        return monday, monday + 7
    first = date.fromordinal(_EPOCH_ORDINAL + day).replace(day=1)
    beyond = (first + timedelta(days=31)).replace(day=1)
    return first.toordinal() - _EPOCH_ORDINAL, beyond.toordinal() - _EPOCH_ORDINAL


def day_start(day: int) -> datetime:
    """Return the moment at which a day since 1970 begins."""
    return _EPOCH + timedelta(days=day)
