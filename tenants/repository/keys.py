"""Keys: made, found, rotated and revoked; what a route or a limit means is not known here.

Rotation makes a new key in the same chain and lets the old one expire after the overlap. A chain
has at most two live keys, and one set of limits, so that a rotation gives no second allowance.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.errors import InvalidValue, PepperUnusable
from tenants.ids import new_id
from tenants.keys import KeyEnvironment, display, generate_key, is_well_formed, key_digest
from tenants.limits import changed_budgets, check_limits
from tenants.models import ApiKey, Counter, Tenant, Tier
from tenants.repository.allowances import limits_of, write_limits
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import (
    KEYS_COUNTER,
    MAX_ROWS,
    check_name,
    find_tenant,
    page_size,
    tell_change,
)
from tenants.repository.key_changes import KeyChanges, check_end, checked_models, checked_scopes
from tenants.repository.rows import key_of, tenant_of, tier_of
from tenants.values import (
    SYSTEM,
    Actor,
    Budget,
    IssuedKey,
    KeyRecord,
    KeyWithTenant,
    Limits,
    Route,
    Scope,
    ScopeLimits,
)

TOUCH_INTERVAL = timedelta(minutes=1)
MAX_OVERLAP = timedelta(days=90)
LIVE_KEYS_PER_CHAIN = 2
CODE_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new key in clear, for the only time, and the old one with the end it now has."""

    issued: IssuedKey
    old: KeyRecord


@dataclass(frozen=True, slots=True)
class RevocationPlan:
    """What revoking all keys of a tenant would close; `code` confirms exactly this set."""

    tenant_id: str
    keys: tuple[KeyRecord, ...]
    code: str


class Keys(KeyChanges):
    """What is asked about keys."""

    async def create_key(
        self,
        tenant: str,
        now: datetime,
        name: str = "default",
        *,
        expires_at: datetime | None = None,
        models: Sequence[str] | None = None,
        scopes: Iterable[Route] | None = None,
        limits: Limits | None = None,
        budgets: Sequence[Budget] = (),
        env: KeyEnvironment = "live",
        by: Actor = SYSTEM,
    ) -> IssuedKey:
        """Make a key for a tenant (by name or id); its plaintext is in the result and nowhere else.

        Raises `NotFound` for the tenant, `InvalidValue` for a bad name, date, list or limit.
        """
        check_name("a key", name)
        check_end(expires_at, now)
        allowed_models, routes = checked_models(models), checked_scopes(scopes)
        limits = limits or Limits()
        check_limits(limits)
        allowed = changed_budgets((), budgets)
        async with self._database.write() as session:
            owner = await find_tenant(session, tenant)
            plaintext, row = self._new_row(owner.id, now, name, env)
            row.models, row.scopes = allowed_models, routes
            row.expires_at, row.created_by = expires_at, by.name[:128]
            session.add(row)
            record = key_of(row)
            write_audit(session, by, now, _change("key.create", None, record))
            mine = ScopeLimits(Scope.KEY, row.chain_id, limits, allowed)
            if mine != ScopeLimits(Scope.KEY, row.chain_id):
                await write_limits(session, mine)
                change = Change("limits.set", "key", row.chain_id, None, mine, owner.id)
                write_audit(session, by, now, change)
            # A gateway may have remembered that nobody knows this digest.
            await tell_change(session)
        return IssuedKey(plaintext=plaintext, record=record)

    def _new_row(
        self, tenant_id: str, now: datetime, name: str, env: KeyEnvironment
    ) -> tuple[str, ApiKey]:
        plaintext = generate_key(env, self._token_source)
        prefix, last4 = display(plaintext)
        key_id = new_id(now)
        row = ApiKey(
            id=key_id,
            tenant_id=tenant_id,
            name=name,
            prefix=prefix,
            last4=last4,
            digest=self.digest(plaintext),
            pepper_id=self._pepper.id,
            created_at=now,
            chain_id=key_id,
        )
        return plaintext, row

    async def find_key(self, plaintext: str) -> KeyWithTenant | None:
        """Return the key with its tenant and tier; a mistyped key costs no database work."""
        if not is_well_formed(plaintext):
            return None
        return await self.find_key_by_digest(self.digest(plaintext))

    async def find_key_by_digest(self, digest: str) -> KeyWithTenant | None:
        """Return the key, its tenant, tier and limits, revoked and expired ones too; None: unknown.

        Whether it opens the door is `KeyWithTenant.state(now)`.
        """
        query = (
            select(ApiKey, Tenant, Tier)
            .join(Tenant, Tenant.id == ApiKey.tenant_id)
            .join(Tier, Tier.name == Tenant.tier)
            .where(ApiKey.digest == digest)
        )
        async with self._database.read() as session:
            row = (await session.execute(query)).one_or_none()
            if row is None or not hmac.compare_digest(row[0].digest, digest):
                return None
            key, tenant = key_of(row[0]), tenant_of(row[1])
            targets = (
                (Scope.KEY, key.chain_id),
                (Scope.TENANT, tenant.id),
                (Scope.ORGANISATION, tenant.organisation_id),
            )
            return KeyWithTenant(key, tenant, tier_of(row[2]), await limits_of(session, targets))

    async def list_keys(
        self, tenant: str | None = None, *, before: str | None = None, limit: int = MAX_ROWS
    ) -> list[KeyRecord]:
        """Return up to `limit` (at most 1,000) keys, of one tenant (by name or id) or of all.

        The newest first, from those older than the key of the id `before` on.
        """
        # Ids begin with the moment they were made.
        query = select(ApiKey).order_by(ApiKey.id.desc()).limit(page_size(limit))
        if before is not None:
            query = query.where(ApiKey.id < before)
        async with self._database.read() as session:
            if tenant is not None:
                query = query.where(ApiKey.tenant_id == (await find_tenant(session, tenant)).id)
            return [key_of(row) for row in await session.scalars(query)]

    async def keys_by_id(self, ids: Collection[str]) -> dict[str, KeyRecord]:
        """Return the keys of up to 1,000 ids; those that are not there are left out."""
        query = select(ApiKey).where(ApiKey.id.in_(sorted(ids)[:MAX_ROWS]))
        async with self._database.read() as session:
            return {row.id: key_of(row) for row in await session.scalars(query)}

    async def get_key(self, which: str, *, tenant: str | None = None) -> KeyRecord:
        """Return one key, named as for `revoke_key`; raises `NotFound`, `InvalidValue`."""
        async with self._database.read() as session:
            return key_of(await self._key_row(session, which, tenant))

    async def revoke_key(
        self, which: str, now: datetime, *, tenant: str | None = None, by: Actor = SYSTEM
    ) -> KeyRecord:
        """Close the door for one key, named by its id, in clear, or as shown (`tgk_live_...x7Qa`).

        With `tenant` (by name or id), keys of others are not seen. Revoking a revoked key changes
        nothing. Raises `NotFound`; `InvalidValue` when the shown form fits more than one key.
        """
        async with self._database.write() as session:
            row = await self._key_row(session, which, tenant)
            if row.revoked_at is None:
                _revoke(session, row, now, by)
                await tell_change(session)
        return key_of(row)

    async def rotate_key(
        self,
        which: str,
        now: datetime,
        overlap: timedelta,
        *,
        tenant: str | None = None,
        by: Actor = SYSTEM,
    ) -> Rotation:
        """Make the key's successor, and let the key itself expire after `overlap`.

        The new key may do what the old one may, under the same limits, and lives as long as the
        old one was made to live. Raises `NotFound`; `InvalidValue` for a key that is over, a
        chain that has two live keys already, or an overlap that is negative or above 90 days.
        """
        if not timedelta(0) <= overlap <= MAX_OVERLAP:
            raise InvalidValue(f"the overlap must be 0 to {MAX_OVERLAP.days} days")
        async with self._database.write() as session:
            old = await self._key_row(session, which, tenant)
            # Two rotations at once take turns at the chain's first key, then look at the chain.
            chain = select(ApiKey).where(ApiKey.chain_id == old.chain_id)
            await session.execute(chain.where(ApiKey.id == old.chain_id).with_for_update())
            fresh = chain.execution_options(populate_existing=True)
            live = [row for row in await session.scalars(fresh) if key_of(row).is_live(now)]
            if old not in live:
                raise InvalidValue(f"key {old.id} is revoked or expired: make a new one instead")
            if len(live) >= LIVE_KEYS_PER_CHAIN:
                others = ", ".join(row.id for row in live if row is not old)
                raise InvalidValue(
                    f"key {old.id} is being rotated already: {others} is alive too; "
                    "wait until one has expired, or revoke it"
                )
            before = key_of(old)
            env: KeyEnvironment = "test" if old.prefix == "tgk_test_" else "live"
            plaintext, row = self._new_row(old.tenant_id, now, old.name, env)
            row.models, row.scopes = old.models, old.scopes
            row.chain_id, row.rotated_from, row.created_by = old.chain_id, old.id, by.name[:128]
            if old.expires_at is not None:
                row.expires_at = now + (old.expires_at - old.created_at)
            end = now + overlap
            old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
            session.add(row)
            record, ended = key_of(row), key_of(old)
            write_audit(session, by, now, _change("key.rotate", before, ended))
            write_audit(session, by, now, _change("key.create", None, record))
            await tell_change(session)
        return Rotation(IssuedKey(plaintext=plaintext, record=record), ended)

    async def plan_revocation(self, tenant: str, now: datetime) -> RevocationPlan:
        """Step one of revoking all keys of a tenant: which they are, and the code for step two."""
        async with self._database.read() as session:
            owner = await find_tenant(session, tenant)
            return self._plan(owner.id, await _live_rows(session, owner.id, now))

    async def revoke_all(
        self, tenant: str, code: str, now: datetime, *, by: Actor = SYSTEM
    ) -> list[KeyRecord]:
        """Step two: close the door for all keys of a tenant that step one has shown.

        Raises `InvalidValue` where `code` is not that of the keys alive now; nothing is changed.
        """
        async with self._database.write() as session:
            owner = await find_tenant(session, tenant)
            rows = await _live_rows(session, owner.id, now)
            if not hmac.compare_digest(self._plan(owner.id, rows).code.encode(), code.encode()):
                raise InvalidValue(
                    f"that code does not confirm the {len(rows)} live keys of tenant "
                    f"{owner.name}: ask for them again, and use the code shown with them"
                )
            for row in rows:
                _revoke(session, row, now, by)
            await tell_change(session)
            return [key_of(row) for row in rows]

    def _plan(self, tenant_id: str, rows: Sequence[ApiKey]) -> RevocationPlan:
        said = "\0".join(["revoke all", tenant_id, *sorted(row.id for row in rows)])
        code = key_digest(self._pepper.secret, said)[:CODE_LENGTH]
        return RevocationPlan(tenant_id, tuple(key_of(row) for row in rows), code)

    async def touch_key(self, key_id: str, now: datetime) -> bool:
        """Note that a key was used, at most once a minute; True when it was written."""
        due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - TOUCH_INTERVAL)
        change = (
            update(ApiKey)
            .where(ApiKey.id == key_id, due)
            .values(last_used_at=now)
            .returning(ApiKey.id)
        )
        async with self._database.write() as session:
            return (await session.execute(change)).first() is not None

    async def keys_version(self) -> int:
        """Return a number that grows with every change that a gateway's memory must notice."""
        async with self._database.read() as session:
            value = await session.scalar(select(Counter.value).where(Counter.name == KEYS_COUNTER))
        assert value is not None, "the first migration seeds this counter"
        return value

    async def check_pepper(self) -> None:
        """Raise `PepperUnusable` when keys are in force and all were made with another pepper."""
        query = (
            select(ApiKey.pepper_id, func.count())
            .where(ApiKey.revoked_at.is_(None))
            .group_by(ApiKey.pepper_id)
        )
        async with self._database.read() as session:
            counts = (await session.execute(query)).all()
        if counts and self._pepper.id not in {pepper_id for pepper_id, _ in counts}:
            others = ", ".join(f"{count} with {pepper_id}" for pepper_id, count in counts)
            raise PepperUnusable(
                f"pepper {self._pepper.id} is not the one that the keys of "
                f"{self._database.name} were made with ({others}): restore the pepper file"
            )


async def _live_rows(session: AsyncSession, tenant_id: str, now: datetime) -> list[ApiKey]:
    query = (
        select(ApiKey)
        .where(ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
        .order_by(ApiKey.id)
    )
    return [row for row in await session.scalars(query) if key_of(row).is_live(now)]


def _revoke(session: AsyncSession, row: ApiKey, now: datetime, by: Actor) -> None:
    before = key_of(row)
    row.revoked_at = now
    write_audit(session, by, now, _change("key.revoke", before, key_of(row)))


def _change(action: str, before: KeyRecord | None, after: KeyRecord) -> Change:
    return Change(action, "key", after.id, before, after, after.tenant_id)
