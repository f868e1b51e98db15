"""The name `new` is given to nothing that has a page: the page of that address is the form."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import update

from tenants.database import Database
from tenants.errors import InvalidValue
from tenants.models import Tier
from tenants.repository import Repository, WantedTier
from tenants.values import Role

FIELDS = {"rank": "5", "ttft_ms": "900", "tbt_ms": "90"}
REFUSED = "name cannot be 'new': that is the address"


async def test_nothing_is_called_new(repository: Repository, now: datetime) -> None:
    """Made one by one or by a file; a file with one such tier sets none."""
    wanted = [WantedTier("silver", FIELDS), WantedTier("new", FIELDS)]
    for made in (
        repository.create_tier("new", FIELDS, now=now),
        repository.plan_tiers(wanted),
        repository.apply_tiers(wanted, now=now),
        repository.create_tenant("new", "free", now),
        repository.create_organisation("new", now),
        repository.create_user("new", Role.VIEWER, now),
    ):
        with pytest.raises(InvalidValue, match=REFUSED):
            await made
    assert {tier.name for tier in await repository.list_tiers()}.isdisjoint({"new", "silver"})
    for name in ("newer", "New"):
        assert (await repository.create_tier(name, FIELDS, now=now)).name == name


async def test_a_tier_of_that_name_that_is_there_can_be_changed(
    repository: Repository, database: Database, now: datetime
) -> None:
    """As a ledger of a version that still gave the name has it."""
    await repository.create_tier("newer", FIELDS, now=now)
    async with database.write() as session:
        await session.execute(update(Tier).where(Tier.name == "newer").values(name="new"))
    [plan] = await repository.apply_tiers([WantedTier("new", {"ttft_ms": "800"})], now=now)
    assert plan.after.ttft_ms == 800
    assert (await repository.change_tier("new", {"ttft_ms": "700"}, now=now)).ttft_ms == 700
