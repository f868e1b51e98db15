"""The tables of SLO accounting as SQLAlchemy sees them: requests judged, and their sums.

What is asked of them is in tenants/slo_store.py. They refer to no other table: a row is the record
of something that happened, whatever becomes of its tenant or tier.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from tenants.models import Base, UtcDateTime

# What both databases must read in a query to use an index of the misses alone.
MISSED_SQLITE, MISSED_POSTGRESQL = text("met = 0"), text("met = false")


class SloRow(Base):
    """One request, judged (`tenants.slo.SloRecord`)."""

    __tablename__ = "slo_records"
    __table_args__ = (
        Index("ix_slo_records_tenant", "tenant_id", "arrival"),
        Index(
            "ix_slo_records_missed",
            "arrival",
            sqlite_where=MISSED_SQLITE,
            postgresql_where=MISSED_POSTGRESQL,
        ),
        Index(
            "ix_slo_records_tenant_missed",
            "tenant_id",
            "arrival",
            sqlite_where=MISSED_SQLITE,
            postgresql_where=MISSED_POSTGRESQL,
        ),
        Index("ix_slo_records_draw", "tier", "draw", "arrival"),
    )

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(128), index=True)
    tenant_id: Mapped[str] = mapped_column(String(32))
    key_id: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(256))
    operation: Mapped[str] = mapped_column(String(32))
    tier_asked: Mapped[str] = mapped_column(String(64))
    tier: Mapped[str] = mapped_column(String(64))
    tier_version: Mapped[int] = mapped_column(Integer)
    arrival: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    stream: Mapped[bool] = mapped_column(Boolean)
    prompt_tokens: Mapped[int] = mapped_column(Integer)
    output_tokens: Mapped[int] = mapped_column(Integer)
    total_ns: Mapped[int] = mapped_column(BigInteger)
    queue_ns: Mapped[int | None] = mapped_column(BigInteger)
    ttft_ns: Mapped[int | None] = mapped_column(BigInteger)
    ttft_due_ns: Mapped[int] = mapped_column(BigInteger)
    gaps: Mapped[int] = mapped_column(Integer)
    late_gaps: Mapped[int] = mapped_column(Integer)
    tbt_ns: Mapped[int] = mapped_column(BigInteger)
    tbt_mode: Mapped[str] = mapped_column(String(16))
    needed_tbt_ns: Mapped[int | None] = mapped_column(BigInteger)
    draw: Mapped[int] = mapped_column(Integer)
    met: Mapped[bool | None] = mapped_column(Boolean)
    ttft_met: Mapped[bool | None] = mapped_column(Boolean)
    tbt_met: Mapped[bool | None] = mapped_column(Boolean)
    available: Mapped[bool | None] = mapped_column(Boolean)
    eased: Mapped[bool] = mapped_column(Boolean)
    trace_id: Mapped[str] = mapped_column(String(32))


class SloCount(Base):
    """Requests added up (`tenants.slo.SloCounts`) of one minute, hour or day.

    An empty `tenant_id` is all tenants together: what is asked most must not add up five hundred.
    """

    __tablename__ = "slo_counts"
    __table_args__ = (Index("ix_slo_counts_start", "grain", "start"),)

    tenant_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    grain: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    start: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    tier: Mapped[str] = mapped_column(String(64), primary_key=True)
    offered: Mapped[int] = mapped_column(BigInteger)
    completed: Mapped[int] = mapped_column(BigInteger)
    disconnected: Mapped[int] = mapped_column(BigInteger)
    refused: Mapped[int] = mapped_column(BigInteger)
    limited: Mapped[int] = mapped_column(BigInteger)
    invalid: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    expired: Mapped[int] = mapped_column(BigInteger)
    downgraded: Mapped[int] = mapped_column(BigInteger)
    counted_all: Mapped[int] = mapped_column(BigInteger)
    bad_all: Mapped[int] = mapped_column(BigInteger)
    counted_ttft: Mapped[int] = mapped_column(BigInteger)
    bad_ttft: Mapped[int] = mapped_column(BigInteger)
    counted_tbt: Mapped[int] = mapped_column(BigInteger)
    bad_tbt: Mapped[int] = mapped_column(BigInteger)
    counted_availability: Mapped[int] = mapped_column(BigInteger)
    bad_availability: Mapped[int] = mapped_column(BigInteger)
    gaps: Mapped[int] = mapped_column(BigInteger)
    late_gaps: Mapped[int] = mapped_column(BigInteger)
