"""Writes down who changed what, within the change's own transaction, and reads it out again.

What is written is what leaves the ledger as values, so it holds no digest and no key; fields that
are secret by their name are masked all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from tenants.models import Audit
from tenants.repository.common import MAX_ROWS, Part, find_tenant
from tenants.repository.rows import audit_of
from tenants.values import Actor, AuditRecord

OK = "ok"
MASK = "***"
SECRET = ("password", "secret", "digest", "plaintext", "token", "pepper", "salt")
_PAGE = 500
MOST_LOOKED = 5000
MOST_NUMBER = 2**63 - 1
# Transactions under way at once take numbers and moments in other orders, by seconds at most.
OVERLAP = timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What is done to which thing; `before` None: it is new, `after` None: it is gone."""

    action: str
    target: str
    target_id: str
    before: Any = None
    after: Any = None
    tenant_id: str | None = None
    result: str = OK


def write_audit(session: AsyncSession, by: Actor, now: datetime, change: Change) -> None:
    """Add a row to the audit; it is kept if, and only if, the transaction is."""
    session.add(
        Audit(
            at=now,
            actor=by.name[:128],
            actor_kind=by.kind,
            address=by.address[:64],
            action=change.action,
            target=change.target,
            target_id=change.target_id[:128],
            tenant_id=change.tenant_id,
            before=masked(change.before),
            after=masked(change.after),
            request_id=by.request_id[:128],
            result=change.result[:64],
        )
    )


def masked(value: Any) -> Any:
    """Return a value as JSON holds it, with everything that is secret by its name masked."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {
            name: MASK if _is_secret(name, inner) else masked(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, Enum) else value


def _is_secret(name: str, value: Any) -> bool:
    # Whether there is a password is no secret, and how many tokens neither.
    if value is None or isinstance(value, bool | int):
        return False
    return any(word in name for word in SECRET)


class Audits(Part):
    """Reads the audit, and writes what is no change: a refusal, a login, a look at content."""

    async def write_event(self, by: Actor, now: datetime, change: Change) -> None:
        """Write down something that happened without changing anything in the ledger."""
        async with self._database.write() as session:
            write_audit(session, by, now, change)

    async def list_audit(
        self,
        *,
        tenant: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditRecord]:
        """Return up to `limit` (at most 1,000) entries of [since, until), the latest first.

        `tenant` (by name or id) leaves only what is that tenant's; `before` is the number to go on
        from. Raises `NotFound` for the tenant.
        """
        async with self._database.read() as session:
            tenant_id = None if tenant is None else (await find_tenant(session, tenant)).id
            query = _matching(tenant_id, actor, action, since, until)
            if before is not None:
                query = query.where(Audit.number < before)
            query = query.order_by(Audit.number.desc()).limit(max(0, min(limit, MAX_ROWS)))
            return [audit_of(row) for row in await session.scalars(query)]

    async def search_audit(
        self,
        *,
        tenant: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> tuple[list[AuditRecord], int | None]:
        """Return entries as `list_audit` does, and the number to go on before; None: the end.

        It looks at 5,000 entries a call, however rare what is looked for: fewer than `limit` may
        be found, or none, and there may still be more. Raises `NotFound` for the tenant.
        """
        async with self._database.read() as session:
            tenant_id = None if tenant is None else (await find_tenant(session, tenant)).id
            looked = _matching(tenant_id, None, None, None, None)
            if before is not None:
                looked = looked.where(Audit.number < before)
            if until is not None:
                looked = looked.where(Audit.number < await _first_number(session, until))
            looked = looked.order_by(Audit.number.desc()).limit(MOST_LOOKED)
            row = aliased(Audit, looked.subquery())
            query = select(row).order_by(row.number.desc()).limit(limit + 1)
            for column, value in ((row.actor, actor), (row.action, action)):
                if value is not None:
                    query = query.where(column == value)
            if since is not None:
                query = query.where(row.at >= since)
            if until is not None:
                query = query.where(row.at < until)
            found = [audit_of(one) for one in await session.scalars(query)]
            if len(found) > limit:
                return found[:limit], found[limit - 1].number
            last = looked.with_only_columns(Audit.number, Audit.at).offset(MOST_LOOKED - 1)
            end = (await session.execute(last.limit(1))).first()
        # Numbers and moments grow together but for a moment's overlap: beyond `since` is nothing.
        is_over = end is None or (since is not None and end[1] < since - OVERLAP)
        return found, None if end is None or is_over else int(end[0])

    async def read_audit(
        self,
        *,
        tenant: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[AuditRecord]:
        """Yield all entries of [since, until), the oldest first, a page at a time."""
        last = 0
        async with self._database.read() as session:
            tenant_id = None if tenant is None else (await find_tenant(session, tenant)).id
        while True:
            query = _matching(tenant_id, None, None, since, until).where(Audit.number > last)
            async with self._database.read() as session:
                rows = (await session.scalars(query.order_by(Audit.number).limit(_PAGE))).all()
            for row in rows:
                last = row.number
                yield audit_of(row)
            if len(rows) < _PAGE:
                return


async def _first_number(session: AsyncSession, moment: datetime) -> int:
    """Return a number that all entries from before `moment` are below."""
    later = select(Audit.number).where(Audit.at >= moment + OVERLAP)
    found = await session.scalar(later.order_by(Audit.at).limit(1))
    return MOST_NUMBER if found is None else found


def _matching(
    tenant_id: str | None,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Select[Audit]:
    query = select(Audit)
    if tenant_id is not None:
        query = query.where(Audit.tenant_id == tenant_id)
    if actor is not None:
        query = query.where(Audit.actor == actor)
    if action is not None:
        query = query.where(Audit.action == action)
    if since is not None:
        query = query.where(Audit.at >= since)
    if until is not None:
        query = query.where(Audit.at < until)
    return query
