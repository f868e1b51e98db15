"""Limits and budgets of the admin API, of organisations, tenants and keys; nothing is counted."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import BudgetsChange, BudgetValue, LimitsChange
from gateway.admin.documented import ERRORS, documented
from gateway.admin.pages import PAGE_QUERY, bad_cursor, cursor_of, limit_of, listed, one, shown
from gateway.admin.reading import body_of, nothing_there, query_of
from gateway.admin.roles import V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.routes.admin_keys import visible_key
from gateway.routes.admin_tenants import visible_organisation, visible_tenant
from gateway.routes.json_response import json_response
from tenants.values import Budget, Period, Scope, ScopeLimits, Unit

router = APIRouter(route_class=AdminRoute, responses=ERRORS)

Target = tuple[Scope, str]


@router.get(f"{V1}/limits", openapi_extra=documented(None, *PAGE_QUERY))
async def list_limits(request: Request) -> Response:
    """List all that have limits or budgets; those of one target are on one page, by model."""
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    query = query_of(request, *PAGE_QUERY)
    limit = limit_of(query)
    if mine is None:
        found = await repository.list_limits(after=_after(query), limit=limit + 1)
        targets = list(dict.fromkeys((f.scope, f.target_id) for f in found))
    else:
        targets = await _targets_of(request, mine, _after(query), limit + 1)
        found = await repository.list_limits_of(targets)
    on_page = set(targets[:limit])
    data = [shown(f) for f in found if (f.scope, f.target_id) in on_page]
    return listed(data, len(targets) > limit, targets, limit, lambda t: [t[0].value, t[1]])


def _after(query: dict[str, str]) -> Target | None:
    cursor = cursor_of(query)
    if not cursor:
        return None
    if len(cursor) != 2 or cursor[0] not in set(Scope):
        raise bad_cursor()
    return Scope(cursor[0]), cursor[1]


async def _targets_of(
    request: Request, tenant_id: str, after: Target | None, limit: int
) -> list[Target]:
    """Return what a tenant's viewer may see limits of: its tenant, its payer, its latest keys."""
    repository = desk_of(request).repository
    tenant = await repository.get_tenant(tenant_id)
    chains = {(Scope.KEY, key.chain_id) for key in await repository.list_keys(tenant_id)}
    payer = (Scope.ORGANISATION, tenant.organisation_id)
    targets = [*chains, payer, (Scope.TENANT, tenant.id)]
    if after is not None:
        targets = [target for target in targets if _order(target) > _order(after)]
    return sorted(targets, key=_order)[:limit]


def _order(target: Target) -> tuple[int, str]:
    return list(Scope).index(target[0]), target[1]


@router.get(f"{V1}/limits/{{scope}}/{{target}}")
async def read_limits(request: Request, scope: str, target: str) -> Response:
    """Show the limits and budgets of one organisation, tenant or key, for each model."""
    found = await visible_limits(request, await visible_target(request, scope, target))
    return json_response({"object": "list", "data": shown(found)})


@router.get(f"{V1}/budgets/{{scope}}/{{target}}")
async def read_budgets(request: Request, scope: str, target: str) -> Response:
    """Show the budgets alone."""
    found = await visible_limits(request, await visible_target(request, scope, target))
    data = [{"model": f.model, "budgets": shown(f.budgets)} for f in found if f.budgets]
    return json_response({"object": "list", "data": data})


@router.patch(f"{V1}/limits/{{scope}}/{{target}}", openapi_extra=documented(LimitsChange))
async def change_limits(request: Request, scope: str, target: str) -> Response:
    """Set some limits, and take away those that are null."""
    body = await body_of(request, LimitsChange)
    return one(await changed_limits(request, await visible_target(request, scope, target), body))


async def changed_limits(request: Request, target: Target, body: LimitsChange) -> ScopeLimits:
    """Set limits for the caller, whatever form the body came in."""
    return await desk_of(request).repository.set_limits(
        *target,
        body.limits.given,
        utc_now(),
        model=body.model or "",
        by=caller_of(request).actor,
    )


@router.patch(f"{V1}/budgets/{{scope}}/{{target}}", openapi_extra=documented(BudgetsChange))
async def change_budgets(request: Request, scope: str, target: str) -> Response:
    """Put budgets in the place of their like, and take away those whose amount is null."""
    body = await body_of(request, BudgetsChange)
    return one(await changed_budgets(request, await visible_target(request, scope, target), body))


async def changed_budgets(request: Request, target: Target, body: BudgetsChange) -> ScopeLimits:
    """Set budgets for the caller, whatever form the body came in."""
    return await desk_of(request).repository.set_budgets(
        *target,
        [_change(value) for value in body.budgets],
        utc_now(),
        model=body.model or "",
        by=caller_of(request).actor,
    )


def _change(value: BudgetValue) -> Budget | tuple[Period, Unit]:
    if value.amount is None:
        return value.period, value.unit
    return Budget(value.period, value.unit, value.amount, value.alert_percent)


async def visible_target(request: Request, scope: str, target: str) -> Target:
    """Return the target, if it is there and the caller may see it; a key is named by its id."""
    if scope == Scope.ORGANISATION:
        return Scope.ORGANISATION, (await visible_organisation(request, target)).id
    if scope == Scope.TENANT:
        return Scope.TENANT, (await visible_tenant(request, target)).id
    if scope == Scope.KEY:
        return Scope.KEY, (await visible_key(request, target)).id
    raise nothing_there()


async def visible_limits(request: Request, target: Target) -> Sequence[ScopeLimits]:
    """Return what is set for a target, for all models and for each."""
    return await desk_of(request).repository.get_limits(*target)
