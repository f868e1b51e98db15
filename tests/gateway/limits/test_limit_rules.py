"""What the ledger allows becomes rules; what cannot be counted is refused in one clear line."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from store_kit import NOON, allow, ask

from engine.core.clock import utc_now
from gateway.limits.allowances import Allowances, LedgerSpent
from gateway.limits.calendar import moment_of
from gateway.limits.rules import Allowance, Dimension
from gateway.limits.values import Ask, Spend
from migrations import runner
from tenants.database import Database
from tenants.errors import InvalidValue
from tenants.usage import insert_usage
from tenants.values import Budget, Limits, Period, Scope, ScopeLimits, Unit, UsageRecord


def test_every_limit_is_a_rule_of_its_own() -> None:
    """Each dimension and each budget has a key of its own, and nothing is derived from another."""
    names = [d.value for d in Dimension if d is not Dimension.BUDGET]
    budgets = [Budget(p, u, 10, alert_percent=1) for p in Period for u in Unit]
    made = allow("tenant:t", *budgets, **{name: n for n, name in enumerate(names)})
    assert [(r.dimension.value, r.limit) for r in made.rules[:7]] == [
        (name, n) for n, name in enumerate(names)
    ]
    assert [r.limit for r in made.rules[7:]] == [10] * 6
    assert len({rule.key for rule in made.rules}) == 13
    assert {rule.alert_at for rule in made.rules[7:]} == {1}, "a share of nothing is no alert"


def test_limits_of_a_model_hold_beside_those_of_all() -> None:
    """A request has those of its own model and those of every model; each is made once."""
    limits = (
        ScopeLimits(Scope.KEY, "k", Limits(requests_per_minute=1)),
        ScopeLimits(Scope.KEY, "k", Limits(requests_per_minute=2), model="a/b c"),
        ScopeLimits(Scope.TENANT, "t", Limits(requests_per_minute=3), model="other"),
    )
    allowances = Allowances()
    made = allowances.of(limits, "a/b c")
    assert [allowance.name for allowance in made] == ["key:k", "key:k/a/b%20c"]
    assert allowances.of(limits, "a/b c")[1] is made[1]
    assert [allowance.name for allowance in allowances.of(limits, "else")] == ["key:k"]


@pytest.mark.parametrize(
    "limits",
    [
        {"tokens_per_minute": -1},
        {"tokens_per_minute": 2**53},
        {"concurrent_requests": 2**60},
    ],
)
def test_amounts_that_cannot_be_counted_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidValue):
        allow(**limits)


def test_names_that_would_break_a_key_are_refused() -> None:
    """A brace would move the hash tag, a space would end a field."""
    for name in ("a{b}", "a b", "", "x" * 301, "a\n"):
        with pytest.raises(ValueError, match="must be"):
            Ask(name, "acme", (), Spend())
        with pytest.raises(ValueError, match="must be"):
            Ask("r1", name, (), Spend())
    with pytest.raises(ValueError, match="must be"):
        Allowance(ScopeLimits(Scope.KEY, "a{b}"))


def test_nonsense_is_refused() -> None:
    twice = Budget(Period.DAY, Unit.TOKENS, 5)
    with pytest.raises(ValueError, match="at most one budget"):
        allow("key:a", twice, twice)
    with pytest.raises(ValueError, match="each once"):
        ask(allow("key:a"), allow("key:a"))
    with pytest.raises(ValueError, match="an amount"):
        Spend(prompt_tokens=-1)


async def test_the_ledger_answers_in_what_a_rule_counts(tmp_path: Path) -> None:
    """Requests, tokens and money, each from the rows: here two, of one request."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    await runner.upgrade(url)
    database = await Database.open(url)
    record = UsageRecord(
        request_id=f"embd-{'0' * 32}-0",
        tenant_id="t",
        key_id="k",
        tier_requested="free",
        tier_served="free",
        model="m",
        prompt_tokens=100,
        cached_tokens=0,
        output_tokens=7,
        finish_reason="stop",
        stream=False,
        arrival=utc_now(),
        total_ms=1.0,
        cost_nano=12345,
    )
    await insert_usage(database, [record, replace(record, request_id=record.request_id[:-1] + "1")])
    spent = LedgerSpent(database)
    since = record.arrival - timedelta(days=1)
    budgets = (Budget(Period.DAY, Unit.TOKENS, 9), Budget(Period.DAY, Unit.NANO, 9))
    made = allow(
        "tenant:t",
        *budgets,
        requests_per_day=9,
        tokens_per_day=9,
        input_tokens_per_minute=9,
        output_tokens_per_minute=9,
        concurrent_requests=9,
    )
    found = {rule.key.split(":")[0]: await spent(rule, since) for rule in made.rules}
    assert found == {
        "rpd": 1, "tpd": 214, "ipm": 200, "opm": 14, "con": 0, "bdt": 214, "bdn": 24690,
    }  # fmt: skip
    assert await spent(made.rules[0], moment_of(NOON) + timedelta(days=36500)) == 0
    await database.close()
