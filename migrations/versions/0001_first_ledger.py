"""The first ledger: tiers with the two that are seeded, tenants, keys, usage, counters.

Revision 0001, after nothing; 2026-11-21.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# What the two tiers promise; an operator may change the rows and add others.
SEEDS = (
    {
        "name": "premium",
        "rank": 0,
        "ttft_ms": 500,
        "ttft_ms_per_1k_prompt_tokens": 250,
        "tbt_ms": 100,
        "tbt_mode": "gap",
        "pace_ms": 0,
        "objective": 0.99,
        "weight": 1.0,
        "max_queue": 256,
        "max_output_tokens": None,
        "on_overload": "queue",
        "version": 1,
    },
    {
        "name": "free",
        "rank": 1,
        "ttft_ms": 2000,
        "ttft_ms_per_1k_prompt_tokens": 1000,
        "tbt_ms": 500,
        "tbt_mode": "stream",
        "pace_ms": 0,
        "objective": 0.95,
        "weight": 1.0,
        "max_queue": 256,
        "max_output_tokens": None,
        "on_overload": "queue",
        "version": 1,
    },
)


def upgrade() -> None:
    tiers = create_tiers()
    op.bulk_insert(tiers, [dict(seed) for seed in SEEDS])
    create_tenants()
    create_api_keys()
    create_usage()
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.bulk_insert(counters, [{"name": "keys", "value": 0}])


def create_tiers() -> sa.Table:
    return op.create_table(
        "tiers",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("ttft_ms", sa.Integer(), nullable=False),
        sa.Column("ttft_ms_per_1k_prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("tbt_ms", sa.Integer(), nullable=False),
        sa.Column("tbt_mode", sa.String(16), nullable=False),
        sa.Column("pace_ms", sa.Integer(), nullable=False),
        sa.Column("objective", sa.Double(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("max_queue", sa.Integer(), nullable=True),
        sa.Column("max_output_tokens", sa.Integer(), nullable=True),
        sa.Column("on_overload", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tiers")),
        sa.CheckConstraint("rank >= 0", name=op.f("ck_tiers_rank")),
        sa.CheckConstraint(
            "ttft_ms > 0 AND ttft_ms_per_1k_prompt_tokens >= 0", name=op.f("ck_tiers_ttft")
        ),
        sa.CheckConstraint("tbt_ms > 0", name=op.f("ck_tiers_tbt_ms")),
        sa.CheckConstraint("tbt_mode IN ('gap', 'stream')", name=op.f("ck_tiers_tbt_mode")),
        sa.CheckConstraint("pace_ms >= 0", name=op.f("ck_tiers_pace_ms")),
        sa.CheckConstraint("objective > 0 AND objective <= 1", name=op.f("ck_tiers_objective")),
        sa.CheckConstraint("weight > 0", name=op.f("ck_tiers_weight")),
        sa.CheckConstraint("max_queue > 0", name=op.f("ck_tiers_max_queue")),
        sa.CheckConstraint("max_output_tokens > 0", name=op.f("ck_tiers_max_output_tokens")),
        sa.CheckConstraint(
            "on_overload IN ('queue', 'reject', 'downgrade')", name=op.f("ck_tiers_on_overload")
        ),
    )


def create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
        sa.ForeignKeyConstraint(["tier"], ["tiers.name"], name=op.f("fk_tenants_tier_tiers")),
    )
    op.create_index(op.f("ix_tenants_tier"), "tenants", ["tier"])


def create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("last4", sa.String(4), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("pepper_id", sa.String(16), nullable=False),
        sa.Column("models", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id_tenants")
        ),
    )
    op.create_index(op.f("ix_api_keys_tenant_id"), "api_keys", ["tenant_id"])


def create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("tier_requested", sa.String(64), nullable=False),
        sa.Column("tier_served", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("output_tokens", sa.Integer(), nullable=False),
        sa.Column("finish_reason", sa.String(32), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("arrival", sa.DateTime(timezone=True), nullable=False),
        sa.Column("total_ms", sa.Double(), nullable=False),
        sa.Column("ttft_ms", sa.Double(), nullable=True),
        sa.Column("late_tokens", sa.Integer(), nullable=False),
        sa.Column("preemptions", sa.Integer(), nullable=False),
        sa.Column("slo_met", sa.Boolean(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_usage")),
        sa.CheckConstraint(
            "cached_tokens >= 0 AND prompt_tokens >= cached_tokens AND output_tokens >= 0",
            name=op.f("ck_usage_tokens"),
        ),
        sa.CheckConstraint("late_tokens >= 0 AND preemptions >= 0", name=op.f("ck_usage_counts")),
    )
    op.create_index(op.f("ix_usage_arrival"), "usage", ["arrival"])
    op.create_index(op.f("ix_usage_tenant_id_usage_arrival"), "usage", ["tenant_id", "arrival"])


def downgrade() -> None:
    for table in ("counters", "usage", "api_keys", "tenants", "tiers"):
        op.drop_table(table)
