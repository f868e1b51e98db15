"""Scopes, rotation with overlap, and revoking all keys of a tenant in two steps."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from tenants.errors import InvalidValue, NotFound
from tenants.limits import DIMENSIONS
from tenants.repository import Repository
from tenants.values import Actor, Budget, KeyState, Limits, Period, Route, Scope, Unit

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
async def tenants(repository: Repository, now: datetime) -> None:
    for name in ("acme", "beta"):
        await repository.create_tenant(name, "free", now)


async def test_a_key_says_what_it_may_be_used_for(repository: Repository, now: datetime) -> None:
    """Scopes are a closed list, kept in its order; a key without any may be used for all."""
    by = Actor("ops@example.com", "user", "10.0.0.9", "req-1")
    scopes = [Route.EMBEDDINGS, Route.CHAT, Route.CHAT]
    issued = await repository.create_key("acme", now, scopes=scopes, by=by)
    found = await repository.find_key(issued.plaintext)
    assert found is not None
    assert found.key == issued.record
    assert found.key.scopes == (Route.CHAT, Route.EMBEDDINGS)
    assert found.key.created_by == "ops@example.com"
    assert [found.key.may(route) for route in Route] == [True, False, False, False, True, False]
    free = (await repository.create_key("acme", now)).record
    assert all(free.may(route) for route in Route)
    with pytest.raises(InvalidValue, match="at least one scope of: chat, completions"):
        await repository.create_key("acme", now, scopes=[])


async def test_a_key_is_made_with_its_limits(repository: Repository, now: datetime) -> None:
    """They are there when the key is, and the door learns of them with the key."""
    limits = Limits(requests_per_minute=60, concurrent_requests=0)
    budget = Budget(Period.MONTH, Unit.NANO, 10**15, 80)
    issued = await repository.create_key("acme", now, limits=limits, budgets=[budget])
    found = await repository.find_key(issued.plaintext)
    assert found is not None
    (mine,) = found.limits
    assert (mine.scope, mine.target_id) == (Scope.KEY, issued.record.id)
    assert (mine.limits, mine.budgets) == (limits, (budget,))
    for name in DIMENSIONS:
        with pytest.raises(InvalidValue, match=f"{name} must be 0 to"):
            await repository.create_key("acme", now, limits=Limits(**{name: -1}))
    assert len(await repository.list_keys("acme")) == 1


async def test_a_rotated_key_works_until_the_overlap_is_over(
    repository: Repository, now: datetime
) -> None:
    """Both open the door in between; the new one may do what the old one may, as long as it."""
    old = await repository.create_key(
        "acme",
        now,
        "ci",
        models=["m"],
        scopes=[Route.CHAT],
        limits=Limits(tokens_per_minute=5),
        expires_at=now + 30 * DAY,
        env="test",
    )
    later = now + 10 * DAY
    turned = await repository.rotate_key(old.plaintext, later, DAY)
    new = turned.issued.record
    assert turned.issued.plaintext.startswith("tgk_test_")
    assert (new.name, new.models, new.scopes) == ("ci", ("m",), (Route.CHAT,))
    assert (new.rotated_from, new.chain_id) == (old.record.id, old.record.id)
    assert new.expires_at == later + 30 * DAY
    assert turned.old.expires_at == later + DAY
    pairs = [await repository.find_key(k.plaintext) for k in (old, turned.issued)]
    states = [
        [pair.state(later + wait) for pair in pairs if pair is not None] for wait in (HOUR, DAY)
    ]
    assert states == [
        [KeyState.ACTIVE, KeyState.ACTIVE],
        [KeyState.EXPIRED, KeyState.ACTIVE],
    ]
    assert pairs[0] is not None
    assert pairs[1] is not None
    assert pairs[0].limits == pairs[1].limits != ()  # one allowance for both


async def test_an_overlap_never_prolongs_a_life(repository: Repository, now: datetime) -> None:
    """A key that ends sooner than the overlap ends when it would have."""
    old = await repository.create_key("acme", now, expires_at=now + HOUR)
    turned = await repository.rotate_key(old.record.id, now, DAY)
    assert turned.old.expires_at == now + HOUR


async def test_a_chain_has_at_most_two_live_keys(repository: Repository, now: datetime) -> None:
    """A second rotation waits for the end of the first, whichever of the two keys is named."""
    first = await repository.create_key("acme", now)
    second = (await repository.rotate_key(first.record.id, now, DAY)).issued
    for which in (first, second):
        with pytest.raises(InvalidValue, match="is being rotated already"):
            await repository.rotate_key(which.record.id, now + HOUR, DAY)
    with pytest.raises(InvalidValue, match="is revoked or expired"):
        await repository.rotate_key(first.record.id, now + DAY, DAY)
    third = (await repository.rotate_key(second.record.id, now + DAY, DAY)).issued.record
    assert (third.chain_id, third.rotated_from) == (first.record.id, second.record.id)


async def test_rotations_at_once_make_one_successor(repository: Repository, now: datetime) -> None:
    """Five operators rotate the same key at the same moment."""
    key = (await repository.create_key("acme", now)).record
    done = await asyncio.gather(
        *(repository.rotate_key(key.id, now, DAY) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in done) == ["InvalidValue"] * 4 + ["Rotation"]
    assert len(await repository.list_keys("acme")) == 2


@pytest.mark.parametrize("overlap", [-HOUR, 91 * DAY])
async def test_an_overlap_is_bounded(
    repository: Repository, now: datetime, overlap: timedelta
) -> None:
    key = (await repository.create_key("acme", now)).record
    with pytest.raises(InvalidValue, match="the overlap must be 0 to 90 days"):
        await repository.rotate_key(key.id, now, overlap)


async def test_a_tenant_reaches_only_its_own_keys(repository: Repository, now: datetime) -> None:
    """Another tenant's key is not there: neither shown, nor rotated, nor revoked."""
    key = (await repository.create_key("acme", now)).record
    for work in (
        repository.get_key(key.id, tenant="beta"),
        repository.revoke_key(key.id, now, tenant="beta"),
        repository.rotate_key(key.id, now, DAY, tenant="beta"),
        repository.get_limits(Scope.KEY, key.id, tenant="beta"),
    ):
        with pytest.raises(NotFound, match="there is no such key"):
            await work
    assert await repository.get_key(key.id, tenant="acme") == key


async def test_all_keys_are_revoked_in_two_steps(repository: Repository, now: datetime) -> None:
    """Exactly the keys that were shown are closed; others stay open."""
    hours = [now + i * HOUR for i in range(3)]
    mine = [(await repository.create_key("acme", at)).record.id for at in hours]
    await repository.revoke_key(mine[0], now)
    other = await repository.create_key("beta", now)
    plan = await repository.plan_revocation("acme", now)
    assert [key.id for key in plan.keys] == mine[1:]
    version = await repository.keys_version()
    gone = await repository.revoke_all("acme", plan.code, now + DAY)
    assert [(key.id, key.revoked_at) for key in gone] == [(i, now + DAY) for i in mine[1:]]
    assert await repository.keys_version() > version
    assert (await repository.list_keys("beta")) == [other.record]
    assert len(await repository.list_audit(action="key.revoke", tenant="acme")) == 3


async def test_a_code_confirms_what_was_shown_and_nothing_else(
    repository: Repository, now: datetime
) -> None:
    """A key made meanwhile, a wrong code and another tenant's code close nothing."""
    await repository.create_key("acme", now)
    await repository.create_key("beta", now)
    shown = await repository.plan_revocation("acme", now)
    await repository.create_key("acme", now, "newer")
    beta = await repository.plan_revocation("beta", now)
    for code in (shown.code, beta.code, "", "é"):
        with pytest.raises(InvalidValue, match="does not confirm the 2 live keys of tenant acme"):
            await repository.revoke_all("acme", code, now)
    assert all(key.revoked_at is None for key in await repository.list_keys())
