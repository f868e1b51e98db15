"""The tables of the ledger as SQLAlchemy sees them; what they are asked is not known here.

One description for SQLite and Postgres: every type is stated, every constraint has a name (without
names SQLite's batch mode cannot drop one), times are UTC. Alembic compares its migrations with it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenants.values import DEFAULT_ORGANISATION_ID

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: aware on the way in, aware UTC on the way out, also where SQLite forgets zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware moment into UTC; a naive one is a programming error."""
        if value is None:
            return None
        assert value.tzinfo is not None, "a moment without a time zone means nothing"
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return the stored moment as aware UTC."""
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """What all tables share."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Promise:
    """The columns of a tier that make up a version of it."""

    rank: Mapped[int] = mapped_column(Integer)
    ttft_ms: Mapped[int] = mapped_column(Integer)
    ttft_ms_per_1k_prompt_tokens: Mapped[int] = mapped_column(Integer)
    tbt_ms: Mapped[int] = mapped_column(Integer)
    tbt_mode: Mapped[str] = mapped_column(String(16))
    pace_ms: Mapped[int] = mapped_column(Integer)
    objective: Mapped[float] = mapped_column(Double)
    weight: Mapped[float] = mapped_column(Double)
    max_queue: Mapped[int | None] = mapped_column(Integer)
    max_output_tokens: Mapped[int | None] = mapped_column(Integer)
    on_overload: Mapped[str] = mapped_column(String(16))
    price_prompt_nano: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    price_cached_nano: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    price_output_nano: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    on_limiter_away: Mapped[str] = mapped_column(String(16), server_default="local")


class Tier(Promise, Base):
    """A class of service; a row, so that an operator can add one without a line of code."""

    __tablename__ = "tiers"
    __table_args__ = (
        CheckConstraint("rank >= 0", name="rank"),
        CheckConstraint("ttft_ms > 0 AND ttft_ms_per_1k_prompt_tokens >= 0", name="ttft"),
        CheckConstraint("tbt_ms > 0", name="tbt_ms"),
        CheckConstraint("tbt_mode IN ('gap', 'stream')", name="tbt_mode"),
        CheckConstraint("pace_ms >= 0", name="pace_ms"),
        CheckConstraint("objective > 0 AND objective <= 1", name="objective"),
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint("max_queue > 0", name="max_queue"),
        CheckConstraint("max_output_tokens > 0", name="max_output_tokens"),
        CheckConstraint("on_overload IN ('queue', 'reject', 'downgrade')", name="on_overload"),
        CheckConstraint("price_prompt_nano >= 0", name="price_prompt_nano"),
        CheckConstraint("price_cached_nano >= 0", name="price_cached_nano"),
        CheckConstraint("price_output_nano >= 0", name="price_output_nano"),
        CheckConstraint("on_limiter_away IN ('local', 'refuse')", name="on_limiter_away"),
    )

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)


class TierVersion(Promise, Base):
    """A tier as it once was; written with the change, and never changed: bills hang on it."""

    __tablename__ = "tier_versions"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Organisation(Base):
    """Who pays for one or more tenants."""

    __tablename__ = "organisations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Tenant(Base):
    """Someone who is served."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    tier: Mapped[str] = mapped_column(String(64), ForeignKey("tiers.name"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    organisation_id: Mapped[str] = mapped_column(
        String(32),
        ForeignKey("organisations.id"),
        index=True,
        server_default=DEFAULT_ORGANISATION_ID,
    )


class ApiKey(Base):
    """A key of a tenant: its digest, and as much of it as may be shown."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(32), ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    prefix: Mapped[str] = mapped_column(String(16))
    last4: Mapped[str] = mapped_column(String(4))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    pepper_id: Mapped[str] = mapped_column(String(16))
    # None as SQL NULL: JSON's own `null` would be a second way to say "every model".
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    scopes: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_by: Mapped[str | None] = mapped_column(String(128))
    rotated_from: Mapped[str | None] = mapped_column(String(32), ForeignKey("api_keys.id"))
    chain_id: Mapped[str] = mapped_column(String(32), index=True, server_default=text("''"))


class Limit(Base):
    """One limit of a key's chain, a tenant or an organisation; what has no row has no limit."""

    __tablename__ = "limits"
    __table_args__ = (
        CheckConstraint("scope IN ('key', 'tenant', 'organisation')", name="scope"),
        CheckConstraint("amount >= 0", name="amount"),
    )

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    target_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    # Empty: for all models together.
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(32), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class BudgetRow(Base):
    """What a key's chain, a tenant or an organisation may spend in one kind of window."""

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("scope IN ('key', 'tenant', 'organisation')", name="scope"),
        CheckConstraint("period IN ('day', 'week', 'month')", name="period"),
        CheckConstraint("unit IN ('tokens', 'nano')", name="unit"),
        CheckConstraint("amount >= 0", name="amount"),
        CheckConstraint("alert_percent > 0 AND alert_percent <= 100", name="alert_percent"),
    )

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    target_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    period: Mapped[str] = mapped_column(String(16), primary_key=True)
    unit: Mapped[str] = mapped_column(String(16), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    alert_percent: Mapped[int | None] = mapped_column(Integer)


class Usage(Base):
    """One request as it is billed; written in batches, so no foreign key can fail a whole batch."""

    __tablename__ = "usage"
    __table_args__ = (
        CheckConstraint(
            "cached_tokens >= 0 AND prompt_tokens >= cached_tokens AND output_tokens >= 0",
            name="tokens",
        ),
        CheckConstraint("late_tokens >= 0 AND preemptions >= 0", name="counts"),
        Index(None, "tenant_id", "arrival"),
    )

    request_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(32))
    key_id: Mapped[str] = mapped_column(String(32))
    tier_requested: Mapped[str] = mapped_column(String(64))
    tier_served: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(256))
    prompt_tokens: Mapped[int] = mapped_column(Integer)
    cached_tokens: Mapped[int] = mapped_column(Integer)
    output_tokens: Mapped[int] = mapped_column(Integer)
    finish_reason: Mapped[str] = mapped_column(String(32))
    stream: Mapped[bool] = mapped_column(Boolean)
    arrival: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    total_ms: Mapped[float] = mapped_column(Double)
    ttft_ms: Mapped[float | None] = mapped_column(Double)
    late_tokens: Mapped[int] = mapped_column(Integer)
    preemptions: Mapped[int] = mapped_column(Integer)
    slo_met: Mapped[bool | None] = mapped_column(Boolean)
    # Defaults are those of rows from before there were organisations and prices.
    organisation_id: Mapped[str] = mapped_column(String(32), server_default=DEFAULT_ORGANISATION_ID)
    tier_version: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    cost_nano: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class Counter(Base):
    """A number that grows with every change of something, so that a cache can ask cheaply."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class User(Base):
    """Someone who may use the admin surface; a password's argon2id digest, or OIDC, or both."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('owner', 'operator', 'viewer', 'tenant-viewer')", name="role"),
        CheckConstraint("(role = 'tenant-viewer') = (tenant_id IS NOT NULL)", name="tenant"),
        UniqueConstraint("name"),
        UniqueConstraint("oidc_subject"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    role: Mapped[str] = mapped_column(String(16))
    tenant_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("tenants.id"))
    password_digest: Mapped[str | None] = mapped_column(String(256))
    oidc_subject: Mapped[str | None] = mapped_column(String(256))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Session(Base):
    """A login, kept as the digest of its secret."""

    __tablename__ = "sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(32), ForeignKey("users.id"), index=True)
    authenticated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    address: Mapped[str] = mapped_column(String(64))


class Audit(Base):
    """One change; the databases themselves refuse to change or to delete a row (migration 0002)."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "tenant_id", "number"),)

    number: Mapped[int] = mapped_column(
        # Only a column of this very type counts up by itself on SQLite.
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    )
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    actor: Mapped[str] = mapped_column(String(128))
    actor_kind: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(32))
    target_id: Mapped[str] = mapped_column(String(128))
    tenant_id: Mapped[str | None] = mapped_column(String(32))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    request_id: Mapped[str] = mapped_column(String(128))
    result: Mapped[str] = mapped_column(String(64))
