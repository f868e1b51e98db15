"""Every change is written down with who made it, in the change's own transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from tenants.database import Database
from tenants.errors import AlreadyExists, NotFound
from tenants.repository import Change, Repository
from tenants.repository.audit import masked
from tenants.values import Actor, Budget, Period, Role, Scope, Unit

WHO = Actor("ann", "user", "10.0.0.1", "req-7")
DAY = timedelta(days=1)
Work = Callable[[Repository, datetime], Awaitable[object]]

CHANGES: dict[str, Work] = {
    "organisation.create": lambda r, now: r.create_organisation("org", now, by=WHO),
    "tenant.create": lambda r, now: r.create_tenant("newcomer", "free", now, by=WHO),
    "tenant.disable": lambda r, now: r.set_tenant_disabled("acme", True, now, by=WHO),
    "tier.create": lambda r, now: r.create_tier(
        "batch", {"rank": "2", "ttft_ms": "1", "tbt_ms": "9"}, now=now, by=WHO
    ),
    "tier.change": lambda r, now: r.change_tier("free", {"weight": "2"}, now=now, by=WHO),
    "key.create": lambda r, now: r.create_key("acme", now, by=WHO),
    "key.revoke": lambda r, now: r.revoke_key("k", now, by=WHO),
    "key.rotate": lambda r, now: r.rotate_key("k", now, DAY, by=WHO),
    "limits.set": lambda r, now: r.set_limits(
        Scope.KEY, "k", {"tokens_per_minute": 5}, now, by=WHO
    ),
    "budgets.set": lambda r, now: r.set_budgets(
        Scope.TENANT, "acme", [Budget(Period.DAY, Unit.TOKENS, 5)], now, by=WHO
    ),
    "user.create": lambda r, now: r.create_user("bob", Role.VIEWER, now, by=WHO),
    "user.disable": lambda r, now: r.set_user_disabled("ann", True, now, by=WHO),
    "user.password": lambda r, now: r.set_password("ann", "digest", now, by=WHO),
}


TABLES = (
    *("organisations", "tenants", "tiers", "tier_versions", "api_keys"),
    *("limits", "budgets", "users", "counters"),
)


@pytest.fixture
async def seeded(repository: Repository, database: Database, now: datetime) -> Repository:
    await repository.create_tenant("acme", "free", now)
    made = (await repository.create_key("acme", now)).record
    async with database.write() as session:
        change = text("UPDATE api_keys SET id = 'k', chain_id = 'k' WHERE id = :id")
        await session.execute(change, {"id": made.id})
    await repository.create_user("ann", Role.OPERATOR, now, password_digest="old")
    return repository


@pytest.mark.parametrize("action", CHANGES)
async def test_a_change_says_who_when_and_what(
    seeded: Repository, now: datetime, action: str
) -> None:
    """Name, address, request, before and after; what is one tenant's says whose it is."""
    before = {entry.number for entry in await seeded.list_audit(limit=1000)}
    await CHANGES[action](seeded, now + DAY)
    new = [e for e in await seeded.list_audit(limit=1000) if e.number not in before]
    (entry,) = [e for e in new if e.action == action]
    assert {(e.actor, e.actor_kind, e.address, e.request_id, e.result) for e in new} == {
        ("ann", "user", "10.0.0.1", "req-7", "ok")
    }
    assert entry.at == now + DAY
    assert entry.after is not None
    assert entry.before != entry.after or action == "user.password"
    assert (entry.before is None) == action.endswith(".create")
    acme = await seeded.get_tenant("acme")
    of_tenant = entry.action.startswith(("key", "limits", "budgets", "tenant.disable"))
    assert (entry.tenant_id == acme.id) == of_tenant


@pytest.mark.parametrize("action", CHANGES)
async def test_what_cannot_be_written_down_does_not_happen(
    seeded: Repository, database: Database, now: datetime, action: str
) -> None:
    """Where the audit takes no row, the change itself is undone: they are one transaction."""
    if database.backend == "sqlite":
        stop = (
            "CREATE TRIGGER stop BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END",
        )
    else:
        stop = (
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'full'; END $$",
            "CREATE TRIGGER stop BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION stop()",
        )
    async with database.write() as session:
        for statement in stop:
            await session.execute(text(statement))

    async def state() -> list[object]:
        async with database.read() as session:
            return [
                (await session.execute(text(f"SELECT * FROM {table}"))).all() for table in TABLES
            ]

    before = await state()
    with pytest.raises(Exception, match=r"full|already"):
        await CHANGES[action](seeded, now)
    assert await state() == before


async def test_what_is_refused_or_changes_nothing_leaves_no_row(
    seeded: Repository, now: datetime
) -> None:
    await seeded.revoke_key("k", now)
    count = len(await seeded.list_audit(limit=1000))
    await seeded.revoke_key("k", now)
    await seeded.set_tenant_disabled("acme", False, now)
    with pytest.raises(AlreadyExists):
        await seeded.create_tenant("acme", "free", now)
    with pytest.raises(NotFound):
        await seeded.change_tier("gold", {"weight": "2"})
    assert len(await seeded.list_audit(limit=1000)) == count


async def test_the_audit_holds_no_key_and_no_digest(
    seeded: Repository, database: Database, now: datetime
) -> None:
    """All that was ever issued is looked for in all that was written down."""
    issued = [await seeded.create_key("acme", now, f"k{i}") for i in range(3)]
    issued.append((await seeded.rotate_key(issued[0].record.id, now, DAY)).issued)
    await seeded.set_password("ann", "a-digest-of-a-password", now)
    async with database.read() as session:
        written = repr((await session.execute(text("SELECT * FROM audit"))).all())
    for key in issued:
        assert key.plaintext not in written
        assert seeded.digest(key.plaintext) not in written
    assert "a-digest-of-a-password" not in written


def test_what_is_secret_by_its_name_is_masked() -> None:
    """Also where a caller hands in more than it should."""
    given = {"password": "x", "new_password": "y", "tokens_per_day": 5, "inner": [{"digest": "z"}]}
    assert masked(given) == {
        "password": "***",
        "new_password": "***",
        "tokens_per_day": 5,
        "inner": [{"digest": "***"}],
    }


async def test_the_audit_is_listed_by_tenant_time_and_action(
    repository: Repository, now: datetime
) -> None:
    for i, name in enumerate(("a", "b")):
        await repository.create_tenant(name, "free", now + i * DAY, by=Actor(f"op-{name}"))
    await repository.create_key("a", now + 2 * DAY)
    await repository.write_event(WHO, now + 3 * DAY, Change("login", "user", "u", result="refused"))

    async def targets(**options: object) -> list[str]:
        return [e.action for e in await repository.list_audit(**options)]  # type: ignore[arg-type]

    assert await targets() == ["login", "key.create", "tenant.create", "tenant.create"]
    assert await targets(tenant="a") == ["key.create", "tenant.create"]
    assert await targets(actor="op-b") == ["tenant.create"]
    assert await targets(action="login") == ["login"]
    assert await targets(since=now + DAY, until=now + 3 * DAY) == ["key.create", "tenant.create"]
    assert await targets(limit=1) == ["login"]
    newest = (await repository.list_audit(limit=1))[0]
    assert newest.result == "refused"
    assert await targets(before=newest.number, limit=1) == ["key.create"]
    with pytest.raises(NotFound):
        await repository.list_audit(tenant="gone")


async def test_the_whole_audit_is_read_oldest_first(repository: Repository, now: datetime) -> None:
    """A page at a time, however long it is."""
    for i in range(7):
        await repository.create_organisation(f"o{i}", now + i * DAY)
    read = [e async for e in repository.read_audit()]
    assert [e.after["name"] for e in read if e.after] == [f"o{i}" for i in range(7)]
    some = [e async for e in repository.read_audit(since=now + DAY, until=now + 3 * DAY)]
    assert [e.after["name"] for e in some if e.after] == ["o1", "o2"]
