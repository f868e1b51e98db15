"""A name that is another's id: no new one is made, and an old one never stands before that id."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import update

from tenants.database import Database
from tenants.errors import InvalidValue
from tenants.models import Organisation, Tenant, User
from tenants.repository import Repository
from tenants.values import DEFAULT_ORGANISATION_ID, Role, Scope


async def test_no_name_that_looks_like_an_id_is_given(
    repository: Repository, now: datetime
) -> None:
    """Whether somebody has that id or not, and in whatever case its letters are."""
    victim = await repository.create_tenant("victim", "free", now)
    for name in (victim.id, victim.id.upper(), "0" * 32, DEFAULT_ORGANISATION_ID):
        for what, made in (
            ("a tenant", repository.create_tenant(name, "free", now)),
            ("an organisation", repository.create_organisation(name, now)),
            ("a user", repository.create_user(name, Role.VIEWER, now)),
        ):
            with pytest.raises(InvalidValue, match=f"{what}'s name cannot be 32 hexadecimal"):
                await made
    for name in ("0" * 31, "0" * 33, "0" * 31 + "g"):
        assert (await repository.create_tenant(name, "free", now)).name == name


async def test_an_id_means_what_has_it_and_not_what_is_named_so(
    repository: Repository, database: Database, now: datetime
) -> None:
    """As in a ledger of a version that still gave such names."""
    payers = [await repository.create_organisation(name, now) for name in ("payer", "other")]
    victim = await repository.create_tenant("victim", "free", now, organisation="payer")
    double = await repository.create_tenant("double", "premium", now, organisation="other")
    users = [await repository.create_user(name, Role.VIEWER, now) for name in ("ann", "bob")]
    async with database.write() as session:
        for table, row_id, name in (
            (Tenant, double.id, victim.id),
            (Organisation, payers[1].id, payers[0].id),
            (User, users[1].id, users[0].id),
        ):
            await session.execute(update(table).where(table.id == row_id).values(name=name))
    assert await repository.get_tenant(victim.id) == victim
    assert (await repository.get_tenant(double.id)).name == victim.id
    assert await repository.get_organisation(payers[0].id) == payers[0]
    assert await repository.get_user(users[0].id) == users[0]
    shut = await repository.set_tenant_disabled(victim.id, True, now)
    assert (shut.id, shut.name) == (victim.id, "victim")
    issued = await repository.create_key(victim.id, now)
    assert issued.record.tenant_id == victim.id
    assert await repository.list_keys(double.id) == []
    limited = await repository.set_limits(Scope.TENANT, victim.id, {"tokens_per_day": 1}, now)
    assert limited.target_id == victim.id
    assert [t.id for t in await repository.list_tenants(payers[0].id)] == [victim.id]
    assert {e.tenant_id for e in await repository.list_audit(tenant=victim.id)} == {victim.id}
