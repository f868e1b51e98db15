"""Turns rows into the values that leave the ledger; it asks nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

from tenants.models import ApiKey, Audit, Organisation, Promise, Tenant, Tier, TierVersion, User
from tenants.values import (
    AuditRecord,
    KeyRecord,
    LimiterAway,
    OrganisationRecord,
    Overload,
    Role,
    Route,
    TenantRecord,
    TierRecord,
    UserRecord,
)
from tenants.values import (
    TierVersion as TierVersionRecord,
)

_TIER_FIELDS = tuple(field.name for field in dataclasses.fields(TierRecord))
_AUDIT_FIELDS = tuple(field.name for field in dataclasses.fields(AuditRecord))


def tier_of(row: Tier | TierVersion) -> TierRecord:
    """Return a tier, or one of its versions, as a value."""
    assert isinstance(row, Promise)
    values = {name: getattr(row, name) for name in _TIER_FIELDS}
    values["on_overload"] = Overload(row.on_overload)
    values["on_limiter_away"] = LimiterAway(row.on_limiter_away)
    return TierRecord(**values)


def tier_columns(record: TierRecord) -> dict[str, Any]:
    """Return a tier as its columns."""
    return {name: getattr(record, name) for name in _TIER_FIELDS}


def version_of(row: TierVersion) -> TierVersionRecord:
    """Return a version of a tier."""
    return TierVersionRecord(tier_of(row), row.changed_at)


def organisation_of(row: Organisation) -> OrganisationRecord:
    """Return an organisation."""
    return OrganisationRecord(row.id, row.name, row.created_at)


def tenant_of(row: Tenant) -> TenantRecord:
    """Return a tenant."""
    return TenantRecord(
        row.id, row.name, row.tier, row.created_at, row.disabled_at, row.organisation_id
    )


def key_of(row: ApiKey) -> KeyRecord:
    """Return a key without its digest."""
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
        scopes=None if row.scopes is None else tuple(Route(name) for name in row.scopes),
        created_by=row.created_by,
        rotated_from=row.rotated_from,
        chain_id=row.chain_id or row.id,
    )


def user_of(row: User) -> UserRecord:
    """Return a user without the digest of the password."""
    return UserRecord(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        tenant_id=row.tenant_id,
        oidc_subject=row.oidc_subject,
        has_password=row.password_digest is not None,
        disabled_at=row.disabled_at,
    )


def audit_of(row: Audit) -> AuditRecord:
    """Return one entry of the audit."""
    return AuditRecord(**{name: getattr(row, name) for name in _AUDIT_FIELDS})
