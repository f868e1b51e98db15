"""What is promised and what is kept now, by tier: attainment, budget and burn of every window.

It asks the sums only (tenants/slo_store.py), so it costs the same whatever there is of requests.
Windows end with the minute under way; a budget is measured by the tier's objective as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tenants.database import Database
from tenants.slo import Budget, Objective, SloCounts, budget_of
from tenants.slo_many import counts_of_windows
from tenants.slo_report_sums import digits
from tenants.slo_windows import BURN_WINDOWS, calendar, rolling
from tenants.values import Period

ROLLING, CALENDAR = "rolling", "calendar"


@dataclass(frozen=True, slots=True)
class WindowView:
    """What one window came to in one tier; `target` None: nobody knows what was promised."""

    name: str
    kind: str
    since: datetime
    until: datetime
    counts: SloCounts
    target: float | None

    def budget(self, objective: Objective) -> Budget | None:
        """Return the budget of an objective, None where there is no target."""
        return None if self.target is None else budget_of(self.counts, objective, self.target)


@dataclass(frozen=True, slots=True)
class TierView:
    """A tier, and its windows: those of burn rates, then the day, week and month so far."""

    tier: str
    target: float | None
    windows: list[WindowView]

    def window(self, name: str) -> WindowView:
        """Return one window; raises `KeyError`."""
        return {window.name: window for window in self.windows}[name]


def bounds_of(now: datetime) -> list[tuple[str, str, datetime, datetime]]:
    """Return (name, kind, since, until) of every window."""
    found = [(name, ROLLING, *rolling(now, length)) for name, length in BURN_WINDOWS.items()]
    return found + [(period.value, CALENDAR, *calendar(now, period)) for period in Period]


async def overview(
    database: Database,
    now: datetime,
    targets: Mapping[str, float],
    *,
    tenant_id: str | None = None,
) -> list[TierView]:
    """Return the tiers of `targets` in their order, then others in which anything was served.

    `tenant_id` None: all tenants together.
    """
    windows = bounds_of(now)
    spans = [(since, until) for *_, since, until in windows]
    sums = await counts_of_windows(database, spans, tenant_id=tenant_id)
    served = {tier for found in sums for tier in found}
    views = []
    for tier in [*targets, *sorted(served - set(targets))]:
        target = targets.get(tier)
        of_tier = [
            WindowView(*window, found.get(tier, SloCounts()), target)
            for window, found in zip(windows, sums, strict=True)
        ]
        views.append(TierView(tier, target, of_tier))
    return views


def budget_texts(window: WindowView, objective: Objective) -> dict[str, int | str | None]:
    """Return an objective's budget: whole numbers, and ratios with six digits, the rest cut off."""
    budget = window.budget(objective)
    counted, bad = window.counts.counted(objective), window.counts.bad(objective)
    ratios = {"attainment": Budget(counted, bad).attainment}
    if budget is not None:
        ratios["allowed"] = budget.allowed
        ratios["left"] = budget.allowed - bad
        ratios["left_share"] = budget.left
        ratios["burn"] = budget.burn
    return {
        "counted": counted,
        "bad": bad,
        **{name: digits(value) or None for name, value in ratios.items()},
    }
