"""Cuts time into the windows of SLO accounting, all in UTC; it reads no clock and counts nothing.

Counts are kept by the minute, the hour and the day (`GRAINS`). A window that begins and ends on a
minute is exactly some whole days, hours and minutes: `pieces` says which, so that thirty days are
read from a few hundred rows. Rows of minutes are kept for `MINUTES_KEPT`; longer windows begin on
an hour.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tenants.values import Period

MINUTE, HOUR, DAY = 60, 3600, 86_400
GRAINS = (MINUTE, HOUR, DAY)
MINUTES_KEPT = timedelta(days=4)
LONGEST_BY_MINUTE = timedelta(days=3)

# The windows of burn rates (SRE Workbook, "Alerting on SLOs").
BURN_WINDOWS: dict[str, timedelta] = {
    "5m": timedelta(minutes=5),
    "30m": timedelta(minutes=30),
    "1h": timedelta(hours=1),
    "2h": timedelta(hours=2),
    "6h": timedelta(hours=6),
    "1d": timedelta(days=1),
    "3d": timedelta(days=3),
    "30d": timedelta(days=30),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def floor_to(moment: datetime, grain_s: int) -> datetime:
    """Return the last moment at or before this one that is a whole number of grains since 1970."""
    whole = (moment - _EPOCH) // timedelta(seconds=grain_s)
    return _EPOCH + whole * timedelta(seconds=grain_s)


def ceil_to(moment: datetime, grain_s: int) -> datetime:
    """Return the first such moment at or after this one."""
    floor = floor_to(moment, grain_s)
    return floor if floor == moment else floor + timedelta(seconds=grain_s)


def rolling(now: datetime, length: timedelta) -> tuple[datetime, datetime]:
    """Return [since, until) of a window that ends with the minute under way.

    It begins on a minute; one longer than three days on an hour, as there are no minutes so old.
    """
    until = floor_to(now, MINUTE) + timedelta(seconds=MINUTE)
    grain = MINUTE if length <= LONGEST_BY_MINUTE else HOUR
    return floor_to(until - length, grain), until


def calendar(now: datetime, period: Period) -> tuple[datetime, datetime]:
    """Return [since, until) of the day, week (from Monday) or month that `now` is in, until now."""
    day = floor_to(now, DAY)
    since = {
        Period.DAY: day,
        Period.WEEK: day - timedelta(days=day.weekday()),
        Period.MONTH: day.replace(day=1),
    }[period]
    return since, floor_to(now, MINUTE) + timedelta(seconds=MINUTE)


def pieces(since: datetime, until: datetime) -> list[tuple[int, datetime, datetime]]:
    """Return (grain, since, until) of what a window consists of; at most five.

    `since` and `until` are on whole minutes. Days stand in the middle, then hours, then minutes.
    """
    assert floor_to(since, MINUTE) == since, "a window begins on a minute"
    assert floor_to(until, MINUTE) == until, "a window ends on a minute"
    return _pieces(since, until, len(GRAINS) - 1)


def _pieces(since: datetime, until: datetime, level: int) -> list[tuple[int, datetime, datetime]]:
    if since >= until:
        return []
    grain = GRAINS[level]
    first, last = ceil_to(since, grain), floor_to(until, grain)
    if first >= last:
        return _pieces(since, until, level - 1) if level else []
    middle = [(grain, first, last)]
    if level == 0:
        return middle
    return [*_pieces(since, first, level - 1), *middle, *_pieces(last, until, level - 1)]
