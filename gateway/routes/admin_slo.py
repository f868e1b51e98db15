"""What is promised and what is kept: as numbers of every window, and as a report to send.

Both ask for one tenant or, the numbers only, for all together; a tenant's viewer sees its own. A
report is what `tiergate slo report` writes, so `tiergate slo verify` can check it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.documented import ERRORS, documented
from gateway.admin.export import ExportResponse
from gateway.admin.pages import shown
from gateway.admin.reading import moment_of, query_of
from gateway.admin.roles import BASE, V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import bad_value
from gateway.routes.admin_tenants import visible_tenant
from gateway.routes.json_response import json_response
from gateway.slo_report_page import FORMS, report_file
from tenants.repository import Change
from tenants.slo import COUNT_FIELDS, RULE, Objective, Outcome
from tenants.slo_overview import TierView, WindowView, budget_texts, overview
from tenants.slo_report import LONGEST, Report, ReportSpan
from tenants.slo_windows import MINUTE, floor_to
from tenants.values import TenantRecord

router = APIRouter(route_class=AdminRoute, responses=ERRORS)

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
}
USUAL = timedelta(days=30)


@router.get(f"{BASE}/slo", openapi_extra=documented(None, "tenant"))
@router.get(f"{V1}/slo", openapi_extra=documented(None, "tenant"))
async def read_slo(request: Request) -> Response:
    """Show attainment, error budget and burn of every tier and window, of all or of a tenant."""
    desk = desk_of(request)
    tenant = await _tenant(request, query_of(request, "tenant"))
    tiers = await desk.repository.list_tiers()
    # A tenant's viewer knows of its own tier, and of those it was served in.
    targets = {tier.name: tier.objective for tier in tiers}
    now = utc_now()
    views = await overview(
        desk.ledger.database, now, targets, tenant_id=None if tenant is None else tenant.id
    )
    if tenant is not None:
        views = [view for view in views if view.tier == tenant.tier or _is_used(view)]
    whose = None if tenant is None else {"id": tenant.id, "name": tenant.name}
    return json_response(
        {
            "object": "slo",
            "rule": RULE,
            "as_of": shown(now),
            "tenant": whose,
            "data": [_tier(view) for view in views],
        }
    )


@router.get(
    f"{V1}/slo/report",
    openapi_extra=documented(None, "tenant", "from", "to", "format"),
    responses={
        200: {
            "description": "a report",
            "content": {"text/html": {}, "text/csv": {}, "application/json": {}},
        }
    },
)
async def export_report(request: Request) -> Response:
    """Send what was promised to a tenant and what was kept, as HTML, CSV or JSON."""
    desk = desk_of(request)
    query = query_of(request, "tenant", "from", "to", "format")
    form = query.get("format", "html")
    if form not in FORMS:
        raise bad_value("format", f"'format' must be one of: {', '.join(FORMS)}.")
    tenant = await _tenant(request, query)
    if tenant is None:
        raise bad_value("tenant", "'tenant' is needed: a report is of one tenant.")
    until = moment_of(query, "to") or floor_to(utc_now(), MINUTE)
    since = moment_of(query, "from") or until - USUAL
    for name, moment in (("from", since), ("to", until)):
        if floor_to(moment, MINUTE) != moment:
            raise bad_value(name, f"'{name}' must be a whole minute.")
    if not timedelta(0) <= until - since <= LONGEST:
        raise bad_value("from", f"'from' must be at most {LONGEST.days} days before 'to'.")
    span = ReportSpan(tenant.id, since, until)
    action = "slo.export"
    change = Change(action, "export", action, after=dict(query), tenant_id=tenant.id)
    await desk.repository.write_event(caller_of(request).actor, utc_now(), change)
    parts = report_file(Report(desk.ledger.database, span), form)
    days = f"{since:%Y-%m-%d}-{until:%Y-%m-%d}"
    return ExportResponse(parts, desk.exports, MEDIA_TYPES[form], f"slo-{days}.{form}")


def _is_used(view: TierView) -> bool:
    return any(window.counts.offered for window in view.windows)


def _tier(view: TierView) -> dict[str, Any]:
    target = None if view.target is None else str(view.target)
    return {
        "tier": view.tier,
        "target": target,
        "windows": [_window(window) for window in view.windows],
    }


def _window(window: WindowView) -> dict[str, Any]:
    counts = {name: getattr(window.counts, name) for name in COUNT_FIELDS}
    return {
        "window": window.name,
        "kind": window.kind,
        "since": shown(window.since),
        "until": shown(window.until),
        "offered": counts["offered"],
        "outcomes": {outcome.value: counts[outcome.value] for outcome in Outcome},
        "downgraded": counts["downgraded"],
        "gaps": counts["gaps"],
        "late_gaps": counts["late_gaps"],
        "objectives": {o.value: budget_texts(window, o) for o in Objective},
    }


async def _tenant(request: Request, query: dict[str, str]) -> TenantRecord | None:
    """Return the tenant asked for; a tenant's viewer never gets another than its own."""
    asked, mine = query.get("tenant"), caller_of(request).tenant_id
    if asked is not None:
        return await visible_tenant(request, asked)
    return None if mine is None else await desk_of(request).repository.get_tenant(mine)
