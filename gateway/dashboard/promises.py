"""How each tier's promise stands, from the sums of the ledger: a handful of rows, never a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.dashboard.words import State, standing
from tenants.database import Database
from tenants.slo import Budget, Objective, SloCounts, budget_of
from tenants.slo_store import counts
from tenants.slo_windows import BURN_WINDOWS, rolling
from tenants.values import TierRecord

WINDOWS = ("5m", "1h", "6h", "30d")
# A budget of thirty days that is spent six times too fast is gone in five (SRE Workbook).
FAST = 6


@dataclass(frozen=True, slots=True)
class Promise:
    """One tier: what it has promised, and the budgets of the windows by name."""

    tier: TierRecord
    budgets: dict[str, Budget]
    counts: dict[str, SloCounts]
    state: State


async def promises_of(
    database: Database, tiers: Sequence[TierRecord], now: datetime
) -> list[Promise]:
    """Return how every tier stands, the first in rank first. Raises LedgerError."""
    by_window = {}
    for name in WINDOWS:
        since, until = rolling(now, BURN_WINDOWS[name])
        by_window[name] = await counts(database, since, until)
    found = []
    for tier in sorted(tiers, key=lambda one: (one.rank, one.name)):
        sums = {name: by_window[name].get(tier.name, SloCounts()) for name in WINDOWS}
        budgets = {name: budget_of(sums[name], Objective.ALL, tier.objective) for name in WINDOWS}
        found.append(Promise(tier, budgets, sums, _state(budgets)))
    return found


def _state(budgets: dict[str, Budget]) -> State:
    long = standing(budgets["30d"])
    if long.kind in ("off", "bad"):
        return long
    if all((budgets[name].burn or 0) >= FAST for name in ("5m", "1h")):
        return State("burning fast", "bad")
    return long
