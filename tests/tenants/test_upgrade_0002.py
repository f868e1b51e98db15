"""A database of the first release, with data in it, goes to the second revision and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from migrations import runner
from tenants.database import Database
from tenants.models import Base
from tenants.pepper import Pepper
from tenants.repository import Repository
from tenants.usage import list_usage
from tenants.values import DEFAULT_ORGANISATION_ID, KeyState, LimiterAway

TABLES = ("tiers", "tenants", "api_keys", "usage", "counters")
KEY = "tgk_live_000000000000000000000000000000" + "2HVdkm"  # form does not matter to a digest
AT = "2026-11-20 10:00:00.123456"

# As the first release wrote them; {zone} and {true} are what the two databases spell differently.
ROWS = (
    "UPDATE tiers SET ttft_ms = 450, version = 3 WHERE name = 'premium'",
    "INSERT INTO tenants (id, name, tier, created_at, disabled_at) VALUES "
    "('t1', 'acme', 'premium', '{at}', NULL), ('t2', 'beta', 'free', '{at}', '{at}')",
    "INSERT INTO api_keys (id, tenant_id, name, prefix, last4, digest, pepper_id, models, "
    "created_at, expires_at, revoked_at, last_used_at) VALUES "
    "('k1', 't1', 'ci', 'tgk_live_', 'x7Qa', '{digest}', '{pepper}', '[\"a\", \"b\"]', '{at}', "
    "NULL, NULL, '{at}'), "
    "('k2', 't2', 'old', 'tgk_test_', 'aaaa', 'd2', '{pepper}', NULL, '{at}', '{at}', '{at}', "
    "NULL)",
    "INSERT INTO usage (request_id, tenant_id, key_id, tier_requested, tier_served, model, "
    "prompt_tokens, cached_tokens, output_tokens, finish_reason, stream, arrival, total_ms, "
    "ttft_ms, late_tokens, preemptions, slo_met) VALUES "
    "('r1', 't1', 'k1', 'premium', 'free', 'm', 100, 64, 20, 'stop', {true}, '{at}', 812.345678, "
    "212.5, 1, 2, {true}), "
    "('r2', 't2', 'k2', 'free', 'free', 'm', 1, 0, 0, 'cancelled', {true}, '{at}', 1.0, "
    "NULL, 0, 0, NULL)",
    "UPDATE counters SET value = 41 WHERE name = 'keys'",
)


async def dump(database: Database, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
    """Return all rows of the first release's tables, in its columns."""
    found = {}
    async with database.read() as session:
        for table, names in columns.items():
            rows = await session.execute(
                text(f"SELECT {', '.join(names)} FROM {table} ORDER BY {names[0]}")
            )
            found[table] = [tuple(row) for row in rows]
    return found


async def shape(database: Database, table: str) -> dict[str, Any]:
    """Return what a table is made of, without what only one revision of Alembic would word so."""

    def look(connection: Any) -> dict[str, Any]:
        seen = inspect(connection)
        return {
            "columns": {
                c["name"]: (str(c["type"]), c["nullable"], c["default"])
                for c in seen.get_columns(table)
            },
            "primary": seen.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted(
                (f["name"] or "", f["referred_table"]) for f in seen.get_foreign_keys(table)
            ),
            "unique": sorted(u["name"] or "" for u in seen.get_unique_constraints(table)),
            "indexes": sorted(i["name"] or "" for i in seen.get_indexes(table)),
            "checks": sorted(c["name"] or "" for c in seen.get_check_constraints(table)),
        }

    async with database.read() as session:
        return await (await session.connection()).run_sync(look)


async def first_release(url: str, pepper: Pepper) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Make a database as the first release left it; return its rows and its tables' shapes."""
    await runner.upgrade(url, "0001")
    database = await Database.open(url)
    is_postgres = database.backend == "postgresql"
    words = {
        "at": AT + ("+00" if is_postgres else ""),
        "true": "true" if is_postgres else "1",
        "digest": Repository(database, pepper).digest(KEY),
        "pepper": pepper.id,
    }
    async with database.write() as session:
        connection = await session.connection()
        for statement in ROWS:
            for name, word in words.items():
                statement = statement.replace("{" + name + "}", word)
            await connection.exec_driver_sql(statement)
    shapes = {table: await shape(database, table) for table in TABLES}
    rows = await dump(database, {table: list(shapes[table]["columns"]) for table in TABLES})
    await database.close()
    return rows, shapes


async def test_a_ledger_of_the_first_release_keeps_everything(
    empty_url: str, pepper: Pepper
) -> None:
    """All its rows are there after the upgrade, and again after the way back."""
    rows, shapes = await first_release(empty_url, pepper)
    columns = {table: list(shapes[table]["columns"]) for table in TABLES}
    await runner.upgrade(empty_url)
    await runner.check(empty_url)
    database = await Database.open(empty_url)
    assert await dump(database, columns) == rows
    await database.close()
    await runner.downgrade(empty_url, "0001")
    database = await Database.open(empty_url)
    assert await dump(database, columns) == rows
    assert {table: await shape(database, table) for table in TABLES} == shapes
    await database.close()
    await runner.upgrade(empty_url)
    await runner.check(empty_url)


async def test_what_was_there_is_served_as_before(empty_url: str, pepper: Pepper) -> None:
    """Keys still open the door, tenants have an organisation, tiers a version, usage costs zero."""
    await first_release(empty_url, pepper)
    await runner.upgrade(empty_url)
    database = await Database.open(empty_url)
    repository = Repository(database, pepper)
    found = await repository.find_key_by_digest(repository.digest(KEY))
    assert found is not None
    assert found.state(datetime.now(UTC)) is KeyState.ACTIVE
    assert (found.key.models, found.key.scopes, found.limits) == (("a", "b"), None, ())
    assert (found.key.chain_id, found.key.rotated_from) == ("k1", None)
    assert (found.tenant.name, found.tenant.organisation_id) == ("acme", DEFAULT_ORGANISATION_ID)
    assert [o.name for o in await repository.list_organisations()] == ["default"]
    assert found.tier.on_limiter_away is LimiterAway.LOCAL
    assert found.tier.cost_nano(10, 5, 10) == 0
    versions = await repository.list_tier_versions()
    assert [(v.tier.name, v.tier.version, v.tier.ttft_ms) for v in versions] == [
        ("free", 1, 2000),
        ("premium", 3, 450),
    ]
    assert versions[1].tier == found.tier
    assert abs((datetime.now(UTC) - versions[0].changed_at).total_seconds()) < 600
    assert [(r.request_id, r.tier_version, r.cost_nano) for r in await list_usage(database)] == [
        ("r2", 0, 0),
        ("r1", 0, 0),
    ]
    assert {r.organisation_id for r in await list_usage(database)} == {DEFAULT_ORGANISATION_ID}
    await database.close()


async def test_the_constraints_of_the_models_are_those_of_the_database(database: Database) -> None:
    """`alembic check` does not look at CHECKs; every one that the code names is in force."""
    for table in Base.metadata.sorted_tables:
        named = {str(c.name) for c in table.constraints if str(c.name).startswith("ck_")}
        found = await shape(database, table.name)
        assert {str(name) for name in found["checks"]} == named, table.name


CHANGES = (
    "UPDATE {table} SET {column} = {column}",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
    "INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
)


@pytest.mark.parametrize(("table", "column"), [("audit", "actor"), ("tier_versions", "weight")])
@pytest.mark.parametrize("change", CHANGES)
async def test_the_database_itself_refuses_to_rewrite_history(
    database: Database, repository: Repository, now: datetime, change: str, table: str, column: str
) -> None:
    """Neither the audit nor a tier's past can be changed, whatever statement is used."""
    only_on = {"TRUNCATE": "postgresql", "INSERT": "sqlite"}.get(change.split()[0])
    if only_on not in (None, database.backend):
        pytest.skip(f"{change.split()[0]} is a word of the other database")
    await repository.create_organisation("acme", now)
    with pytest.raises(DBAPIError, match=f"rows of {table} are never changed"):
        async with database.write() as session:
            await session.execute(text(change.format(table=table, column=column)))
    assert len(await repository.list_audit()) == 1
    assert len(await repository.list_tier_versions()) == 2
