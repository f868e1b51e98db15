"""Users of the admin surface: who they are, how they are shut out, how logins end."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from tenants.database import Database
from tenants.errors import AlreadyExists, InvalidValue, NotFound
from tenants.repository import Repository
from tenants.values import Actor, Role

HOUR = timedelta(hours=1)
IDLE = timedelta(minutes=30)
DIGEST = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$ZGlnZXN0"
WHO = Actor("ann", "user", "10.0.0.1")


async def test_a_user_comes_back_without_the_digest(repository: Repository, now: datetime) -> None:
    """The digest is only given to who asks for a login."""
    made = await repository.create_user("ann@example.com", Role.OWNER, now, password_digest=DIGEST)
    assert made.has_password
    assert (
        await repository.get_user("ann@example.com") == made == (await repository.list_users())[0]
    )
    assert await repository.find_login("ann@example.com") == (made, DIGEST)
    assert await repository.find_login("bob") is None
    (entry,) = await repository.list_audit()
    assert DIGEST not in repr(entry)


async def test_oidc_users_are_found_by_their_subject(repository: Repository, now: datetime) -> None:
    made = await repository.create_user("bob", Role.VIEWER, now, oidc_subject="sub-1")
    assert not made.has_password
    assert await repository.find_user_by_subject("sub-1") == made
    assert await repository.find_user_by_subject("sub-2") is None
    with pytest.raises(AlreadyExists):
        await repository.create_user("rob", Role.VIEWER, now, oidc_subject="sub-1")


async def test_a_tenant_viewer_belongs_to_a_tenant_and_nobody_else_does(
    repository: Repository, now: datetime
) -> None:
    tenant = await repository.create_tenant("acme", "free", now)
    made = await repository.create_user("carl", Role.TENANT_VIEWER, now, tenant="acme")
    assert made.tenant_id == tenant.id
    for role, whose in ((Role.TENANT_VIEWER, None), (Role.OWNER, "acme")):
        with pytest.raises(InvalidValue, match="a tenant belongs to the role tenant-viewer"):
            await repository.create_user("dora", role, now, tenant=whose)
    with pytest.raises(NotFound, match="no tenant 'gone'"):
        await repository.create_user("dora", Role.TENANT_VIEWER, now, tenant="gone")


@pytest.mark.parametrize("name", ["", " ann", "a" * 129, "an\nn", "ann;"])
async def test_a_bad_name_is_refused(repository: Repository, now: datetime, name: str) -> None:
    with pytest.raises(InvalidValue, match="a user's name has 1 to 128"):
        await repository.create_user(name, Role.OWNER, now)


async def test_the_last_owner_is_never_shut_out(repository: Repository, now: datetime) -> None:
    """Two owners who disable each other at the same moment: one stays."""
    for name in ("ann", "bob"):
        await repository.create_user(name, Role.OWNER, now)
    done = await asyncio.gather(
        repository.set_user_disabled("ann", True, now),
        repository.set_user_disabled("bob", True, now),
        return_exceptions=True,
    )
    assert sum(isinstance(result, InvalidValue) for result in done) == 1
    assert await repository.num_owners() == 1


async def test_a_login_lasts_until_it_is_over_or_idle(
    repository: Repository, database: Database, now: datetime
) -> None:
    """Its secret is not in the database; use keeps it from going idle, not from ending."""
    user = await repository.create_user("ann", Role.OPERATOR, now)
    await repository.create_session(user.id, "s3cret", now, expires_at=now + HOUR, by=WHO)
    found = await repository.find_session("s3cret", now + IDLE / 2, idle=IDLE)
    assert found is not None
    assert (found.user, found.authenticated_at, found.address) == (user, now, "10.0.0.1")
    assert await repository.find_session("other", now, idle=IDLE) is None
    assert await repository.find_session("s3cret", now + IDLE, idle=IDLE) is None
    await repository.touch_session("s3cret", now + IDLE / 2)
    assert await repository.find_session("s3cret", now + IDLE, idle=IDLE) is not None
    await repository.touch_session("s3cret", now + HOUR)
    assert await repository.find_session("s3cret", now + HOUR, idle=IDLE) is None
    async with database.read() as session:
        kept = (await session.execute(text("SELECT * FROM sessions"))).all()
    assert "s3cret" not in repr(kept)


async def test_logins_end_with_the_password_the_user_or_a_logout(
    repository: Repository, now: datetime
) -> None:
    """Another password, or being shut out, ends every login of that user at once."""
    user = await repository.create_user("ann", Role.OPERATOR, now, password_digest=DIGEST)
    other = await repository.create_user("bob", Role.OPERATOR, now)

    async def log_in(secret: str, user_id: str) -> None:
        await repository.create_session(user_id, secret, now, expires_at=now + HOUR, by=WHO)

    async def is_in(secret: str) -> bool:
        return await repository.find_session(secret, now, idle=IDLE) is not None

    await log_in("bob-1", other.id)
    await log_in("a-1", user.id)
    await repository.set_password("ann", DIGEST + "x", now)
    assert not await is_in("a-1")
    await log_in("a-2", user.id)
    await repository.set_user_disabled("ann", True, now)
    assert not await is_in("a-2")
    await repository.set_user_disabled("ann", False, now)
    assert not await is_in("a-2")
    assert await is_in("bob-1")
    await repository.end_session("bob-1", now, by=WHO)
    await repository.end_session("bob-1", now, by=WHO)
    assert not await is_in("bob-1")
    actions = [entry.action for entry in await repository.list_audit()]
    assert actions.count("session.end") == 1
    assert actions.count("user.password") == 1


async def test_old_logins_are_cleared_away(
    repository: Repository, database: Database, now: datetime
) -> None:
    user = await repository.create_user("ann", Role.OPERATOR, now)
    for i in range(3):
        await repository.create_session(user.id, f"s{i}", now, expires_at=now + HOUR, by=WHO)
    later = now + 2 * HOUR
    await repository.create_session(user.id, "new", later, expires_at=later + HOUR, by=WHO)
    async with database.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM sessions")) == 1
