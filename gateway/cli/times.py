"""How commands are told of moments and of lengths of time; it asks no clock."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from gateway.cli.options import flag
from gateway.cli.output import CommandError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

Since = Annotated[
    str | None,
    flag(
        "since",
        "From this moment on: 2026-11-01 or 2026-11-01T08:00:00Z, in UTC unless it says otherwise.",
        "TIME",
        "TIERGATE_EXPORT_SINCE",
    ),
]
Until = Annotated[
    str | None,
    flag(
        "until",
        "Up to, and without, this moment; default: now.",
        "TIME",
        "TIERGATE_EXPORT_UNTIL",
    ),
]


def parse_duration(text: str, name: str = "--expires-in") -> timedelta:
    """Return how long `90d`, `12h`, `30m` or `4w` is; `name` is the flag to blame."""
    parts = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", text.strip())
    if parts is None:
        raise CommandError(f"{name}: {text!r} is not a time such as 90d, 12h, 30m or 4w")
    return timedelta(seconds=int(parts[1]) * UNITS[parts[2]])


def later(now: datetime, lifetime: timedelta, name: str = "--expires-in") -> datetime:
    """Return `now` and a while; raises CommandError beyond the calendar."""
    try:
        return now + lifetime
    except OverflowError:
        raise CommandError(f"{name}: that is after the end of the calendar") from None


def parse_moment(text: str, name: str) -> datetime:
    """Return a moment in UTC; without a zone it is meant so. `name` is the flag to blame."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"{name}: {text!r} is not a moment such as 2026-11-01 or 2026-11-01T08:00:00Z"
        ) from None


def span(since: str | None, until: str | None, now: datetime) -> tuple[datetime | None, datetime]:
    """Return the two flags as moments; raises CommandError where the span is turned round."""
    first = None if since is None else parse_moment(since, "--since")
    last = now if until is None else parse_moment(until, "--until")
    if first is not None and first > last:
        raise CommandError("--since is after --until")
    return first, last
