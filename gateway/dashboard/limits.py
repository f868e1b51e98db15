"""Page of limits and budgets, of an organisation, a tenant or a key: it counts nothing.

Every change is the API's own: the same body, the same call, the same audit.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import BudgetsChange, BudgetValue, LimitsChange, LimitValues
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.budgets import bars_of
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import go, page
from gateway.dashboard.route import PageRoute
from gateway.dashboard.words import LIMIT_LABELS, PERIOD_LABELS, UNIT_LABELS
from gateway.routes.admin_limits import (
    Target,
    changed_budgets,
    changed_limits,
    visible_limits,
    visible_target,
)
from tenants.errors import InvalidValue
from tenants.limits import DIMENSIONS, parse_money
from tenants.values import Limits, Scope, ScopeLimits, Unit

router = APIRouter(route_class=PageRoute, include_in_schema=False)

BUDGET = ("unit", "period", "amount", "alert_percent", "model")


@router.get("/admin/limits/{scope}/{target}")
async def show_limits(request: Request, scope: str, target: str) -> Response:
    """Show what is set, with the forms that change it."""
    query = query_of(request, "model")
    owner = await visible_target(request, scope, target)
    return await _limits_page(request, owner, query.get("model", ""))


@router.post("/admin/limits/{scope}/{target}")
async def change_limits(request: Request, scope: str, target: str) -> Response:
    """Set limits; an empty field takes one away."""
    owner = await visible_target(request, scope, target)
    form = await read_form(request, *DIMENSIONS, "model")
    model = form["model"]
    found = await _found(request, owner, model)
    wanted: dict[str, Any] = {name: form.number(name) for name in DIMENSIONS}
    # What is as it was is not sent: it would be in the audit as if it had been set.
    changed = {n: v for n, v in wanted.items() if v != getattr(found.limits, n)}
    if not changed and not form.errors:
        return go(request, _here(owner, model), "Nothing was changed.", "info")
    if not form.errors and form.body(LimitValues, changed) is not None:
        body = form.body(LimitsChange, {"limits": changed, "model": model or None})
        if body is not None:
            with form.told():
                await changed_limits(request, owner, body)
    if form.errors:
        return await _limits_page(request, owner, model, limits=form, status=422)
    return go(request, _here(owner, model), "The limits are set. Running gateways follow.")


@router.post("/admin/budgets/{scope}/{target}")
async def change_budgets(request: Request, scope: str, target: str) -> Response:
    """Set one budget; one that is there of the same unit and window gives way."""
    owner = await visible_target(request, scope, target)
    form = await read_form(request, *BUDGET, "remove")
    model, is_removal = form["model"], form["remove"] == "true"
    wanted: dict[str, Any] = {
        "period": form["period"],
        "unit": form["unit"],
        "amount": None if is_removal else _amount(form),
    }
    if not is_removal:
        wanted["alert_percent"] = form.number("alert_percent")
    if not form.errors and form.body(BudgetValue, wanted) is not None:
        body = form.body(BudgetsChange, {"budgets": [wanted], "model": model or None})
        if body is not None:
            with form.told("amount"):
                await changed_budgets(request, owner, body)
    if form.errors:
        return await _limits_page(request, owner, model, budget=form, status=422)
    said = "The budget is taken away." if is_removal else "The budget is set."
    return go(request, _here(owner, model), f"{said} Running gateways follow.")


def _amount(form: Form) -> int | None:
    """Return an amount in the unit's own measure; what is wrong with it is said beside it."""
    if not form["amount"]:
        form.wrong("amount", "Type how much may be spent in the window.")
    elif form["unit"] == Unit.NANO:
        try:
            return parse_money(form["amount"])
        except InvalidValue:
            form.wrong(
                "amount", "Money is written like 12.50, with a point and up to nine decimals."
            )
    else:
        return form.number("amount")
    return None


async def _found(request: Request, owner: Target, model: str) -> ScopeLimits:
    found = await visible_limits(request, owner)
    nothing = ScopeLimits(*owner, model=model)
    return next((entry for entry in found if entry.model == model), nothing)


def _here(owner: Target, model: str) -> str:
    path = f"/admin/limits/{owner[0].value}/{owner[1]}"
    return path if not model else f"{path}?{urlencode({'model': model})}"


def _typed(limits: Limits) -> Form:
    amounts = {name: getattr(limits, name) for name in DIMENSIONS}
    return Form({name: "" if value is None else str(value) for name, value in amounts.items()})


async def _limits_page(
    request: Request,
    owner: Target,
    model: str,
    *,
    limits: Form | None = None,
    budget: Form | None = None,
    status: int = 200,
) -> Response:
    """Show all that is set for a target; forms with faults keep what was typed."""
    desk, mine, now = desk_of(request), caller_of(request).tenant_id, utc_now()
    found = list(await visible_limits(request, owner))
    entry = next((e for e in found if e.model == model), ScopeLimits(*owner, model=model))
    # What an organisation used with its other tenants is nothing for one of them.
    is_ours = mine is None or owner[0] is not Scope.ORGANISATION
    return page(
        request,
        "tenants/limits.html",
        status=status,
        active="/admin/keys" if owner[0] is Scope.KEY else "/admin/tenants",
        scope=owner[0],
        target_id=owner[1],
        title=await _title(request, owner),
        back=_back(owner),
        entry=entry,
        model=model,
        models=[e.model for e in found if e.model],
        bars=await bars_of(desk.ledger.database, [entry], now) if is_ours else [],
        limits=limits or _typed(entry.limits),
        budget=budget or Form({"unit": "tokens", "period": "month"}),
        limit_labels=LIMIT_LABELS,
        periods=[(period.value, text) for period, text in PERIOD_LABELS.items()],
        units=[(unit.value, text) for unit, text in UNIT_LABELS.items()],
    )


async def _title(request: Request, owner: Target) -> str:
    repository = desk_of(request).repository
    if owner[0] is Scope.ORGANISATION:
        return f"organisation {(await repository.get_organisation(owner[1])).name}"
    if owner[0] is Scope.TENANT:
        return f"tenant {(await repository.get_tenant(owner[1])).name}"
    key = await repository.get_key(owner[1])
    return f"key {key.name} ({key.display})"


def _back(owner: Target) -> str:
    room = {Scope.ORGANISATION: "organisations", Scope.TENANT: "tenants", Scope.KEY: "keys"}
    return f"/admin/{room[owner[0]]}/{owner[1]}"
