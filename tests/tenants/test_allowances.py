"""Limits and budgets as rows, and as operators write them."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.errors import InvalidValue, NotFound
from tenants.limits import (
    MOST_AMOUNT,
    budget_text,
    money,
    parse_amount,
    parse_budget,
    parse_money,
)
from tenants.repository import Repository
from tenants.values import Budget, Limits, Period, Scope, ScopeLimits, Unit

MONTH = Budget(Period.MONTH, Unit.TOKENS, 5_000_000, 80)
DAY = Budget(Period.DAY, Unit.NANO, 12_500_000_000)


async def test_every_scope_has_limits_of_its_own(repository: Repository, now: datetime) -> None:
    """What is set for a key, its tenant and its organisation all comes with the key."""
    organisation = await repository.create_organisation("acme", now)
    tenant = await repository.create_tenant("acme-eu", "free", now, organisation="acme")
    issued = await repository.create_key("acme-eu", now)
    other = await repository.create_key((await repository.create_tenant("b", "free", now)).id, now)
    await repository.set_limits(Scope.KEY, issued.plaintext, {"requests_per_minute": 1}, now)
    await repository.set_limits(Scope.TENANT, "acme-eu", {"tokens_per_day": 2}, now)
    await repository.set_limits(Scope.TENANT, "acme-eu", {"tokens_per_day": 3}, now, model="m")
    await repository.set_budgets(Scope.ORGANISATION, organisation.id, [MONTH, DAY], now)
    found = await repository.find_key(issued.plaintext)
    assert found is not None
    assert found.limits == (
        ScopeLimits(Scope.KEY, issued.record.id, Limits(requests_per_minute=1)),
        ScopeLimits(Scope.TENANT, tenant.id, Limits(tokens_per_day=2)),
        ScopeLimits(Scope.TENANT, tenant.id, Limits(tokens_per_day=3), model="m"),
        ScopeLimits(Scope.ORGANISATION, organisation.id, budgets=(DAY, MONTH)),
    )
    assert await repository.list_limits() == list(found.limits)
    assert await repository.get_limits(Scope.TENANT, "acme-eu") == list(found.limits[1:3])
    stranger = await repository.find_key(other.plaintext)
    assert stranger is not None
    assert stranger.limits == ()


async def test_a_change_leaves_the_rest_and_reaches_gateways(
    repository: Repository, now: datetime
) -> None:
    """One number changes, one is taken away, others stay; the change counter rises."""
    await repository.create_tenant("acme", "free", now)
    version = await repository.keys_version()
    changes = {"requests_per_minute": 5, "tokens_per_minute": 100}
    await repository.set_limits(Scope.TENANT, "acme", changes, now)
    assert await repository.keys_version() > version
    await repository.set_budgets(Scope.TENANT, "acme", [MONTH, DAY], now)
    more = {"requests_per_minute": None, "concurrent_requests": 0}
    made = await repository.set_limits(Scope.TENANT, "acme", more, now)
    assert made.limits == Limits(tokens_per_minute=100, concurrent_requests=0)
    assert made.budgets == (DAY, MONTH)
    less = await repository.set_budgets(
        Scope.TENANT, "acme", [(Period.DAY, Unit.NANO), (Period.WEEK, Unit.NANO)], now
    )
    assert less.budgets == (MONTH,)
    assert await repository.get_limits(Scope.TENANT, "acme") == [less]
    await repository.set_budgets(Scope.TENANT, "acme", [(Period.MONTH, Unit.TOKENS)], now)
    nothing = dict.fromkeys(("tokens_per_minute", "concurrent_requests"))
    await repository.set_limits(Scope.TENANT, "acme", nothing, now)
    assert await repository.list_limits() == []


async def test_changes_at_once_are_all_kept(repository: Repository, now: datetime) -> None:
    """Operators who change different limits of one tenant do not undo each other."""
    await repository.create_tenant("acme", "free", now)
    names = ("requests_per_minute", "tokens_per_minute", "requests_per_day", "tokens_per_day")
    await asyncio.gather(
        *(repository.set_limits(Scope.TENANT, "acme", {name: 7}, now) for name in names),
        repository.set_budgets(Scope.TENANT, "acme", [MONTH], now),
    )
    (kept,) = await repository.get_limits(Scope.TENANT, "acme")
    assert kept.limits == Limits(**dict.fromkeys(names, 7))
    assert kept.budgets == (MONTH,)


async def test_what_cannot_be_is_refused_and_changes_nothing(
    repository: Repository, now: datetime
) -> None:
    """Unknown owners and limits, negative numbers, shares above all."""
    await repository.create_tenant("acme", "free", now)
    for scope, said in (
        (Scope.KEY, "there is no such key"),
        (Scope.TENANT, "there is no tenant 'gone'"),
        (Scope.ORGANISATION, "there is no organisation 'gone'"),
    ):
        with pytest.raises(NotFound, match=said):
            await repository.set_limits(scope, "gone", {"tokens_per_day": 1}, now)
    with pytest.raises(InvalidValue, match="there is no limit 'speed'; there are: requests_per_m"):
        await repository.set_limits(Scope.TENANT, "acme", {"speed": 1}, now)
    with pytest.raises(InvalidValue, match="tokens_per_day must be 0 to 9007199254740991"):
        await repository.set_limits(Scope.TENANT, "acme", {"tokens_per_day": 2**53}, now)
    for wrong, said in (
        (Budget(Period.DAY, Unit.TOKENS, 1, 101), "an alert is at 1 to 100 percent"),
        (Budget(Period.DAY, Unit.NANO, 2**53), r"of nano must be 0 to 9007199\.254740991"),
    ):
        with pytest.raises(InvalidValue, match=said):
            await repository.set_budgets(Scope.TENANT, "acme", [wrong], now)
    with pytest.raises(InvalidValue, match="a model's name has at most 256"):
        await repository.set_limits(Scope.TENANT, "acme", {}, now, model="m" * 257)
    assert await repository.list_limits() == []


@given(st.integers(0, MOST_AMOUNT))
def test_money_is_read_as_it_is_written(nano: int) -> None:
    """No billionth is lost on the way through text."""
    assert parse_money(money(nano)) == nano


@given(
    st.builds(
        Budget,
        period=st.sampled_from(Period),
        unit=st.sampled_from(Unit),
        amount=st.integers(0, MOST_AMOUNT),
    )
)
def test_a_budget_is_read_as_it_is_written(budget: Budget) -> None:
    assert parse_budget(budget_text(budget)) == budget


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0", 0), ("12.50", 12_500_000_000), ("0.000000001", 1), ("7", 7_000_000_000)],
)
def test_money_is_exact(text: str, nano: int) -> None:
    assert parse_money(text) == nano


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5000000", "is not a budget such as tokens=5000000/month"),
        ("hours=5/month", "is not a budget such as"),
        ("tokens=5/year", "a budget is for a day, week or month, not 'year'"),
        ("tokens=-5/day", "tokens must be a whole number or none, not '-5'"),
        ("tokens=1.5/day", "tokens must be a whole number"),
        ("tokens=٣/day", "tokens must be a whole number"),
        ("money=1e3/day", "money is written like 12.50"),
        ("money=0.0000000001/day", "up to nine decimals"),
        ("money=99999999/day", "a budget of nano must be 0 to 9007199.254740991"),
        ("tokens=9007199254740992/day", "a budget of tokens must be 0 to 9007199254740991"),
    ],
)
def test_a_mistake_in_a_budget_is_told_with_the_rule(text: str, said: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_budget(text)
    assert said in str(refused.value)


def test_none_takes_a_limit_away() -> None:
    assert parse_amount("rpm", "none") is None
    assert parse_budget("money=none/week") == (Period.WEEK, Unit.NANO)
