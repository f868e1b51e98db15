"""What the ledger is asked about tiers, tenants and keys; values in, values out, no rows.

Every change that a cache of keys must notice also raises one counter in the same transaction, so
that a gateway learns of it with one cheap read (`keys_version`), on SQLite as on Postgres.
"""

from __future__ import annotations

import dataclasses
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.database import Database
from tenants.errors import AlreadyExists, InvalidValue, NotFound, PepperUnusable
from tenants.ids import new_id
from tenants.keys import (
    KeyEnvironment,
    TokenSource,
    display,
    generate_key,
    is_well_formed,
    key_digest,
)
from tenants.models import ApiKey, Counter, Tenant, Tier
from tenants.pepper import Pepper
from tenants.tiers import changed_tier, new_tier
from tenants.values import (
    IssuedKey,
    KeyRecord,
    KeyWithTenant,
    Overload,
    TenantRecord,
    TierRecord,
)

KEYS_COUNTER = "keys"
TOUCH_INTERVAL = timedelta(minutes=1)
MAX_MODELS_PER_KEY = 64
MAX_ROWS = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN = re.compile(r"(tgk_(?:live|test)_)\.*([0-9A-Za-z]{4})")


class Repository:
    """Reads and changes tiers, tenants and keys of one database."""

    def __init__(
        self, database: Database, pepper: Pepper, token_source: TokenSource = secrets
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._token_source = token_source

    @property
    def database(self) -> Database:
        """The database that this repository asks."""
        return self._database

    # tiers and tenants

    async def list_tiers(self) -> list[TierRecord]:
        """Return all tiers, the one served first in front."""
        async with self._database.read() as session:
            rows = await session.scalars(select(Tier).order_by(Tier.rank, Tier.name))
            return [_tier(row) for row in rows]

    async def create_tier(self, name: str, values: Mapping[str, str]) -> TierRecord:
        """Add a tier of these fields, as text; raises `InvalidValue`, `AlreadyExists`."""
        _check_name("tier", name)
        record = new_tier(name, values)
        try:
            async with self._database.write() as session:
                session.add(Tier(**dataclasses.asdict(record)))
                await _raise_keys_counter(session)
        except IntegrityError:
            raise AlreadyExists(f"there is a tier {name!r} already") from None
        return record

    async def change_tier(self, name: str, values: Mapping[str, str]) -> TierRecord:
        """Change fields of a tier, as text; raises `NotFound`, `InvalidValue`.

        Gateways that run serve what comes from now on by it.
        """
        async with self._database.write() as session:
            await _require_tier(session, name)
            row = await session.get_one(Tier, name)
            record = changed_tier(_tier(row), values)
            for field, value in dataclasses.asdict(record).items():
                setattr(row, field, value)
            await _raise_keys_counter(session)
        return record

    async def create_tenant(self, name: str, tier: str, now: datetime) -> TenantRecord:
        """Add a tenant of a tier.

        Raises `InvalidValue` for a bad name, `NotFound` for an unknown tier, `AlreadyExists`.
        """
        _check_name("tenant", name)
        row = Tenant(id=new_id(now), name=name, tier=tier, created_at=now, disabled_at=None)
        try:
            async with self._database.write() as session:
                await _require_tier(session, tier)
                session.add(row)
        except IntegrityError:
            raise AlreadyExists(f"there is a tenant {name!r} already") from None
        return _tenant(row)

    async def list_tenants(self) -> list[TenantRecord]:
        """Return up to 1,000 tenants by name."""
        async with self._database.read() as session:
            rows = await session.scalars(select(Tenant).order_by(Tenant.name).limit(MAX_ROWS))
            return [_tenant(row) for row in rows]

    async def get_tenant(self, name_or_id: str) -> TenantRecord:
        """Return one tenant by its id or its name; raises `NotFound`."""
        async with self._database.read() as session:
            return _tenant(await _find_tenant(session, name_or_id))

    async def set_tenant_disabled(
        self, name_or_id: str, disabled: bool, now: datetime
    ) -> TenantRecord:
        """Close or open the door for all keys of a tenant; raises `NotFound`."""
        async with self._database.write() as session:
            row = await _find_tenant(session, name_or_id)
            row.disabled_at = (row.disabled_at or now) if disabled else None
            await _raise_keys_counter(session)
        return _tenant(row)

    # keys

    def digest(self, plaintext: str) -> str:
        """Return the digest under which this ledger keeps a key."""
        return key_digest(self._pepper.secret, plaintext)

    async def create_key(
        self,
        tenant: str,
        now: datetime,
        name: str = "default",
        *,
        expires_at: datetime | None = None,
        models: Sequence[str] | None = None,
        env: KeyEnvironment = "live",
    ) -> IssuedKey:
        """Make a key for a tenant (by name or id); its plaintext is in the result and nowhere else.

        Raises `NotFound` for the tenant, `InvalidValue` for a bad name, date or model list.
        """
        _check_name("key", name)
        if expires_at is not None and expires_at <= now:
            raise InvalidValue(f"a key cannot expire in the past ({expires_at.isoformat()})")
        if models is not None and not (
            0 < len(models) <= MAX_MODELS_PER_KEY and all(0 < len(m) <= 256 for m in models)
        ):
            raise InvalidValue(f"a key may name 1 to {MAX_MODELS_PER_KEY} models")
        plaintext = generate_key(env, self._token_source)
        prefix, last4 = display(plaintext)
        async with self._database.write() as session:
            owner = await _find_tenant(session, tenant)
            row = ApiKey(
                id=new_id(now),
                tenant_id=owner.id,
                name=name,
                prefix=prefix,
                last4=last4,
                digest=self.digest(plaintext),
                pepper_id=self._pepper.id,
                models=None if models is None else sorted(set(models)),
                created_at=now,
                expires_at=expires_at,
                revoked_at=None,
                last_used_at=None,
            )
            session.add(row)
            # A gateway may have remembered that nobody knows this digest.
            await _raise_keys_counter(session)
        return IssuedKey(plaintext=plaintext, record=_key(row))

    async def find_key(self, plaintext: str) -> KeyWithTenant | None:
        """Return the key with its tenant and tier; a mistyped key costs no database work."""
        if not is_well_formed(plaintext):
            return None
        return await self.find_key_by_digest(self.digest(plaintext))

    async def find_key_by_digest(self, digest: str) -> KeyWithTenant | None:
        """Return the key with its tenant and tier, revoked and expired ones too; None if unknown.

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
        return KeyWithTenant(_key(row[0]), _tenant(row[1]), _tier(row[2]))

    async def list_keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Return up to 1,000 keys, of one tenant (by name or id) or of all, newest first."""
        query = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(MAX_ROWS)
        async with self._database.read() as session:
            if tenant is not None:
                query = query.where(ApiKey.tenant_id == (await _find_tenant(session, tenant)).id)
            return [_key(row) for row in await session.scalars(query)]

    async def revoke_key(self, which: str, now: datetime) -> KeyRecord:
        """Close the door for one key, named by its id, in clear, or as shown (`tgk_live_...x7Qa`).

        Revoking a revoked key changes nothing. Raises `NotFound`; `InvalidValue` when the shown
        form fits more than one key.
        """
        async with self._database.write() as session:
            rows = (await session.scalars(select(ApiKey).where(self._named(which)))).all()
            open_rows = [row for row in rows if row.revoked_at is None]
            if len(open_rows) > 1:
                ids = ", ".join(row.id for row in open_rows)
                raise InvalidValue(f"{which} fits several keys; name one by its id: {ids}")
            if not rows:
                raise NotFound("there is no such key")
            row = (open_rows or rows)[0]
            if row.revoked_at is None:
                row.revoked_at = now
                await _raise_keys_counter(session)
        return _key(row)

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
        """Return a number that grows with every change of a key or of a tenant's door."""
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

    def _named(self, which: str) -> ColumnElement[bool]:
        if is_well_formed(which):
            return ApiKey.digest == self.digest(which)
        shown = _SHOWN.fullmatch(which)
        if shown is not None:
            return (ApiKey.prefix == shown[1]) & (ApiKey.last4 == shown[2])
        return ApiKey.id == which


def _check_name(what: str, name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidValue(
            f"a {what}'s name has 1 to 64 letters, digits, dots, dashes or underscores, "
            "and starts with a letter or a digit"
        )


async def _require_tier(session: AsyncSession, name: str) -> None:
    if await session.get(Tier, name) is None:
        known = await session.scalars(select(Tier.name).order_by(Tier.rank))
        raise NotFound(f"there is no tier {name!r}; there are: {', '.join(known)}")


async def _find_tenant(session: AsyncSession, name_or_id: str) -> Tenant:
    # A name may look like an id of another tenant; the name is what people type, so it goes first.
    for column in (Tenant.name, Tenant.id):
        row = await session.scalar(select(Tenant).where(column == name_or_id))
        if row is not None:
            return row
    raise NotFound(f"there is no tenant {name_or_id!r}")


async def _raise_keys_counter(session: AsyncSession) -> None:
    change = update(Counter).where(Counter.name == KEYS_COUNTER).values(value=Counter.value + 1)
    await session.execute(change)


def _tier(row: Tier) -> TierRecord:
    return TierRecord(
        name=row.name,
        rank=row.rank,
        ttft_ms=row.ttft_ms,
        ttft_ms_per_1k_prompt_tokens=row.ttft_ms_per_1k_prompt_tokens,
        tbt_ms=row.tbt_ms,
        tbt_mode=row.tbt_mode,
        pace_ms=row.pace_ms,
        objective=row.objective,
        weight=row.weight,
        max_queue=row.max_queue,
        max_output_tokens=row.max_output_tokens,
        on_overload=Overload(row.on_overload),
        version=row.version,
    )


def _tenant(row: Tenant) -> TenantRecord:
    return TenantRecord(row.id, row.name, row.tier, row.created_at, row.disabled_at)


def _key(row: ApiKey) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        prefix=row.prefix,
        last4=row.last4,
        models=None if row.models is None else tuple(row.models),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
