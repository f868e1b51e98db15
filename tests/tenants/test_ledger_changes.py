"""Changes to tenants, keys, users and tiers that are there: audited, told, all or nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import datetime, timedelta

import pytest

from tenants.errors import ChangedMeanwhile, InvalidValue, NotFound
from tenants.repository import KEEP, Repository, WantedTier
from tenants.values import Actor, Limits, Role, Route, Scope

HOUR = timedelta(hours=1)
WHO = Actor("ann", "user", "10.0.0.1", "req_1")
DIGEST = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$ZGlnZXN0"


async def test_a_tenant_gets_another_tier_and_organisation(
    repository: Repository, now: datetime
) -> None:
    """Its keys stand for the new tier at once; the audit has before and after."""
    payer = await repository.create_organisation("umbrella", now)
    before = await repository.create_tenant("acme", "free", now)
    issued = await repository.create_key("acme", now)
    version = await repository.keys_version()
    after = await repository.change_tenant(
        "acme", now, tier="premium", organisation="umbrella", by=WHO
    )
    assert after == dataclasses.replace(before, tier="premium", organisation_id=payer.id)
    found = await repository.find_key(issued.plaintext)
    assert found is not None
    assert (found.tier.name, found.tenant.organisation_id) == ("premium", payer.id)
    assert await repository.keys_version() > version
    entry = (await repository.list_audit())[0]
    assert (entry.action, entry.actor, entry.request_id) == ("tenant.change", "ann", "req_1")
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.before["tier"], entry.after["tier"]) == ("free", "premium")


async def test_what_does_not_change_a_tenant_leaves_no_trace(
    repository: Repository, now: datetime
) -> None:
    """The same again is no change; an unknown tier changes nothing, not even the other field."""
    await repository.create_tenant("acme", "free", now)
    await repository.create_organisation("umbrella", now)
    rows, version = len(await repository.list_audit()), await repository.keys_version()
    await repository.change_tenant("acme", now, tier="free", organisation="default")
    with pytest.raises(NotFound):
        await repository.change_tenant("acme", now, tier="gold", organisation="umbrella")
    with pytest.raises(NotFound):
        await repository.change_tenant("acme", now, tier="premium", organisation="gone")
    assert (await repository.get_tenant("acme")).tier == "free"
    assert len(await repository.list_audit()) == rows
    assert await repository.keys_version() == version


async def test_a_key_is_narrowed_and_widened(repository: Repository, now: datetime) -> None:
    """Only what is named changes; None opens what it stands for."""
    await repository.create_tenant("acme", "free", now)
    made = (await repository.create_key("acme", now, models=["a"])).record
    version = await repository.keys_version()
    narrow = await repository.change_key(
        made.id, now, scopes=[Route.CHAT], expires_at=now + HOUR, by=WHO
    )
    assert narrow == dataclasses.replace(made, scopes=(Route.CHAT,), expires_at=now + HOUR)
    wide = await repository.change_key(made.id, now, models=None, scopes=None, name="ci")
    assert wide == dataclasses.replace(narrow, models=None, scopes=None, name="ci")
    assert await repository.change_key(made.id, now, models=KEEP) == wide
    assert await repository.keys_version() == version + 2
    assert [e.action for e in await repository.list_audit()][:2] == ["key.change"] * 2


async def test_a_key_that_is_over_is_not_revived(repository: Repository, now: datetime) -> None:
    await repository.create_tenant("acme", "free", now)
    revoked = (await repository.create_key("acme", now)).record
    await repository.revoke_key(revoked.id, now)
    expired = (await repository.create_key("acme", now, expires_at=now + HOUR)).record
    for key_id, at in ((revoked.id, now), (expired.id, now + 2 * HOUR)):
        with pytest.raises(InvalidValue, match="revoked or expired"):
            await repository.change_key(key_id, at, expires_at=None)
    live = (await repository.create_key("acme", now)).record
    with pytest.raises(InvalidValue, match="in the past"):
        await repository.change_key(live.id, now, expires_at=now - HOUR)
    with pytest.raises(InvalidValue, match="at least one scope"):
        await repository.change_key(live.id, now, scopes=[])


async def test_another_role_ends_the_logins(repository: Repository, now: datetime) -> None:
    """Who may do more or less has to log in again; the last owner stays one."""
    await repository.create_tenant("acme", "free", now)
    ann = await repository.create_user("ann", Role.OWNER, now, password_digest=DIGEST)
    bob = await repository.create_user("bob", Role.VIEWER, now, password_digest=DIGEST)
    await repository.create_session(bob.id, "s", now, expires_at=now + HOUR, by=WHO)
    changed = await repository.change_role("bob", Role.OPERATOR, now, by=WHO)
    assert changed == dataclasses.replace(bob, role=Role.OPERATOR)
    assert await repository.find_session("s", now, idle=HOUR) is None
    with pytest.raises(InvalidValue, match="last owner"):
        await repository.change_role("ann", Role.VIEWER, now)
    await repository.change_role("bob", Role.OWNER, now)
    lower = await repository.change_role("ann", Role.TENANT_VIEWER, now, tenant="acme")
    assert (lower.id, lower.role, lower.tenant_id is not None) == (
        ann.id,
        Role.TENANT_VIEWER,
        True,
    )
    for role, whose in ((Role.TENANT_VIEWER, None), (Role.VIEWER, "acme")):
        with pytest.raises(InvalidValue, match="a tenant belongs"):
            await repository.change_role("ann", role, now, tenant=whose)


async def test_of_two_owners_who_demote_each_other_one_stays(
    repository: Repository, now: datetime
) -> None:
    """Both at the same moment: the rows of owners are locked, so the later one is refused."""
    for name in ("ann", "bob"):
        await repository.create_user(name, Role.OWNER, now, password_digest=DIGEST)
    done = await asyncio.gather(
        *(repository.change_role(name, Role.VIEWER, now) for name in ("ann", "bob")),
        return_exceptions=True,
    )
    assert sorted(isinstance(one, InvalidValue) for one in done) == [False, True]
    assert await repository.num_owners() == 1


async def test_a_login_says_when_it_was_proved(repository: Repository, now: datetime) -> None:
    """A provider may say that its user proved who it is a while ago."""
    ann = await repository.create_user("ann", Role.OWNER, now, password_digest=DIGEST)
    await repository.create_session(
        ann.id, "s", now, expires_at=now + HOUR, by=WHO, authenticated_at=now - HOUR
    )
    found = await repository.find_session("s", now, idle=HOUR)
    assert found is not None
    assert (found.authenticated_at, found.seen_at) == (now - HOUR, now)


async def test_pages_hold_everything_once(repository: Repository, now: datetime) -> None:
    """Tenants, organisations, users, keys and limits: page by page the same as in one go."""
    for i in range(7):
        await repository.create_organisation(f"org{i}", now)
        await repository.create_tenant(f"t{i}", "free", now, organisation=f"org{i}")
        await repository.create_user(f"u{i}", Role.VIEWER, now, password_digest=DIGEST)
        made = await repository.create_key(
            f"t{i}", now + i * timedelta(seconds=1), limits=Limits(requests_per_minute=i)
        )
        await repository.set_limits(Scope.TENANT, f"t{i}", {"tokens_per_day": i}, now)
        await repository.set_limits(
            Scope.KEY, made.record.id, {"tokens_per_day": i}, now, model="m"
        )

    async def by_name(lister: object) -> list[str]:
        names: list[str] = []
        while page := await lister(after=names[-1] if names else None, limit=3):  # type: ignore[operator]
            assert len(page) <= 3
            names += [record.name for record in page]
        return names

    for lister in (repository.list_organisations, repository.list_tenants, repository.list_users):
        assert await by_name(lister) == [record.name for record in await lister()]
    keys: list[str] = []
    while page := await repository.list_keys(before=keys[-1] if keys else None, limit=2):
        keys += [key.id for key in page]
    assert keys == [key.id for key in await repository.list_keys()]
    assert len(keys) == 7
    limits, last = [], None
    while found := await repository.list_limits(after=last, limit=2):
        last = (found[-1].scope, found[-1].target_id)
        limits += found
    assert limits == await repository.list_limits()
    assert len(limits) == 21


async def test_tiers_are_applied_all_or_none(repository: Repository) -> None:
    """One bad tier, and none is changed; what is said the same stays at its version."""
    before = await repository.list_tiers()
    bad = [
        WantedTier("free", {"ttft_ms": "1500"}),
        WantedTier("batch", {"rank": "3", "ttft_ms": "60000", "tbt_ms": "0"}),
    ]
    rows, version = len(await repository.list_audit()), await repository.keys_version()
    for step in (repository.plan_tiers, repository.apply_tiers):
        with pytest.raises(InvalidValue, match="tier batch: tbt_ms must be"):
            await step(bad)
    assert await repository.list_tiers() == before
    assert len(await repository.list_audit()) == rows
    good = [bad[0], WantedTier("batch", {"rank": "3", "ttft_ms": "60000", "tbt_ms": "2000"})]
    planned = await repository.plan_tiers(good)
    assert await repository.list_tiers() == before
    assert await repository.keys_version() == version
    assert await repository.apply_tiers(good, by=WHO) == planned
    tiers = {tier.name: tier for tier in await repository.list_tiers()}
    assert (tiers["free"].ttft_ms, tiers["free"].version, tiers["batch"].rank) == (1500, 2, 3)
    assert [p.before for p in planned] == [next(t for t in before if t.name == "free"), None]
    assert len(await repository.list_audit()) == rows + 2
    again = await repository.apply_tiers(good, by=WHO)
    assert all(plan.before == plan.after for plan in again)
    assert len(await repository.list_audit()) == rows + 2
    assert [v.tier.version for v in await repository.list_tier_versions("free")] == [1, 2]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ([], "1 to 100 tiers"),
        ([WantedTier("free", {"rank": "1"})] * 2, "named twice"),
        ([WantedTier("no good", {"rank": "1"})], "a tier's name"),
        ([WantedTier("gold", {"rank": "1"})], "tier gold: a new tier needs"),
        ([WantedTier("free", {"colour": "1"})], "tier free: a tier has no field"),
    ],
)
async def test_tiers_that_cannot_be_are_refused(
    repository: Repository, wanted: list[WantedTier], says: str
) -> None:
    for step in (repository.plan_tiers, repository.apply_tiers):
        with pytest.raises(InvalidValue, match=says):
            await step(wanted)


async def test_an_update_cannot_be_lost(repository: Repository) -> None:
    """Who looked at version 1 may not change version 2, alone or in a file."""
    await repository.change_tier("free", {"ttft_ms": "1500"}, version=1)
    with pytest.raises(ChangedMeanwhile, match="at version 2, not 1"):
        await repository.change_tier("free", {"ttft_ms": "1600"}, version=1)
    for stale in (
        WantedTier("free", {"ttft_ms": "1"}, version=1),
        WantedTier("gold", {"rank": "1"}, version=1),
    ):
        with pytest.raises(ChangedMeanwhile):
            await repository.apply_tiers([stale])
    done = await asyncio.gather(
        *(repository.change_tier("free", {"ttft_ms": f"{n}"}, version=2) for n in (1700, 1800)),
        return_exceptions=True,
    )
    assert sorted(isinstance(one, ChangedMeanwhile) for one in done) == [False, True]
    assert (await repository.get_tier("free")).version == 3
