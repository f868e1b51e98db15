"""What a bill needs: organisations, limits, budgets, prices and their versions, users, audit.

Revision 0002, after 0001; 2026-11-21. Columns are added with their constraints inside, which both
databases take without writing a table anew: a ledger of a hundred million rows upgrades at once.
Each constraint is on a line of its own, because SQLite keeps the text and tools read it by lines.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DEFAULT_ORGANISATION = "00000000000070008000000000000000"
PROMISE = (
    "rank, ttft_ms, ttft_ms_per_1k_prompt_tokens, tbt_ms, tbt_mode, pace_ms, objective, weight, "
    "max_queue, max_output_tokens, on_overload, price_prompt_nano, price_cached_nano, "
    "price_output_nano, on_limiter_away"
)
PRICES = ("price_prompt_nano", "price_cached_nano", "price_output_nano")
# Tables whose rows are never changed, and what makes a row.
APPEND_ONLY = {"audit": ("number",), "tier_versions": ("name", "version")}


def upgrade() -> None:
    create_organisations()
    extend_tiers()
    create_tier_versions()
    extend_api_keys()
    extend_usage()
    create_limits()
    create_budgets()
    create_users()
    create_audit()
    for table in APPEND_ONLY:
        refuse_changes(table)


def is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def now() -> str:
    """The moment in SQL, as the ledger writes moments."""
    return "CURRENT_TIMESTAMP" if is_postgres() else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def add_column(table: str, column: str, constraint: str = "") -> None:
    op.execute(f"ALTER TABLE {table} ADD COLUMN {column}{constraint and chr(10) + constraint}")


def create_organisations() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organisations")),
        sa.UniqueConstraint("name", name=op.f("uq_organisations_name")),
    )
    op.execute(
        "INSERT INTO organisations (id, name, created_at) "
        f"VALUES ('{DEFAULT_ORGANISATION}', 'default', {now()})"
    )
    add_column(
        "tenants",
        f"organisation_id VARCHAR(32) DEFAULT '{DEFAULT_ORGANISATION}' NOT NULL",
        "CONSTRAINT fk_tenants_organisation_id_organisations REFERENCES organisations (id)",
    )
    op.create_index(op.f("ix_tenants_organisation_id"), "tenants", ["organisation_id"])


def extend_tiers() -> None:
    for column in PRICES:
        check = f"CONSTRAINT ck_tiers_{column} CHECK ({column} >= 0)"
        add_column("tiers", f"{column} BIGINT DEFAULT 0 NOT NULL", check)
    add_column(
        "tiers",
        "on_limiter_away VARCHAR(16) DEFAULT 'local' NOT NULL",
        "CONSTRAINT ck_tiers_on_limiter_away CHECK (on_limiter_away IN ('local', 'refuse'))",
    )


def create_tier_versions() -> None:
    op.create_table(
        "tier_versions",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
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
        *(
            sa.Column(p, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
            for p in PRICES
        ),
        sa.Column("on_limiter_away", sa.String(16), server_default="local", nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_tier_versions")),
    )
    # Of earlier versions only the numbers are known.
    op.execute(
        f"INSERT INTO tier_versions (name, version, changed_at, {PROMISE}) "
        f"SELECT name, version, {now()}, {PROMISE} FROM tiers"
    )


def extend_api_keys() -> None:
    add_column("api_keys", "scopes JSON")
    add_column("api_keys", "created_by VARCHAR(128)")
    add_column(
        "api_keys",
        "rotated_from VARCHAR(32)",
        "CONSTRAINT fk_api_keys_rotated_from_api_keys REFERENCES api_keys (id)",
    )
    add_column("api_keys", "chain_id VARCHAR(32) DEFAULT '' NOT NULL")
    op.execute("UPDATE api_keys SET chain_id = id")
    op.create_index(op.f("ix_api_keys_chain_id"), "api_keys", ["chain_id"])


def extend_usage() -> None:
    # All tenants there are belong to the default organisation, and nothing had a price.
    add_column("usage", f"organisation_id VARCHAR(32) DEFAULT '{DEFAULT_ORGANISATION}' NOT NULL")
    add_column("usage", "tier_version INTEGER DEFAULT 0 NOT NULL")
    add_column("usage", "cost_nano BIGINT DEFAULT 0 NOT NULL")


def create_limits() -> None:
    op.create_table(
        "limits",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("target_id", sa.String(32), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("dimension", sa.String(32), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "target_id", "model", "dimension", name=op.f("pk_limits")),
        sa.CheckConstraint(
            "scope IN ('key', 'tenant', 'organisation')", name=op.f("ck_limits_scope")
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_limits_amount")),
    )


def create_budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("target_id", sa.String(32), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("alert_percent", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint(
            "scope", "target_id", "model", "period", "unit", name=op.f("pk_budgets")
        ),
        sa.CheckConstraint(
            "scope IN ('key', 'tenant', 'organisation')", name=op.f("ck_budgets_scope")
        ),
        sa.CheckConstraint("period IN ('day', 'week', 'month')", name=op.f("ck_budgets_period")),
        sa.CheckConstraint("unit IN ('tokens', 'nano')", name=op.f("ck_budgets_unit")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_budgets_amount")),
        sa.CheckConstraint(
            "alert_percent > 0 AND alert_percent <= 100", name=op.f("ck_budgets_alert_percent")
        ),
    )


def create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=True),
        sa.Column("password_digest", sa.String(256), nullable=True),
        sa.Column("oidc_subject", sa.String(256), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
        sa.UniqueConstraint("oidc_subject", name=op.f("uq_users_oidc_subject")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_users_tenant_id_tenants")
        ),
        sa.CheckConstraint(
            "role IN ('owner', 'operator', 'viewer', 'tenant-viewer')", name=op.f("ck_users_role")
        ),
        sa.CheckConstraint(
            "(role = 'tenant-viewer') = (tenant_id IS NOT NULL)", name=op.f("ck_users_tenant")
        ),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("authenticated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_sessions")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])


def create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("actor_kind", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(32), nullable=False),
        sa.Column("target_id", sa.String(128), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=True),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("result", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"])
    op.create_index(op.f("ix_audit_tenant_id_audit_number"), "audit", ["tenant_id", "number"])


def refuse_changes(table: str) -> None:
    """Rows are added and read, nothing else, whoever asks; the owner would have to drop this."""
    if is_postgres():
        op.execute(
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'rows of {table} are never changed'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
        )
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, 'rows of {table} are never changed'); END"
        )
    # REPLACE deletes without asking the trigger of deletes.
    same = " AND ".join(f"{column} = NEW.{column}" for column in APPEND_ONLY[table])
    op.execute(
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
        f"BEGIN SELECT RAISE(ABORT, 'rows of {table} are never changed'); END"
    )


def downgrade() -> None:
    for table in ("audit", "sessions", "users", "budgets", "limits", "tier_versions"):
        op.drop_table(table)
    if is_postgres():
        for table in APPEND_ONLY:
            op.execute(f"DROP FUNCTION {table}_append_only()")
    for column in ("organisation_id", "tier_version", "cost_nano"):
        op.execute(f"ALTER TABLE usage DROP COLUMN {column}")
    for column in (*PRICES, "on_limiter_away"):
        op.execute(f"ALTER TABLE tiers DROP COLUMN {column}")
    # SQLite drops a column that refers to another table only by writing the table anew.
    op.drop_index(op.f("ix_api_keys_chain_id"), "api_keys")
    with op.batch_alter_table("api_keys") as keys:
        for column in ("scopes", "created_by", "rotated_from", "chain_id"):
            keys.drop_column(column)
    op.drop_index(op.f("ix_tenants_organisation_id"), "tenants")
    with op.batch_alter_table("tenants") as tenants:
        tenants.drop_column("organisation_id")
    op.drop_table("organisations")
