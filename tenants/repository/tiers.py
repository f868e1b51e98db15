"""Tiers and every version of them; who has which tier is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.errors import AlreadyExists
from tenants.models import Tier, TierVersion
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import Part, check_name, database_now, require_tier, tell_change
from tenants.repository.rows import tier_columns, tier_of, version_of
from tenants.tiers import changed_tier, new_tier
from tenants.values import SYSTEM, Actor, TierRecord
from tenants.values import TierVersion as TierVersionRecord


class Tiers(Part):
    """What is asked about tiers."""

    async def list_tiers(self) -> list[TierRecord]:
        """Return all tiers, the one served first in front."""
        async with self._database.read() as session:
            rows = await session.scalars(select(Tier).order_by(Tier.rank, Tier.name))
            return [tier_of(row) for row in rows]

    async def list_tier_versions(self, name: str | None = None) -> list[TierVersionRecord]:
        """Return every version of a tier, or of all, the oldest first; raises `NotFound`."""
        query = select(TierVersion).order_by(TierVersion.name, TierVersion.version)
        async with self._database.read() as session:
            if name is not None:
                await require_tier(session, name)
                query = query.where(TierVersion.name == name)
            return [version_of(row) for row in await session.scalars(query)]

    async def create_tier(
        self,
        name: str,
        values: Mapping[str, str],
        *,
        now: datetime | None = None,
        by: Actor = SYSTEM,
    ) -> TierRecord:
        """Add a tier of these fields, as text; raises `InvalidValue`, `AlreadyExists`."""
        check_name("a tier", name)
        record = new_tier(name, values)
        try:
            async with self._database.write() as session:
                session.add(Tier(**tier_columns(record)))
                await _keep(session, None, record, now, by)
        except IntegrityError:
            raise AlreadyExists(f"there is a tier {name!r} already") from None
        return record

    async def change_tier(
        self,
        name: str,
        values: Mapping[str, str],
        *,
        now: datetime | None = None,
        by: Actor = SYSTEM,
    ) -> TierRecord:
        """Change fields of a tier, as text; raises `NotFound`, `InvalidValue`.

        Gateways that run serve what comes from now on by it. The version before stays readable:
        what was served by it is billed by it.
        """
        async with self._database.write() as session:
            await require_tier(session, name)
            row = await session.get_one(Tier, name, with_for_update=True, populate_existing=True)
            before = tier_of(row)
            record = changed_tier(before, values)
            for field, value in tier_columns(record).items():
                setattr(row, field, value)
            await _keep(session, before, record, now, by)
        return record


async def _keep(
    session: AsyncSession,
    before: TierRecord | None,
    record: TierRecord,
    now: datetime | None,
    by: Actor,
) -> None:
    """Write the version, the audit and the notice that belong to a change."""
    at = now or await database_now(session)
    session.add(TierVersion(**tier_columns(record), changed_at=at))
    action = "tier.create" if before is None else "tier.change"
    write_audit(session, by, at, Change(action, "tier", record.name, before, record))
    await tell_change(session)
