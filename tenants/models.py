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
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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


class Tier(Base):
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
    )

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
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
    version: Mapped[int] = mapped_column(Integer)


class Tenant(Base):
    """Someone who is served."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    tier: Mapped[str] = mapped_column(String(64), ForeignKey("tiers.name"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


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


class Counter(Base):
    """A number that grows with every change of something, so that a cache can ask cheaply."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
