"""Adds up the sums of SLO accounting for many windows with one question; it judges nothing.

A page shows eleven windows, each of up to five pieces (tenants/slo_windows.py). Asked one by one
they cost a page's time in trips to the database; as one statement they cost one trip. The statement
is text, since building so many selects as objects costs more than asking them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, text

from tenants.database import Database
from tenants.models import UtcDateTime
from tenants.slo import COUNT_FIELDS, SloCounts
from tenants.slo_store import EVERYONE
from tenants.slo_windows import pieces

# Under what both databases take as one compound statement.
MOST_PIECES = 400
_SUMS = ", ".join(f"SUM({name})" for name in COUNT_FIELDS)


async def counts_of_windows(
    database: Database,
    windows: Sequence[tuple[datetime, datetime]],
    *,
    tenant_id: str | None = None,
) -> list[dict[str, SloCounts]]:
    """Return for each of these [since, until) what `tenants.slo_store.counts` returns, by tier."""
    parts: list[str] = []
    values: dict[str, Any] = {"tenant": EVERYONE if tenant_id is None else tenant_id}
    for place, (since, until) in enumerate(windows):
        for grain, first, last in pieces(since, until):
            number = len(parts)
            values |= {f"a{number}": first, f"b{number}": last}
            parts.append(
                f"SELECT {place} AS place, tier, {_SUMS} FROM slo_counts WHERE "
                f"tenant_id = :tenant AND grain = {grain} AND start >= :a{number} "
                f"AND start < :b{number} GROUP BY tier"
            )
    found: list[dict[str, SloCounts]] = [{} for _ in windows]
    assert len(parts) <= MOST_PIECES, "a page of windows at a time"
    if not parts:
        return found
    statement = text(" UNION ALL ".join(parts)).bindparams(
        *(bindparam(name, type_=UtcDateTime()) for name in values if name != "tenant")
    )
    async with database.read() as session:
        rows = (await session.execute(statement, values)).all()
    for place, tier, *sums in rows:
        sofar = found[place].get(tier, SloCounts())
        found[place][tier] = sofar.plus(SloCounts(*map(int, sums)))
    return found
