"""Page of how promises are kept, by tier and tenant: budgets, burn, the worst requests.

All numbers are sums that are there already, except for the worst of the latest 500 misses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.asked import asked_tenant
from gateway.dashboard.forms import Form
from gateway.dashboard.frame import page
from gateway.dashboard.route import PageRoute
from gateway.dashboard.words import State, standing
from gateway.errors import bad_value
from tenants.database import Database
from tenants.slo import Budget, Objective, SloCounts, budget_of
from tenants.slo_overview import TierView, overview
from tenants.slo_store import series, worst_records
from tenants.slo_windows import BURN_WINDOWS, DAY, HOUR, MINUTE, floor_to
from tenants.values import Period, TenantRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

MOST_CHOICES = 200
WORST = 20
BUDGET_WINDOW = "30d"
# What the chart shows: how long, and by the hour or by the day.
RANGES: dict[str, tuple[str, timedelta, int]] = {
    "1d": ("24 hours", timedelta(days=1), HOUR),
    "7d": ("7 days", timedelta(days=7), HOUR),
    "30d": ("30 days", timedelta(days=30), DAY),
    "90d": ("90 days", timedelta(days=90), DAY),
}
DEFAULT_RANGE = "7d"
OBJECTIVES = {
    Objective.ALL: "Both targets met",
    Objective.TTFT: "First token in time",
    Objective.TBT: "Later tokens in time",
    Objective.AVAILABILITY: "Answered to the end",
}


@dataclass(frozen=True, slots=True)
class TierStanding:
    """One tier's promise as the API has it, with its words; `target` None: it is no more."""

    view: TierView

    def budget(self, objective: Objective = Objective.ALL, window: str = BUDGET_WINDOW) -> Budget:
        """Return the budget of an objective over a window."""
        return budget_of(self.view.window(window).counts, objective, self.view.target or 1.0)

    @property
    def counts(self) -> SloCounts:
        """What was asked in thirty days."""
        return self.view.window(BUDGET_WINDOW).counts

    @property
    def state(self) -> State:
        """How the promise stands over thirty days."""
        return standing(self.budget())

    @property
    def burns(self) -> list[tuple[str, Budget]]:
        """The overall budget of each window, by the window's name."""
        return [(name, self.budget(Objective.ALL, name)) for name in BURN_WINDOWS]

    @property
    def calendar(self) -> list[tuple[str, Budget]]:
        """The overall budget of the day, the week and the month so far."""
        return [(period.value, self.budget(Objective.ALL, period.value)) for period in Period]

    @property
    def objectives(self) -> list[tuple[str, Budget]]:
        """The budgets of thirty days, by what is judged."""
        return [(text, self.budget(objective)) for objective, text in OBJECTIVES.items()]


def burn_kind(burn: Fraction | None) -> str:
    """Return how a burn rate is to be taken: above 1 the budget does not last its window."""
    if burn is None:
        return "off"
    return "good" if burn <= 1 else "warn" if burn <= 6 else "bad"


@router.get("/admin/slo")
async def slo(request: Request) -> Response:
    """Show the page, of one tenant or of all, of one tier or of all."""
    query = query_of(request, "tenant", "tier", "range")
    span = query.get("range", DEFAULT_RANGE)
    if span not in RANGES:
        raise bad_value("range", f"'range' must be one of: {', '.join(RANGES)}.")
    desk, now = desk_of(request), utc_now()
    database = desk.ledger.database
    owner = await asked_tenant(request, query)
    if isinstance(owner, Response):
        return owner
    tenant_id = None if owner is None else owner.id
    tier = query.get("tier") or None
    tiers = await desk.repository.list_tiers()
    targets = {one.name: one.objective for one in tiers}
    views = await overview(database, now, targets, tenant_id=tenant_id)
    standings = [
        TierStanding(view)
        for view in views
        if (tier is None or view.tier == tier) and view.window(BUDGET_WINDOW).counts.offered
    ]
    worst = await worst_records(
        database, tenant_id=tenant_id, tier=tier, since=now - timedelta(days=7), limit=WORST
    )
    found = await desk.repository.tenants_by_id({record.tenant_id for record in worst})
    chart = await _chart(database, now, span, tenant_id, tier)
    return page(
        request,
        "slo/slo.html",
        standings=standings,
        owner=owner,
        form=Form(
            {
                "tenant": "" if owner is None else owner.name,
                "tier": query.get("tier", ""),
                "range": span,
            }
        ),
        # A tenant's viewer knows of its own tier, and of those it was served in.
        tiers=_known_tiers(request, views, owner),
        tenants=await _choices(request),
        worst=worst,
        names={tenant_id: tenant.name for tenant_id, tenant in found.items()},
        ranges=[(name, text) for name, (text, _, _) in RANGES.items()],
        span=RANGES[span][0],
        chart=chart,
        burn_kind=burn_kind,
        report_since=floor_to(now, DAY).replace(day=1),
        report_until=floor_to(now, MINUTE),
    )


def _known_tiers(request: Request, views: list[TierView], owner: TenantRecord | None) -> list[str]:
    """Return the tiers to choose from."""
    if owner is None or caller_of(request).tenant_id is None:
        return [view.tier for view in views]
    used = [v.tier for v in views if v.window(BUDGET_WINDOW).counts.offered]
    return list(dict.fromkeys([owner.tier, *used]))


async def _choices(request: Request) -> list[str]:
    if caller_of(request).tenant_id is not None:
        return []
    found = await desk_of(request).repository.list_tenants(limit=MOST_CHOICES)
    return [tenant.name for tenant in found]


async def _chart(
    database: Database, now: datetime, span: str, tenant_id: str | None, tier: str | None
) -> dict[str, Any]:
    """Return attainment over time: `x` in seconds since 1970, a list for each tier, None: nothing.

    `rows` are the same as a table: (start, tier, requests that count, attainment).
    """
    _, length, grain = RANGES[span]
    since = floor_to(now - length, grain)
    points = await series(
        database, grain, since, now + timedelta(minutes=1), tenant_id=tenant_id, tier=tier
    )
    starts = sorted({start for start, _, _ in points})
    names = sorted({name for _, name, _ in points})
    rows = [
        (
            start,
            name,
            sums.counted(Objective.ALL),
            Budget(sums.counted_all, sums.bad_all).attainment,
        )
        for start, name, sums in points
    ]
    values = {(start, name): share for start, name, _, share in rows}
    lines = []
    for name in names:
        shares = [values.get((start, name)) for start in starts]
        percents = [None if s is None else round(float(s) * 100, 3) for s in shares]
        lines.append({"label": name, "values": percents})
    return {
        "begin": int(since.timestamp()),
        "end": int(now.timestamp()),
        "x": [int(start.timestamp()) for start in starts],
        "lines": lines,
        "rows": rows[::-1],
        "by": "hour" if grain == HOUR else "day",
    }
