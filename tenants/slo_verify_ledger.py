"""What the ledger holds of a report's span, for its checker: raw rows, versions, bills, sums.

The tables are described here once more, and none of the code is used that wrote them. The sums that
pages and alerts are made from (`slo_counts`) are checked too: those of the tenant against its
requests, those of all tenants together against the tenants'.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Double,
    Integer,
    String,
    case,
    column,
    func,
    or_,
    select,
    table,
)

from tenants.database import Database
from tenants.slo_verify_file import FACTS, PROMISES, TALLIES, Cells, Differs
from tenants.slo_verify_sums import Facts, stamp, tally_of, verdicts

_BATCH = 500
_BOOLS = ("stream", "met", "ttft_met", "tbt_met", "available", "eased")
_TEXTS = ("id", "request_id", "key_id", "model", "operation", "tier_asked", "tier")
_MORE_TEXTS = ("outcome", "reason", "tbt_mode", "trace_id")
_INTS = [n for n in FACTS if n not in (*_BOOLS, *_TEXTS, *_MORE_TEXTS, "arrival")]
_AT = DateTime(timezone=True)
_RECORDS = table(
    "slo_records",
    *(column(name, String) for name in ("tenant_id", *_TEXTS, *_MORE_TEXTS)),
    *(column(name, BigInteger) for name in _INTS),
    *(column(name, Boolean) for name in _BOOLS),
    column("arrival", _AT),
)
_COUNTS = table(
    "slo_counts",
    *(column(name, String) for name in ("tenant_id", "tier")),
    column("grain", Integer),
    column("start", _AT),
    *(column(name, BigInteger) for name in TALLIES),
)
_VERSIONS = table(
    "tier_versions",
    *(column(name, String) for name in ("name", "tbt_mode")),
    *(column(name, Integer) for name in ("version", *PROMISES)),
    column("objective", Double),
    column("changed_at", _AT),
)
_USAGE = table(
    "usage",
    *(column(name, String) for name in ("request_id", "tenant_id")),
    column("arrival", _AT),
)
_TENANTS = table("tenants", *(column(n, String) for n in ("id", "name", "organisation_id")))
_OWNERS = table("organisations", column("id", String), column("name", String))
_GRAINS = (60, 3600, 86_400)
_DAY_S = 86_400
# Sums of minutes are thrown away after four days; half an hour for clocks that differ.
_MINUTES_KEPT = timedelta(days=4) - timedelta(minutes=30)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[int, datetime, str]


class LedgerCheck:
    """What one report is compared with; asked once, from `begin` to `end`."""

    def __init__(self, database: Database, now: datetime) -> None:
        self._database = database
        self._now = now
        self._tenant = ""
        self._since = self._until = now
        self._left: dict[Place, dict[str, int]] = {}
        self.notes: list[str] = []

    async def begin(self, head: Mapping[str, str], since: datetime, until: datetime) -> None:
        """Take the span; raises `Differs` where there is no such tenant.

        Whose the report is, the tenant's id says. It may be called otherwise today, or belong to
        another organisation: `notes` then tell what the ledger has.
        """
        self._tenant, self._since, self._until = head.get("tenant_id", ""), since, until
        query = (
            select(_TENANTS.c.name, _OWNERS.c.name)
            .join_from(_TENANTS, _OWNERS, _OWNERS.c.id == _TENANTS.c.organisation_id, isouter=True)
            .where(_TENANTS.c.id == self._tenant)
        )
        async with self._database.read() as session:
            found = (await session.execute(query)).first()
        if found is None:
            raise Differs(f"the ledger has no tenant {self._tenant!r}")
        for name, today in zip(("tenant", "organisation"), found, strict=True):
            said = head.get(name, "")
            if said == (today or ""):
                continue
            if not said:
                raise Differs(f"the file names no {name}, the ledger has {today!r}")
            self.notes.append(
                f"the {name} is {said!r} in the file, and {today or ''!r} in the ledger today: "
                "it was changed after the report was made, or in the file"
            )
        await self._read_sums()

    async def rows(self) -> AsyncGenerator[Cells]:
        """Yield the raw rows of the span as text, the oldest first."""
        of, c = _RECORDS, _RECORDS.c
        query = (
            select(*(of.c[name] for name in FACTS))
            .where(c.tenant_id == self._tenant)
            .where(c.arrival >= self._stored(self._since), c.arrival < self._stored(self._until))
            .order_by(c.arrival, c.id)
        )
        async with self._database.read() as session:
            result = await session.stream(query.execution_options(yield_per=_BATCH))
            # Batch by batch: a hop to the driver for every row would cost more than the row.
            async for batch in result.mappings().partitions():
                for row in batch:
                    yield {name: _text(value) for name, value in row.items() if value is not None}

    async def versions(
        self, tiers: Collection[str], used: Collection[tuple[str, int]]
    ) -> list[Cells]:
        """Return the lines of the versions in force in the span, and of those `used`."""
        query = select(_VERSIONS).where(_VERSIONS.c.name.in_(sorted(tiers)))
        query = query.order_by(_VERSIONS.c.name, _VERSIONS.c.version)
        async with self._database.read() as session:
            found = [dict(row) for row in (await session.execute(query)).mappings()]
        lines = []
        for name in sorted({row["name"] for row in found}):
            mine = [row for row in found if row["name"] == name]
            begins = [_aware(row["changed_at"]) for row in mine]
            early = [i for i, at in enumerate(begins) if at < self._until]
            current = early[-1] if early else 0
            for i, row in enumerate(mine):
                end = begins[i + 1] if i + 1 < len(mine) else None
                lived = begins[i] < self._until and (end is None or end > self._since)
                if lived or i == current or (name, row["version"]) in used:
                    lines.append(_version_line(row, end, self._until))
        return lines

    def count(self, facts: Facts) -> None:
        """Take one request out of the tenant's sums, which must come to nothing in the end."""
        added = tally_of(facts, verdicts(facts))
        for grain in _GRAINS:
            start = facts.arrival - (facts.arrival - _EPOCH) % timedelta(seconds=grain)
            if not self._is_inside(grain, start):
                continue
            left = self._left.get((grain, start, facts.tier))
            if left is None:
                if self._is_forgotten(grain, start):
                    continue
                raise Differs(f"the ledger lacks {_place(grain, start, facts.tier)}")
            for name, amount in added.items():
                left[name] -= amount

    async def end(self) -> int:
        """Check the sums; return how many bills have no judged request.

        Raises `Differs` for one from after the ledger's first judged request.
        """
        for (grain, start, tier), left in sorted(self._left.items()):
            for name, amount in left.items():
                if amount:
                    raise Differs(
                        f"{_place(grain, start, tier)}: {name} is {abs(amount)} too "
                        f"{'high' if amount > 0 else 'low'} in the ledger"
                    )
        await self._check_totals()
        return await self._unrecorded()

    async def _read_sums(self) -> None:
        c = _COUNTS.c
        query = select(_COUNTS).where(c.tenant_id == self._tenant)
        query = query.where(c.start >= self._stored(self._since))
        query = query.where(c.start < self._stored(self._until))
        async with self._database.read() as session:
            rows = (await session.execute(query)).mappings().all()
        for row in rows:
            place = (row["grain"], _aware(row["start"]), row["tier"])
            if row["grain"] not in _GRAINS:
                raise Differs(f"the ledger has sums of {row['grain']} seconds: there are none such")
            # A request that was on disk for days may have brought back a minute thrown away.
            if self._is_inside(place[0], place[1]) and not self._is_forgotten(place[0], place[1]):
                self._left[place] = {name: int(row[name]) for name in TALLIES}

    def _is_inside(self, grain: int, start: datetime) -> bool:
        return self._since <= start and start + timedelta(seconds=grain) <= self._until

    def _is_forgotten(self, grain: int, start: datetime) -> bool:
        """True for a minute so old that nobody needs its sums any more."""
        return grain == 60 and start < self._now - _MINUTES_KEPT

    async def _check_totals(self) -> None:
        """Compare the sums of all tenants together with the tenants' own."""
        c = _COUNTS.c
        of_all = c.tenant_id == ""
        gaps = [func.sum(case((of_all, c[name]), else_=-c[name])).label(name) for name in TALLIES]
        query = (
            select(c.grain, c.start, c.tier, *gaps)
            .where(c.grain.in_(_GRAINS))
            .where(c.start >= self._stored(self._since), c.start < self._stored(self._until))
            .group_by(c.grain, c.start, c.tier)
            .having(or_(*(gap != 0 for gap in gaps)))
            .order_by(c.grain, c.start, c.tier)
            .limit(1)
        )
        async with self._database.read() as session:
            found = (await session.execute(query)).mappings().first()
        if found is not None:
            name = next(name for name in TALLIES if found[name])
            place = _place(found["grain"], _aware(found["start"]), found["tier"])
            raise Differs(f"{place}: {name} of all tenants together is not the sum of the tenants'")

    async def _unrecorded(self) -> int:
        """Choices of one answer are billed as `ID-0`, `ID-1` ..., and judged once, as `ID`."""
        u, r = _USAGE.c, _RECORDS.c
        first = select(func.min(r.arrival))
        query = (
            select(u.request_id, u.arrival)
            .where(u.tenant_id == self._tenant)
            .where(u.arrival >= self._stored(self._since), u.arrival < self._stored(self._until))
            .where(~select(r.id).where(r.id == u.request_id).exists())
            .order_by(u.arrival)
        )
        missing = 0
        async with self._database.read() as session:
            began = await session.scalar(first)
        async with self._database.read() as session:
            result = await session.stream(query.execution_options(yield_per=_BATCH))
            async for batch in result.partitions():
                owners = {name: name[: name.rfind("-")] for name, _ in batch if "-" in name}
                asked = select(r.id).where(r.id.in_(sorted(set(owners.values()))))
                async with self._database.read() as other:
                    judged = set((await other.scalars(asked)).all())
                for name, at in batch:
                    if owners.get(name) in judged:
                        continue
                    missing += 1
                    if began is not None and _aware(at) >= _aware(began):
                        raise Differs(
                            f"the ledger bills request {name}, and has no judgement of it"
                        )
        return missing

    def _stored(self, at: datetime) -> datetime:
        """Return a moment as it lies in a column: SQLite keeps UTC without saying so."""
        return at if self._database.backend == "postgresql" else at.replace(tzinfo=None)


def _version_line(row: Mapping[str, Any], end: datetime | None, until: datetime) -> Cells:
    line = {
        "record": "tier",
        "tier": row["name"],
        "tier_version": str(row["version"]),
        "changed_at": stamp(row["changed_at"]),
        "target": repr(row["objective"]),
        **{name: str(row[name]) for name in PROMISES},
        "tbt_mode": row["tbt_mode"],
    }
    if end is not None and end < until:
        line["until"] = stamp(end)
    return line


def _place(grain: int, start: datetime, tier: str) -> str:
    what = {60: "minute", 3600: "hour"}.get(grain, "day")
    return f"sums of the {what} {stamp(start)[:16]}Z, tier {tier}"


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return stamp(value) if isinstance(value, datetime) else str(value)
