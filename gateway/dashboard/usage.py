"""Page of what a month has used and cost, and what is left of budgets: from sums by day.

What is billed are the usage rows themselves: the export has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.asked import asked_tenant
from gateway.dashboard.budgets import BudgetBar, bars_of
from gateway.dashboard.forms import Form
from gateway.dashboard.frame import page
from gateway.dashboard.route import PageRoute
from tenants.database import Database
from tenants.slo import SloCounts
from tenants.slo_store import counts, counts_by_tenant
from tenants.slo_windows import MINUTE, floor_to
from tenants.usage_days import DayUsage, Whose, days_of, usage_of
from tenants.values import Scope, TenantRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ON_PAGE = 50
BUDGETS_ON_PAGE = 50
_MONTH = re.compile(r"20[0-9]{2}-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one tier or tenant has used; `requests` None where they are not known."""

    name: str
    id: str
    requests: int
    used: DayUsage


@router.get("/admin/usage")
async def usage(request: Request) -> Response:
    """Show one month, of one tenant or of all."""
    query = query_of(request, "month", "tenant", "after")
    desk, now = desk_of(request), utc_now()
    form = Form({name: query.get(name, "") for name in ("tenant", "month")})
    since, until = _month(form, now)
    database, repository = desk.ledger.database, desk.repository
    owner = await asked_tenant(request, query)
    if isinstance(owner, Response):
        return owner
    if owner is not None:
        form.values["tenant"] = owner.name
    target = (Whose.ALL, "") if owner is None else (Whose.TENANT, owner.id)
    tiers = await _by_tier(database, target, since, until, now)
    rows: list[UsageRow] = []
    onward = None
    if owner is None:
        tenants, onward = await repository.search_tenants(
            after=query.get("after") or None, limit=ON_PAGE
        )
        rows = await _by_tenant(database, tenants, since, until)
    bars, names = await _budgets(request, owner, now)
    return page(
        request,
        "usage/usage.html",
        status=400 if form.errors else 200,
        form=form,
        query=query,
        owner=owner,
        tiers=tiers,
        rows=rows,
        onward=onward,
        month=since,
        earlier=(since - timedelta(days=1)).replace(day=1),
        later=until if until <= now else None,
        until=until,
        bars=bars,
        names=names,
        chart=await _chart(database, target, since, until),
    )


def _month(form: Form, now: datetime) -> tuple[datetime, datetime]:
    """Return [since, until) of a month such as 2026-11; of this one where none is named.

    What is no month is said at its field, and this one is returned.
    """
    text = form["month"]
    since = datetime(now.year, now.month, 1, tzinfo=UTC)
    if _MONTH.fullmatch(text):
        since = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
    elif text:
        form.wrong("month", "A month is written like 2026-11. This is the present one.")
    form.values["month"] = text or f"{since:%Y-%m}"
    return since, (since + timedelta(days=31)).replace(day=1)


async def _by_tier(
    database: Database, target: tuple[Whose, str], since: datetime, until: datetime, now: datetime
) -> list[UsageRow]:
    used = await usage_of(database, target[0], [target[1]], since, until)
    end = min(until, floor_to(now, MINUTE) + timedelta(minutes=1))
    tenant_id = target[1] or None
    asked = await counts(database, since, end, tenant_id=tenant_id) if since < end else {}
    by_tier = {tier: sums for (_, tier), sums in used.items()}
    return [
        UsageRow(tier, tier, asked.get(tier, SloCounts()).offered, by_tier.get(tier, DayUsage()))
        for tier in sorted(by_tier.keys() | asked.keys())
    ]


async def _by_tenant(
    database: Database, tenants: list[TenantRecord], since: datetime, until: datetime
) -> list[UsageRow]:
    ids = [tenant.id for tenant in tenants]
    used: dict[str, DayUsage] = dict.fromkeys(ids, DayUsage())
    for (tenant_id, _), sums in (await usage_of(database, Whose.TENANT, ids, since, until)).items():
        used[tenant_id] = used[tenant_id].plus(sums)
    asked: dict[str, int] = dict.fromkeys(ids, 0)
    for (tenant_id, _), offered in (await counts_by_tenant(database, since, until, ids)).items():
        asked[tenant_id] += offered.offered
    return [UsageRow(t.name, t.id, asked[t.id], used[t.id]) for t in tenants]


async def _budgets(
    request: Request, owner: TenantRecord | None, now: datetime
) -> tuple[list[BudgetBar], dict[str, str]]:
    """Return budgets with what is spent of them now, and what their owners are called."""
    desk, mine = desk_of(request), caller_of(request).tenant_id
    repository = desk.repository
    if owner is None:
        found = await repository.list_limits(limit=BUDGETS_ON_PAGE)
    else:
        keys = await repository.list_keys(owner.id, limit=BUDGETS_ON_PAGE)
        targets = [(Scope.KEY, chain) for chain in dict.fromkeys(key.chain_id for key in keys)]
        targets.append((Scope.TENANT, owner.id))
        # What an organisation used with its other tenants is nothing for one of them.
        if mine is None:
            targets.append((Scope.ORGANISATION, owner.organisation_id))
        found = await repository.list_limits_of(targets)
    with_budgets = [entry for entry in found if entry.budgets]
    names = await _names(request, with_budgets)
    return await bars_of(desk.ledger.database, with_budgets, now), names


async def _names(request: Request, found: list[Any]) -> dict[str, str]:
    repository = desk_of(request).repository
    ids = {scope: {e.target_id for e in found if e.scope is scope} for scope in Scope}
    tenants = await repository.tenants_by_id(ids[Scope.TENANT])
    payers = await repository.organisations_by_id(ids[Scope.ORGANISATION])
    keys = await repository.keys_by_id(ids[Scope.KEY])
    return (
        {tenant_id: tenant.name for tenant_id, tenant in tenants.items()}
        | {payer_id: payer.name for payer_id, payer in payers.items()}
        | {key_id: f"{key.name} ({key.display})" for key_id, key in keys.items()}
    )


async def _chart(
    database: Database, target: tuple[Whose, str], since: datetime, until: datetime
) -> dict[str, Any]:
    """Return tokens by day and tier, as the chart of the SLO page has its numbers."""
    days = await days_of(database, *target, since, until)
    starts = sorted({day for day, _, _ in days})
    names = sorted({tier for _, tier, _ in days})
    values = {(day, tier): used.tokens for day, tier, used in days}
    return {
        "begin": int(since.timestamp()),
        "end": int(until.timestamp()),
        "x": [int(day.timestamp()) for day in starts],
        "lines": [
            {"label": name, "values": [values.get((day, name), 0) for day in starts]}
            for name in names
        ],
        "rows": days[::-1],
    }
