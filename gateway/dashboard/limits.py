"""Page of limits and budgets, of an organisation, a tenant or a key: it counts nothing.

Every change is the API's own: the same body, the same call, the same audit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import BudgetsChange, BudgetValue, LimitsChange, LimitValues
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.budgets import amount_text, bars_of
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import go, page
from gateway.dashboard.meanwhile import CLASH, SHOWN, as_shown, compared, others_changed
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
from tenants.values import Budget, Limits, Scope, ScopeLimits, Unit

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
    """Set the limits that were changed in the form; an empty field takes one away."""
    owner = await visible_target(request, scope, target)
    form = await read_form(request, *DIMENSIONS, "model", SHOWN)
    model = form["model"]
    now = _limit_texts((await _found(request, owner, model)).limits)
    wanted: dict[str, Any] = {name: form.number(name) for name in DIMENSIONS}
    # What is as it was is not sent: it would be in the audit as if it had been set.
    diff = compared(form, {name: _text(amount) for name, amount in wanted.items()}, now)
    changed = {name: wanted[name] for name in diff.changed}
    body = None
    if not form.errors and form.body(LimitValues, changed) is not None:
        body = form.body(LimitsChange, {"limits": changed, "model": model or None})
    if body is not None and diff.clashes:
        form.values |= {name: now[name] for name in diff.untouched} | {SHOWN: as_shown(now)}
        clashes = {name: text or "no limit" for name, text in diff.clashes.items()}
        return await _limits_page(request, owner, model, limits=form, clashes=clashes)
    if body is not None and not changed:
        return go(request, _here(owner, model), "Nothing was changed.", "info")
    if body is not None:
        with form.told():
            await changed_limits(request, owner, body)
    if form.errors:
        return await _limits_page(request, owner, model, limits=form, status=422)
    return go(request, _here(owner, model), "The limits are set. Running gateways follow.")


@router.post("/admin/budgets/{scope}/{target}")
async def change_budgets(request: Request, scope: str, target: str) -> Response:
    """Set one budget; one of the same unit and window gives way, if it is as the form showed it."""
    owner = await visible_target(request, scope, target)
    form = await read_form(request, *BUDGET, "remove", SHOWN)
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
            clashes = await _budget_clash(request, owner, form, body)
            if clashes:
                return await _limits_page(request, owner, model, budget=form, clashes=clashes)
            with form.told("amount"):
                await changed_budgets(request, owner, body)
    if form.errors:
        return await _limits_page(request, owner, model, budget=form, status=422)
    said = "The budget is taken away." if is_removal else "The budget is set."
    return go(request, _here(owner, model), f"{said} Running gateways follow.")


async def _budget_clash(
    request: Request, owner: Target, form: Form, body: BudgetsChange
) -> dict[str, str]:
    """Return what others have made of the budget since the form was opened, at its field."""
    [(name, typed)] = _budget_texts(body.budgets).items()
    now = _budget_texts((await _found(request, owner, form["model"])).budgets)
    is_now = now.get(name, "")
    if name not in others_changed(form, now) or is_now == typed:
        return {}
    form.values[SHOWN] = as_shown(now)
    return {"amount": is_now or "none"}


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


def _text(amount: int | None) -> str:
    return "" if amount is None else str(amount)


def _limit_texts(limits: Limits) -> dict[str, str]:
    return {name: _text(getattr(limits, name)) for name in DIMENSIONS}


def _budget_texts(budgets: Iterable[Budget | BudgetValue]) -> dict[str, str]:
    """Return budgets in words by unit and window; one without an amount is none."""
    texts = {}
    for one in budgets:
        alert = f", with a warning at {one.alert_percent} %" if one.alert_percent else ""
        text = "" if one.amount is None else f"{amount_text(one.unit, one.amount)}{alert}"
        texts[f"{one.unit.value} {one.period.value}"] = text
    return texts


async def _limits_page(
    request: Request,
    owner: Target,
    model: str,
    *,
    limits: Form | None = None,
    budget: Form | None = None,
    clashes: Mapping[str, str] | None = None,
    status: int = 200,
) -> Response:
    """Show all that is set for a target; forms with faults, or clashes, keep what was typed."""
    desk, mine, now = desk_of(request), caller_of(request).tenant_id, utc_now()
    found = list(await visible_limits(request, owner))
    entry = next((e for e in found if e.model == model), ScopeLimits(*owner, model=model))
    # What an organisation used with its other tenants is nothing for one of them.
    is_ours = mine is None or owner[0] is not Scope.ORGANISATION
    texts, spent = _limit_texts(entry.limits), as_shown(_budget_texts(entry.budgets))
    return page(
        request,
        "tenants/limits.html",
        status=CLASH if clashes else status,
        active="/admin/keys" if owner[0] is Scope.KEY else "/admin/tenants",
        scope=owner[0],
        target_id=owner[1],
        title=await _title(request, owner),
        back=_back(owner),
        entry=entry,
        model=model,
        models=[e.model for e in found if e.model],
        bars=await bars_of(desk.ledger.database, [entry], now) if is_ours else [],
        limits=limits or Form(texts | {SHOWN: as_shown(texts)}),
        budget=budget or Form({"unit": "tokens", "period": "month", SHOWN: spent}),
        shown_budgets=spent,
        clashes=clashes or {},
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
