"""Tiers are data: an operator changes and adds them, and nothing senseless gets in."""

from __future__ import annotations

import dataclasses
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.errors import AlreadyExists, InvalidValue, NotFound
from tenants.repository import Repository
from tenants.tiers import check_tier, new_tier
from tenants.values import Overload

NEEDED = {"rank": "2", "ttft_ms": "9000", "tbt_ms": "1000"}


async def test_a_tier_is_changed_and_the_next_version_of_itself(repository: Repository) -> None:
    """Named fields change, the others stay, and whoever remembers keys will look again."""
    before = {tier.name: tier for tier in await repository.list_tiers()}
    version = await repository.keys_version()
    made = await repository.change_tier("free", {"pace_ms": "50", "tbt_mode": "gap"})
    assert made == dataclasses.replace(before["free"], pace_ms=50, tbt_mode="gap", version=2)
    assert await repository.list_tiers() == [before["premium"], made]
    assert await repository.keys_version() > version


async def test_what_a_full_house_means_is_set_like_any_field(repository: Repository) -> None:
    """What happens to a request that would be late is kept by the row, and comes back with it."""
    for chosen in Overload:
        made = await repository.change_tier("free", {"on_overload": chosen.value})
        assert made.on_overload is chosen
        assert made in await repository.list_tiers()


async def test_a_tier_is_added_and_its_tenants_have_it(
    repository: Repository, now: datetime
) -> None:
    """A new row is a new class of service, with nothing else to do."""
    made = await repository.create_tier("batch", NEEDED | {"tbt_mode": "stream"})
    assert (made.rank, made.tbt_mode, made.pace_ms, made.version) == (2, "stream", 0, 1)
    assert (await repository.list_tiers())[-1] == made
    tenant = await repository.create_tenant("acme", "batch", now)
    key = (await repository.create_key(tenant.id, now)).plaintext
    found = await repository.find_key(key)
    assert found is not None
    assert found.tier == made
    with pytest.raises(AlreadyExists, match="there is a tier 'batch' already"):
        await repository.create_tier("batch", NEEDED)


async def test_what_is_refused_changes_nothing(repository: Repository) -> None:
    """A bad value leaves the row as it was; an unknown tier is told with the known ones."""
    before = await repository.list_tiers()
    with pytest.raises(InvalidValue, match="pace_ms must be 0"):
        await repository.change_tier("premium", {"pace_ms": "91"})
    with pytest.raises(NotFound, match=r"no tier 'gold'; there are: premium, free"):
        await repository.change_tier("gold", {"pace_ms": "1"})
    with pytest.raises(InvalidValue, match="a tier's name"):
        await repository.create_tier("a b", NEEDED)
    assert await repository.list_tiers() == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pace_ms": "901"}, "pace_ms must be 0 (tokens leave at once) to 900, nine tenths of"),
        ({"pace_ms": "-1"}, "pace_ms must be 0 (tokens leave at once) to 900"),
        ({"pace_ms": "--1"}, "pace_ms must be a whole number, not '--1'"),
        ({"ttft_ms": "-1"}, "ttft_ms must be 1 to"),
        ({"price_output_nano": "-5"}, "price_output_nano must be 0 to"),
        ({"max_queue": "-5"}, "max_queue must be 1 to"),
        ({"rank": "-1"}, "rank must be 0 to 1000, not -1"),
        ({"pace_ms": "1.5"}, "pace_ms must be a whole number"),
        ({"pace_ms": ""}, "pace_ms must be a whole number"),
        ({"tbt_mode": "loose"}, "tbt_mode must be gap or stream, not 'loose'"),
        ({"tbt_ms": "0"}, "tbt_ms must be 1 to"),
        ({"ttft_ms": "99999999999"}, "ttft_ms must be 1 to"),
        ({"ttft_ms": "9999999999"}, "ttft_ms must be 1 to"),
        ({"rank": "1001"}, "rank must be 0 to 1000"),
        ({"objective": "0"}, "objective must be above 0"),
        ({"objective": "nan"}, "objective must be a number"),
        ({"weight": "-2"}, "weight must be above 0"),
        ({"max_queue": "0"}, "max_queue must be 1 to"),
        ({"name": "x"}, "a tier has no field 'name' to set; it has: rank,"),
        ({"on_overload": "drop"}, "on_overload must be queue, reject or downgrade, not 'drop'"),
    ],
)
def test_a_mistake_is_told_with_the_rule(values: dict[str, str], said: str) -> None:
    """One line that names the field and what it may be."""
    with pytest.raises(InvalidValue) as refused:
        new_tier("t", NEEDED | values)
    assert said in str(refused.value)


def test_a_new_tier_needs_its_promise() -> None:
    """Rank and both targets have no default."""
    with pytest.raises(InvalidValue, match=r"a new tier needs ttft_ms=\.\.\., tbt_ms=\.\.\."):
        new_tier("t", {"rank": "1"})


def test_a_bound_can_be_taken_away() -> None:
    """`none` leaves a bound to the engine."""
    tier = new_tier("t", NEEDED | {"max_queue": "none", "max_output_tokens": "100"})
    assert (tier.max_queue, tier.max_output_tokens) == (None, 100)


@given(pace_ms=st.integers(0, 2000), tbt_ms=st.integers(1, 2000))
def test_a_pace_leaves_a_tenth_of_the_promise_for_the_way(pace_ms: int, tbt_ms: int) -> None:
    """Exactly those paces are taken that leave it."""
    tier = dataclasses.replace(new_tier("t", NEEDED), pace_ms=pace_ms, tbt_ms=tbt_ms)
    if 10 * pace_ms <= 9 * tbt_ms:
        check_tier(tier)
    else:
        with pytest.raises(InvalidValue, match="pace_ms"):
            check_tier(tier)
