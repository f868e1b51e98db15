"""Tiers, tenants and keys, asked and changed through values, on both databases."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import event, text

from tenants.database import Database
from tenants.errors import AlreadyExists, InvalidValue, NotFound, PepperUnusable
from tenants.keys import generate_key, key_digest
from tenants.pepper import Pepper, make_pepper
from tenants.repository import Repository
from tenants.values import KeyState

MINUTE = timedelta(minutes=1)


async def test_a_tenant_is_found_by_name_and_by_id(repository: Repository, now: datetime) -> None:
    made = await repository.create_tenant("acme", "premium", now)
    assert await repository.get_tenant("acme") == made
    assert await repository.get_tenant(made.id) == made
    assert (made.tier, made.created_at, made.disabled_at) == ("premium", now, None)
    with pytest.raises(FrozenInstanceError):
        made.tier = "free"  # type: ignore[misc]


async def test_tenants_are_listed_by_name(repository: Repository, now: datetime) -> None:
    for name in ("beta", "alpha", "gamma"):
        await repository.create_tenant(name, "free", now)
    assert [t.name for t in await repository.list_tenants()] == ["alpha", "beta", "gamma"]


async def test_moments_come_back_in_utc_whatever_zone_they_had(
    repository: Repository, now: datetime
) -> None:
    elsewhere = now.astimezone(timezone(timedelta(hours=5, minutes=30)))
    await repository.create_tenant("acme", "free", elsewhere)
    found = await repository.get_tenant("acme")
    assert found.created_at == now
    assert found.created_at.tzinfo is UTC
    with pytest.raises(Exception, match="without a time zone"):
        await repository.create_tenant("naive", "free", now.replace(tzinfo=None))


async def test_a_name_is_given_once(repository: Repository, now: datetime) -> None:
    await repository.create_tenant("acme", "free", now)
    with pytest.raises(AlreadyExists, match="acme"):
        await repository.create_tenant("acme", "premium", now)


async def test_of_two_at_the_same_time_one_gets_the_name(
    repository: Repository, now: datetime
) -> None:
    results = await asyncio.gather(
        *(repository.create_tenant("acme", "free", now) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(r).__name__ for r in results) == ["AlreadyExists"] * 4 + ["TenantRecord"]


async def test_bad_names_are_refused_before_the_database(
    repository: Repository, now: datetime
) -> None:
    for name in ("", " ", "a b", "-a", "ä", "a" * 65, "a\n", "a/b", "'; --"):
        with pytest.raises(InvalidValue, match="letters, digits"):
            await repository.create_tenant(name, "free", now)
        with pytest.raises(InvalidValue, match="letters, digits"):
            await repository.create_key("acme", now, name)


async def test_an_unknown_tier_is_refused_with_the_known_ones(
    repository: Repository, now: datetime
) -> None:
    with pytest.raises(NotFound, match=r"no tier 'gold'; there are: premium, free"):
        await repository.create_tenant("acme", "gold", now)


async def test_a_key_is_found_by_its_digest_with_its_tenant_and_tier(
    repository: Repository, pepper: Pepper, now: datetime
) -> None:
    tenant = await repository.create_tenant("acme", "premium", now)
    expires = now + timedelta(days=90)
    issued = await repository.create_key(
        "acme", now, "ci", expires_at=expires, models=["b", "a", "a"], env="test"
    )
    found = await repository.find_key_by_digest(key_digest(pepper.secret, issued.plaintext))
    assert found is not None
    assert found.key == issued.record
    assert found.tenant == tenant
    assert (found.tier.name, found.tier.rank) == ("premium", 0)
    assert issued.plaintext.startswith("tgk_test_")
    assert found.key.display == f"tgk_test_...{issued.plaintext[-4:]}"
    assert (found.key.models, found.key.expires_at) == (("a", "b"), expires)
    assert found.key.allows("a")
    assert not found.key.allows("c")
    assert await repository.find_key(issued.plaintext) == found


async def test_the_key_itself_is_kept_nowhere(
    repository: Repository, database: Database, now: datetime
) -> None:
    await repository.create_tenant("acme", "free", now)
    issued = await repository.create_key("acme", now)
    async with database.read() as session:
        rows = (await session.execute(text("SELECT * FROM api_keys"))).all()
    stored = " ".join(str(value) for row in rows for value in row)
    assert issued.plaintext not in stored
    assert issued.plaintext[9:-4] not in stored
    assert issued.plaintext not in repr(issued)


async def test_an_unknown_digest_is_nobody(repository: Repository, now: datetime) -> None:
    await repository.create_tenant("acme", "free", now)
    await repository.create_key("acme", now)
    assert await repository.find_key_by_digest("0" * 64) is None
    assert await repository.find_key(generate_key()) is None


async def test_a_mistyped_key_costs_no_database_work(
    repository: Repository, database: Database, now: datetime
) -> None:
    await repository.create_tenant("acme", "free", now)
    key = (await repository.create_key("acme", now)).plaintext
    typo = key[:-1] + ("a" if key[-1] != "a" else "b")
    statements: list[str] = []

    def record(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(database._reader.sync_engine, "before_cursor_execute", record)
    assert await repository.find_key(typo) is None
    assert statements == []
    assert await repository.find_key(key) is not None
    assert statements != []


async def test_a_key_opens_the_door_only_while_it_may(
    repository: Repository, now: datetime
) -> None:
    await repository.create_tenant("acme", "free", now)
    expires = now + timedelta(days=1)
    key = (await repository.create_key("acme", now, expires_at=expires)).plaintext

    async def state(at: datetime) -> KeyState:
        found = await repository.find_key(key)
        assert found is not None
        return found.state(at)

    assert await state(now) is KeyState.ACTIVE
    assert await state(expires - timedelta(microseconds=1)) is KeyState.ACTIVE
    assert await state(expires) is KeyState.EXPIRED
    await repository.set_tenant_disabled("acme", True, now)
    assert await state(now) is KeyState.TENANT_DISABLED
    await repository.set_tenant_disabled("acme", False, now)
    assert await state(now) is KeyState.ACTIVE
    await repository.revoke_key(key, now)
    assert await state(now) is KeyState.REVOKED


@pytest.mark.parametrize("form", ["id", "plaintext", "display", "short"])
async def test_a_key_is_revoked_by_any_of_its_names(
    repository: Repository, now: datetime, form: str
) -> None:
    await repository.create_tenant("acme", "free", now)
    issued = await repository.create_key("acme", now)
    record = issued.record
    name = {
        "id": record.id,
        "plaintext": issued.plaintext,
        "display": record.display,
        "short": record.prefix + record.last4,
    }[form]
    assert (await repository.revoke_key(name, now)).revoked_at == now
    # The first time stands.
    assert (await repository.revoke_key(name, now + MINUTE)).revoked_at == now


async def test_revoking_what_is_not_there_is_refused(repository: Repository, now: datetime) -> None:
    for which in ("", "nobody", "tgk_live_...zzzz", "' OR 1=1 --"):
        with pytest.raises(NotFound, match="no such key"):
            await repository.revoke_key(which, now)


async def test_a_shown_form_that_fits_two_keys_is_refused(
    repository: Repository, database: Database, now: datetime
) -> None:
    await repository.create_tenant("acme", "free", now)
    one = (await repository.create_key("acme", now)).record
    other = (await repository.create_key("acme", now + MINUTE)).record
    async with database.write() as session:
        await session.execute(text("UPDATE api_keys SET last4 = 'same'"))
    with pytest.raises(InvalidValue, match="fits several keys") as caught:
        await repository.revoke_key("tgk_live_...same", now)
    assert one.id in str(caught.value)
    assert other.id in str(caught.value)
    await repository.revoke_key(one.id, now)
    # Now only one of the two is still in force.
    assert (await repository.revoke_key("tgk_live_...same", now)).id == other.id


async def test_keys_are_listed_newest_first_and_by_tenant(
    repository: Repository, now: datetime
) -> None:
    for tenant in ("acme", "beta"):
        await repository.create_tenant(tenant, "free", now)
        for i in range(2):
            await repository.create_key(tenant, now + i * MINUTE, f"{tenant}-{i}")
    assert [k.name for k in await repository.list_keys("acme")] == ["acme-1", "acme-0"]
    assert {k.name for k in await repository.list_keys()} == {
        "acme-0",
        "acme-1",
        "beta-0",
        "beta-1",
    }
    with pytest.raises(NotFound, match="no tenant 'gone'"):
        await repository.list_keys("gone")


async def test_bad_model_lists_are_refused(repository: Repository, now: datetime) -> None:
    await repository.create_tenant("acme", "free", now)
    for models in ([], [""], ["m"] * 65, ["x" * 257]):
        with pytest.raises(InvalidValue, match="models"):
            await repository.create_key("acme", now, models=models)


async def test_a_key_cannot_be_born_expired(repository: Repository, now: datetime) -> None:
    await repository.create_tenant("acme", "free", now)
    with pytest.raises(InvalidValue, match="in the past"):
        await repository.create_key("acme", now, expires_at=now)


async def test_a_key_for_nobody_is_refused(repository: Repository, now: datetime) -> None:
    with pytest.raises(NotFound, match="no tenant 'gone'"):
        await repository.create_key("gone", now)


async def test_last_use_is_written_at_most_once_a_minute(
    repository: Repository, now: datetime
) -> None:
    await repository.create_tenant("acme", "free", now)
    key_id = (await repository.create_key("acme", now)).record.id
    before = await repository.keys_version()
    times = [0, 1, 59, 60, 61, 121]
    written = [await repository.touch_key(key_id, now + timedelta(seconds=s)) for s in times]
    assert written == [True, False, False, True, False, True]
    assert (await repository.list_keys())[0].last_used_at == now + timedelta(seconds=121)
    assert await repository.touch_key("nobody", now) is False
    # Being used changes nothing that a cache must notice.
    assert await repository.keys_version() == before


async def test_every_change_of_a_door_raises_the_version(
    repository: Repository, now: datetime
) -> None:
    await repository.create_tenant("acme", "free", now)
    seen = [await repository.keys_version()]
    issued = await repository.create_key("acme", now)
    seen.append(await repository.keys_version())
    await repository.set_tenant_disabled("acme", True, now)
    seen.append(await repository.keys_version())
    await repository.set_tenant_disabled("acme", False, now)
    seen.append(await repository.keys_version())
    await repository.revoke_key(issued.record.id, now)
    seen.append(await repository.keys_version())
    assert seen == sorted(set(seen))
    await repository.revoke_key(issued.record.id, now)  # changes nothing
    assert await repository.keys_version() == seen[-1]


async def test_another_pepper_is_noticed_before_all_keys_fail(
    repository: Repository, database: Database, now: datetime
) -> None:
    other = Repository(database, make_pepper(b"o" * 32))
    await other.check_pepper()  # without keys any pepper will do
    await repository.create_tenant("acme", "free", now)
    issued = await repository.create_key("acme", now)
    await repository.check_pepper()
    with pytest.raises(PepperUnusable, match="restore the pepper file"):
        await other.check_pepper()
    assert await other.find_key(issued.plaintext) is None
    await repository.revoke_key(issued.record.id, now)
    await other.check_pepper()
