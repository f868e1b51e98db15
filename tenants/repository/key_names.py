"""Finds the key that an operator means, by its id, in clear or as it is shown; it changes none."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.errors import InvalidValue, NotFound
from tenants.keys import is_well_formed, key_digest
from tenants.models import ApiKey
from tenants.repository.common import Part, find_tenant

_SHOWN = re.compile(r"(tgk_(?:live|test)_)\.*([0-9A-Za-z]{4})")


class KeyNames(Part):
    """How keys are named."""

    def digest(self, plaintext: str) -> str:
        """Return the digest under which this ledger keeps a key."""
        return key_digest(self._pepper.secret, plaintext)

    async def _key_row(self, session: AsyncSession, which: str, tenant: str | None) -> ApiKey:
        """Return the row; with `tenant`, keys of others are not seen."""
        query = select(ApiKey).where(self._named(which))
        if tenant is not None:
            query = query.where(ApiKey.tenant_id == (await find_tenant(session, tenant)).id)
        rows = (await session.scalars(query)).all()
        open_rows = [row for row in rows if row.revoked_at is None]
        if len(open_rows) > 1:
            ids = ", ".join(row.id for row in open_rows)
            raise InvalidValue(f"{which} fits several keys; name one by its id: {ids}")
        if not rows:
            raise NotFound("there is no such key")
        return (open_rows or list(rows))[0]

    def _named(self, which: str) -> ColumnElement[bool]:
        if is_well_formed(which):
            return ApiKey.digest == self.digest(which)
        shown = _SHOWN.fullmatch(which)
        if shown is not None:
            return (ApiKey.prefix == shown[1]) & (ApiKey.last4 == shown[2])
        return ApiKey.id == which
