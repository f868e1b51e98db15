"""Organisations and their tenants; keys are not known here."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from tenants.errors import AlreadyExists
from tenants.ids import new_id
from tenants.models import Organisation, Tenant
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import (
    MAX_ROWS,
    Part,
    check_name,
    check_unambiguous,
    find_organisation,
    find_tenant,
    page_size,
    require_tier,
    tell_change,
)
from tenants.repository.rows import organisation_of, tenant_of
from tenants.values import (
    DEFAULT_ORGANISATION_ID,
    SYSTEM,
    Actor,
    OrganisationRecord,
    TenantRecord,
)

MOST_LOOKED = 2000


class Tenants(Part):
    """What is asked about organisations and tenants."""

    async def create_organisation(
        self, name: str, now: datetime, *, by: Actor = SYSTEM
    ) -> OrganisationRecord:
        """Add an organisation; raises `InvalidValue` for a bad name, `AlreadyExists`."""
        check_name("an organisation", name)
        check_unambiguous("an organisation", name)
        row = Organisation(id=new_id(now), name=name, created_at=now)
        record = organisation_of(row)
        try:
            async with self._database.write() as session:
                session.add(row)
                change = Change("organisation.create", "organisation", row.id, None, record)
                write_audit(session, by, now, change)
        except IntegrityError:
            raise AlreadyExists(f"there is an organisation {name!r} already") from None
        return record

    async def list_organisations(
        self, *, after: str | None = None, limit: int = MAX_ROWS
    ) -> list[OrganisationRecord]:
        """Return up to `limit` (at most 1,000) organisations by name, from behind `after` on."""
        query = select(Organisation).order_by(Organisation.name).limit(page_size(limit))
        if after is not None:
            query = query.where(Organisation.name > after)
        async with self._database.read() as session:
            return [organisation_of(row) for row in await session.scalars(query)]

    async def get_organisation(self, name_or_id: str) -> OrganisationRecord:
        """Return one organisation by its id or its name; raises `NotFound`."""
        async with self._database.read() as session:
            return organisation_of(await find_organisation(session, name_or_id))

    async def create_tenant(
        self,
        name: str,
        tier: str,
        now: datetime,
        *,
        organisation: str = DEFAULT_ORGANISATION_ID,
        by: Actor = SYSTEM,
    ) -> TenantRecord:
        """Add a tenant of a tier to an organisation (by name or id).

        Raises `InvalidValue` for a bad name, `NotFound` for an unknown tier or organisation,
        `AlreadyExists`.
        """
        check_name("a tenant", name)
        check_unambiguous("a tenant", name)
        row = Tenant(id=new_id(now), name=name, tier=tier, created_at=now, disabled_at=None)
        try:
            async with self._database.write() as session:
                await require_tier(session, tier)
                row.organisation_id = (await find_organisation(session, organisation)).id
                session.add(row)
                record = tenant_of(row)
                change = Change("tenant.create", "tenant", row.id, None, record, row.id)
                write_audit(session, by, now, change)
        except IntegrityError:
            raise AlreadyExists(f"there is a tenant {name!r} already") from None
        return record

    async def list_tenants(
        self, organisation: str | None = None, *, after: str | None = None, limit: int = MAX_ROWS
    ) -> list[TenantRecord]:
        """Return up to `limit` (at most 1,000) tenants by name, from behind `after` on.

        Of one organisation (by name or id) or of all.
        """
        query = select(Tenant).order_by(Tenant.name).limit(page_size(limit))
        if after is not None:
            query = query.where(Tenant.name > after)
        async with self._database.read() as session:
            if organisation is not None:
                owner = await find_organisation(session, organisation)
                query = query.where(Tenant.organisation_id == owner.id)
            return [tenant_of(row) for row in await session.scalars(query)]

    async def search_tenants(
        self,
        text: str = "",
        organisation: str | None = None,
        *,
        after: str | None = None,
        limit: int = 50,
    ) -> tuple[list[TenantRecord], str | None]:
        """Return tenants whose name holds `text` in whatever case, and the name to go on behind.

        It looks at 2,000 names a call from behind `after` on: fewer than `limit` may be found, or
        none, and there may still be more. None to go on behind: that was the end. Raises
        `NotFound` for the organisation.
        """
        looked = select(Tenant).order_by(Tenant.name).limit(MOST_LOOKED)
        if after is not None:
            looked = looked.where(Tenant.name > after)
        async with self._database.read() as session:
            if organisation is not None:
                owner = await find_organisation(session, organisation)
                looked = looked.where(Tenant.organisation_id == owner.id)
            row = aliased(Tenant, looked.subquery())
            query = select(row).order_by(row.name).limit(page_size(limit) + 1)
            if text:
                query = query.where(func.lower(row.name).contains(text.lower(), autoescape=True))
            found = [tenant_of(one) for one in await session.scalars(query)]
            if len(found) > limit:
                return found[:limit], found[limit - 1].name
            last = looked.with_only_columns(Tenant.name).offset(MOST_LOOKED - 1).limit(1)
            return found, await session.scalar(last)

    async def tenants_by_id(self, ids: Collection[str]) -> dict[str, TenantRecord]:
        """Return the tenants of up to 1,000 ids; those that are not there are left out."""
        query = select(Tenant).where(Tenant.id.in_(sorted(ids)[:MAX_ROWS]))
        async with self._database.read() as session:
            return {row.id: tenant_of(row) for row in await session.scalars(query)}

    async def organisations_by_id(self, ids: Collection[str]) -> dict[str, OrganisationRecord]:
        """Return the organisations of up to 1,000 ids likewise."""
        query = select(Organisation).where(Organisation.id.in_(sorted(ids)[:MAX_ROWS]))
        async with self._database.read() as session:
            return {row.id: organisation_of(row) for row in await session.scalars(query)}

    async def get_tenant(self, name_or_id: str) -> TenantRecord:
        """Return one tenant by its id or its name; raises `NotFound`."""
        async with self._database.read() as session:
            return tenant_of(await find_tenant(session, name_or_id))

    async def change_tenant(
        self,
        name_or_id: str,
        now: datetime,
        *,
        tier: str | None = None,
        organisation: str | None = None,
        by: Actor = SYSTEM,
    ) -> TenantRecord:
        """Give a tenant another tier or another organisation (by name or id); None leaves it.

        What is asked of its keys from then on is served by the new tier, and counted with the new
        organisation; what was used stays billed as it was. Raises `NotFound`.
        """
        async with self._database.write() as session:
            row = await _locked(session, name_or_id)
            before = tenant_of(row)
            if tier is not None:
                await require_tier(session, tier)
            payer = None if organisation is None else await find_organisation(session, organisation)
            row.tier = row.tier if tier is None else tier
            row.organisation_id = row.organisation_id if payer is None else payer.id
            record = tenant_of(row)
            if record != before:
                change = Change("tenant.change", "tenant", row.id, before, record, row.id)
                write_audit(session, by, now, change)
                await tell_change(session)
        return record

    async def set_tenant_disabled(
        self, name_or_id: str, disabled: bool, now: datetime, *, by: Actor = SYSTEM
    ) -> TenantRecord:
        """Close or open the door for all keys of a tenant; raises `NotFound`."""
        async with self._database.write() as session:
            row = await _locked(session, name_or_id)
            before = tenant_of(row)
            row.disabled_at = (row.disabled_at or now) if disabled else None
            record = tenant_of(row)
            if record != before:
                action = "tenant.disable" if disabled else "tenant.enable"
                write_audit(
                    session, by, now, Change(action, "tenant", row.id, before, record, row.id)
                )
                await tell_change(session)
        return record


async def _locked(session: AsyncSession, name_or_id: str) -> Tenant:
    """Return a tenant's row that nobody else can change before this transaction is over."""
    row = await find_tenant(session, name_or_id)
    await session.refresh(row, with_for_update=True)
    return row
