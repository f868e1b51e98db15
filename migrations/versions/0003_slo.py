"""What promises are judged by: one row for each request offered, and their sums by time.

Revision 0003, after 0002; 2026-11-22. Two new tables: nothing that is there is touched.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COUNTS = (
    "offered",
    "completed",
    "disconnected",
    "refused",
    "limited",
    "invalid",
    "failed",
    "expired",
    "downgraded",
    "counted_all",
    "bad_all",
    "counted_ttft",
    "bad_ttft",
    "counted_tbt",
    "bad_tbt",
    "counted_availability",
    "bad_availability",
    "gaps",
    "late_gaps",
)
MISSED_SQLITE, MISSED_POSTGRESQL = sa.text("met = 0"), sa.text("met = false")


def upgrade() -> None:
    create_records()
    op.create_table(
        "slo_counts",
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("grain", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tier", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.PrimaryKeyConstraint("tenant_id", "grain", "start", "tier", name=op.f("pk_slo_counts")),
    )
    op.create_index("ix_slo_counts_start", "slo_counts", ["grain", "start"])


def create_records() -> None:
    op.create_table(
        "slo_records",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("operation", sa.String(32), nullable=False),
        sa.Column("tier_asked", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(64), nullable=False),
        sa.Column("tier_version", sa.Integer(), nullable=False),
        sa.Column("arrival", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("output_tokens", sa.Integer(), nullable=False),
        sa.Column("total_ns", sa.BigInteger(), nullable=False),
        sa.Column("queue_ns", sa.BigInteger(), nullable=True),
        sa.Column("ttft_ns", sa.BigInteger(), nullable=True),
        sa.Column("ttft_due_ns", sa.BigInteger(), nullable=False),
        sa.Column("gaps", sa.Integer(), nullable=False),
        sa.Column("late_gaps", sa.Integer(), nullable=False),
        sa.Column("tbt_ns", sa.BigInteger(), nullable=False),
        sa.Column("tbt_mode", sa.String(16), nullable=False),
        sa.Column("needed_tbt_ns", sa.BigInteger(), nullable=True),
        sa.Column("draw", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.Boolean(), nullable=True)
            for name in ("met", "ttft_met", "tbt_met", "available")
        ),
        sa.Column("eased", sa.Boolean(), nullable=False),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slo_records")),
    )
    op.create_index(op.f("ix_slo_records_request_id"), "slo_records", ["request_id"])
    op.create_index(op.f("ix_slo_records_arrival"), "slo_records", ["arrival"])
    op.create_index("ix_slo_records_tenant", "slo_records", ["tenant_id", "arrival"])
    op.create_index(
        "ix_slo_records_missed",
        "slo_records",
        ["arrival"],
        sqlite_where=MISSED_SQLITE,
        postgresql_where=MISSED_POSTGRESQL,
    )
    op.create_index(
        "ix_slo_records_tenant_missed",
        "slo_records",
        ["tenant_id", "arrival"],
        sqlite_where=MISSED_SQLITE,
        postgresql_where=MISSED_POSTGRESQL,
    )
    op.create_index("ix_slo_records_draw", "slo_records", ["tier", "draw", "arrival"])


def downgrade() -> None:
    op.drop_table("slo_counts")
    op.drop_table("slo_records")
