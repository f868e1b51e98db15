"""Tiers and every version of them; who has which tier is not known here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.errors import AlreadyExists, ChangedMeanwhile, InvalidValue
from tenants.models import Tier, TierVersion
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import (
    Part,
    check_name,
    check_unambiguous,
    database_now,
    require_tier,
    tell_change,
)
from tenants.repository.rows import tier_columns, tier_of, version_of
from tenants.tiers import changed_tier, new_tier
from tenants.values import SYSTEM, Actor, TierRecord
from tenants.values import TierVersion as TierVersionRecord

MOST_TIERS = 100


@dataclasses.dataclass(frozen=True, slots=True)
class WantedTier:
    """Fields of a tier, as text, as they shall be; others stay. `version`: only if it is at it."""

    name: str
    values: Mapping[str, str]
    version: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TierPlan:
    """What becomes of a tier; `before` None: it is new, `before` equal to `after`: nothing."""

    before: TierRecord | None
    after: TierRecord


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
        check_unambiguous("a tier", name)
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
        version: int | None = None,
        now: datetime | None = None,
        by: Actor = SYSTEM,
    ) -> TierRecord:
        """Change fields of a tier, as text; raises `NotFound`, `InvalidValue`.

        Gateways that run serve what comes from now on by it. The version before stays readable:
        what was served by it is billed by it. With `version`, raises `ChangedMeanwhile` where the
        tier is at another one.
        """
        async with self._database.write() as session:
            await require_tier(session, name)
            row = await session.get_one(Tier, name, with_for_update=True, populate_existing=True)
            before = tier_of(row)
            _check_version(before, version)
            record = changed_tier(before, values)
            for field, value in tier_columns(record).items():
                setattr(row, field, value)
            await _keep(session, before, record, now, by)
        return record

    async def get_tier(self, name: str) -> TierRecord:
        """Return one tier; raises `NotFound`."""
        async with self._database.read() as session:
            await require_tier(session, name)
            return tier_of(await session.get_one(Tier, name))

    async def plan_tiers(self, wanted: Sequence[WantedTier]) -> list[TierPlan]:
        """Return what `apply_tiers` would do, and raise what it would raise; changes nothing."""
        async with self._database.read() as session:
            rows = {row.name: row for row in await session.scalars(select(Tier))}
        return [_plan(rows.get(one.name), one) for one in _checked(wanted)]

    async def apply_tiers(
        self,
        wanted: Sequence[WantedTier],
        *,
        now: datetime | None = None,
        by: Actor = SYSTEM,
    ) -> list[TierPlan]:
        """Make the ledger's tiers say this, all of them or, where one cannot be, none.

        A tier that is not named stays as it is: nothing is deleted. Raises `InvalidValue`,
        `ChangedMeanwhile`; `AlreadyExists` where somebody adds one of them at the same moment.
        """
        names = [one.name for one in _checked(wanted)]
        query = select(Tier).where(Tier.name.in_(names)).order_by(Tier.name).with_for_update()
        try:
            async with self._database.write() as session:
                rows = {row.name: row for row in await session.scalars(query)}
                plans = [_plan(rows.get(one.name), one) for one in wanted]
                changed = [plan for plan in plans if plan.before != plan.after]
                for plan in changed:
                    columns = tier_columns(plan.after)
                    if plan.before is None:
                        session.add(Tier(**columns))
                    else:
                        for field, value in columns.items():
                            setattr(rows[plan.after.name], field, value)
                    await _keep(session, plan.before, plan.after, now, by)
        except IntegrityError:
            raise AlreadyExists("one of these tiers was added at the same moment") from None
        return plans


def _checked(wanted: Sequence[WantedTier]) -> Sequence[WantedTier]:
    names = [one.name for one in wanted]
    for name in names:
        check_name("a tier", name)
    if not 0 < len(names) <= MOST_TIERS:
        raise InvalidValue(f"1 to {MOST_TIERS} tiers can be set at once, not {len(names)}")
    if len(set(names)) < len(names):
        raise InvalidValue("a tier is named twice")
    return wanted


def _plan(row: Tier | None, wanted: WantedTier) -> TierPlan:
    """Return what becomes of one tier; raises errors that begin with its name."""
    try:
        if row is None:
            if wanted.version is not None:
                raise ChangedMeanwhile(f"it is expected at version {wanted.version}, and not there")
            check_unambiguous("a tier", wanted.name)
            return TierPlan(None, new_tier(wanted.name, wanted.values))
        before = tier_of(row)
        _check_version(before, wanted.version)
        after = changed_tier(before, wanted.values)
    except (InvalidValue, ChangedMeanwhile) as error:
        raise type(error)(f"tier {wanted.name}: {error}") from None
    is_same = dataclasses.replace(after, version=before.version) == before
    return TierPlan(before, before if is_same else after)


def _check_version(tier: TierRecord, version: int | None) -> None:
    if version is not None and tier.version != version:
        raise ChangedMeanwhile(
            f"tier {tier.name} is at version {tier.version}, not {version}: look at it again"
        )


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
