"""Limits and budgets as pages show them: how much of each budget is spent, drawn as a bar.

What is spent is what was billed in the window, from the sums by day; requests under way are not in
it yet, though the limiter counts them. Budgets of one model have no bar: nothing is added up so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.dashboard.filters import count, nano
from gateway.dashboard.words import PERIOD_LABELS
from tenants.database import Database
from tenants.slo_windows import calendar
from tenants.usage_days import DayUsage, spent_since
from tenants.values import Budget, Period, Scope, ScopeLimits, Unit

DEFAULT_ALERT = 80


@dataclass(frozen=True, slots=True)
class BudgetBar:
    """One budget; `spent` None where it is not added up. Amounts are in the budget's own unit."""

    scope: Scope
    target_id: str
    model: str
    budget: Budget
    since: datetime
    spent: int | None

    @property
    def period(self) -> str:
        """The window in words."""
        return PERIOD_LABELS[self.budget.period]

    @property
    def share(self) -> float | None:
        """The spent share; a budget of nothing is spent."""
        if self.spent is None:
            return None
        return self.spent / self.budget.amount if self.budget.amount else 1.0

    @property
    def kind(self) -> str:
        """`good`, `warn` from the alert on (80 % where there is none), `bad` when it is spent."""
        if self.share is None:
            return "off"
        if self.share >= 1:
            return "bad"
        alert = self.budget.alert_percent or DEFAULT_ALERT
        return "warn" if self.share * 100 >= alert else "good"

    @property
    def spent_text(self) -> str:
        """What is spent, in the unit's own words."""
        return amount_text(self.budget.unit, self.spent)

    @property
    def amount_text(self) -> str:
        """What may be spent."""
        return amount_text(self.budget.unit, self.budget.amount)


def amount_text(unit: Unit, amount: int | None) -> str:
    """Return an amount as people read it: tokens with thousands apart, money with decimals."""
    if amount is None:
        return "not added up"
    return nano(amount) if unit is Unit.NANO else f"{count(amount)} tokens"


async def bars_of(
    database: Database, found: Sequence[ScopeLimits], now: datetime
) -> list[BudgetBar]:
    """Return a bar for each budget of these; one question for each kind of owner and window."""
    # Those of one model are not added up.
    owners: dict[tuple[Scope, Period], set[str]] = {}
    for entry in found:
        if not entry.model:
            for budget in entry.budgets:
                owners.setdefault((entry.scope, budget.period), set()).add(entry.target_id)
    spent = {
        (scope, period): await spent_since(database, scope, sorted(ids), *calendar(now, period))
        for (scope, period), ids in owners.items()
    }
    bars = []
    for entry in found:
        for budget in entry.budgets:
            amount = None
            if not entry.model:
                by_owner = spent[entry.scope, budget.period]
                used = by_owner.get(entry.target_id, DayUsage())
                amount = used.cost_nano if budget.unit is Unit.NANO else used.tokens
            since = calendar(now, budget.period)[0]
            bars.append(BudgetBar(entry.scope, entry.target_id, entry.model, budget, since, amount))
    return bars
