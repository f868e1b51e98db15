"""Pages of tenants and organisations: who is served and who pays; keys are elsewhere.

Every change is the API's own: the same body, the same call, the same audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import OrganisationBody, TenantBody, TenantChange
from gateway.admin.reading import flag_of, query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.asked import asked_organisation
from gateway.dashboard.budgets import bars_of
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import go, page
from gateway.dashboard.meanwhile import CLASH, SHOWN, as_shown, compared
from gateway.dashboard.route import PageRoute
from gateway.dashboard.words import LIMIT_LABELS, State, standing, state_of_tenant
from gateway.routes.admin_limits import visible_limits
from gateway.routes.admin_tenants import (
    changed_tenant,
    made_organisation,
    made_tenant,
    visible_organisation,
    visible_tenant,
)
from gateway.routes.admin_tiers import visible_tiers
from tenants.errors import NotFound
from tenants.slo import Budget, Objective, SloCounts, budget_of
from tenants.slo_store import counts_by_tenant
from tenants.slo_windows import DAY, floor_to
from tenants.usage_days import Whose, usage_of
from tenants.values import OrganisationRecord, Scope, TenantRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ON_PAGE = 50
KEYS_SHOWN = 10
SLO_DAYS = 30
MOST_CHOICES = 200


@dataclass(frozen=True, slots=True)
class Promise:
    """How one tier's promise to one tenant went; the budgets are of `all` and of each target."""

    tier: str
    counts: SloCounts
    target: float | None  # None: the tier is no more

    def budget(self, objective: str) -> Budget:
        """Return the budget of an objective, by its word."""
        return budget_of(self.counts, Objective(objective), self.target or 1.0)

    @property
    def state(self) -> State:
        """How it stands."""
        return standing(self.budget("all"))


@dataclass(frozen=True, slots=True)
class TenantRow:
    """One tenant of the list."""

    tenant: TenantRecord
    organisation: str
    promises: list[Promise]

    @property
    def offered(self) -> int:
        """Requests of the last days, whatever became of them."""
        return sum(promise.counts.offered for promise in self.promises)

    @property
    def state(self) -> State:
        """Whether the tenant is served."""
        return state_of_tenant(self.tenant)


def slo_span(now: datetime, days: int = SLO_DAYS) -> tuple[datetime, datetime]:
    """Return [since, until) of the last whole days, today's part with them."""
    today = floor_to(now, DAY)
    return today - timedelta(days=days - 1), today + timedelta(days=1)


def month_span(now: datetime) -> tuple[datetime, datetime]:
    """Return [since, until) of this calendar month, in UTC, today with it."""
    today = floor_to(now, DAY)
    return today.replace(day=1), today + timedelta(days=1)


@router.get("/admin/tenants")
async def list_tenants(request: Request) -> Response:
    """List who is served, with how their promises went."""
    query = query_of(request, "q", "organisation", "after")
    desk, mine, now = desk_of(request), caller_of(request).tenant_id, utc_now()
    onward = None
    if mine is not None:
        found = [await desk.repository.get_tenant(mine)]
    else:
        payer = await asked_organisation(request, query)
        if isinstance(payer, Response):
            return payer
        found, onward = await desk.repository.search_tenants(
            query.get("q", "").strip(),
            None if payer is None else payer.id,
            after=query.get("after") or None,
            limit=ON_PAGE,
        )
    payers = await desk.repository.organisations_by_id({t.organisation_id for t in found})
    promises = await _promises(request, [t.id for t in found], now)
    rows = [
        TenantRow(t, _name_of(payers, t.organisation_id), promises.get(t.id, [])) for t in found
    ]
    return page(request, "tenants/list.html", rows=rows, query=query, onward=onward, days=SLO_DAYS)


def _name_of(payers: dict[str, OrganisationRecord], payer_id: str) -> str:
    return payers[payer_id].name if payer_id in payers else payer_id


async def _promises(
    request: Request, tenant_ids: list[str], now: datetime
) -> dict[str, list[Promise]]:
    """Return how promises went, by tenant; those of most requests first."""
    desk = desk_of(request)
    found = await counts_by_tenant(desk.ledger.database, *slo_span(now), tenant_ids)
    targets = {tier.name: tier.objective for tier in await desk.repository.list_tiers()}
    promises: dict[str, list[Promise]] = {}
    for (tenant_id, tier), counts in found.items():
        promises.setdefault(tenant_id, []).append(Promise(tier, counts, targets.get(tier)))
    for rows in promises.values():
        rows.sort(key=lambda p: (-p.counts.offered, p.tier))
    return promises


@router.get("/admin/tenants/new")
async def new_tenant(request: Request) -> Response:
    """Show the form of a new tenant."""
    query = query_of(request, "organisation")
    payer = query.get("organisation", "default")
    return await _tenant_form(request, Form({"organisation": payer}), None)


@router.post("/admin/tenants/new")
async def make_tenant(request: Request) -> Response:
    """Add a tenant."""
    form = await read_form(request, "name", "tier", "organisation")
    body = form.body(TenantBody, {n: form[n] for n in ("name", "tier", "organisation")})
    record = None
    if body is not None and await _fit(request, form):
        with form.told("name"):
            record = await made_tenant(request, body)
    if record is None:
        return await _tenant_form(request, form, None, 422)
    return go(
        request,
        f"/admin/tenants/{record.id}",
        f"Tenant {record.name} is there. It needs a key before it can ask anything.",
    )


async def _fit(request: Request, form: Form) -> bool:
    """True where the tier and the organisation are there; else it is said beside them."""
    repository = desk_of(request).repository
    for name, find in (
        ("tier", repository.get_tier),
        ("organisation", repository.get_organisation),
    ):
        try:
            await find(form[name])
        except NotFound:
            form.wrong(name, f"There is no {name} of that name.")
    return not form.errors


async def _tenant_form(
    request: Request,
    form: Form,
    tenant: TenantRecord | None,
    status: int = 200,
    clashes: Mapping[str, str] | None = None,
) -> Response:
    repository = desk_of(request).repository
    payers = await repository.list_organisations(limit=MOST_CHOICES)
    names = [payer.name for payer in payers]
    return page(
        request,
        "tenants/form.html",
        status=status,
        form=form,
        tenant=tenant,
        clashes=clashes or {},
        tiers=await repository.list_tiers(),
        # Beyond so many a list is no help: the name is typed, with the first ones to choose from.
        organisations=names,
    )


@router.get("/admin/tenants/{tenant}")
async def show_tenant(request: Request, tenant: str) -> Response:
    """Show one tenant: what it is promised, allowed, and what it used."""
    query_of(request)
    record = await visible_tenant(request, tenant)
    desk, now = desk_of(request), utc_now()
    database, repository = desk.ledger.database, desk.repository
    payer = await repository.get_organisation(record.organisation_id)
    limits = list(await visible_limits(request, (Scope.TENANT, record.id)))
    above = list(await visible_limits(request, (Scope.ORGANISATION, payer.id)))
    used = await usage_of(database, Whose.TENANT, [record.id], *month_span(now))
    keys = await repository.list_keys(record.id, limit=KEYS_SHOWN + 1)
    tiers = {tier.name: tier for tier in await visible_tiers(request)}
    return page(
        request,
        "tenants/tenant.html",
        tenant=record,
        state=state_of_tenant(record),
        payer=payer,
        tier=tiers.get(record.tier),
        promises=(await _promises(request, [record.id], now)).get(record.id, []),
        days=SLO_DAYS,
        limits=limits,
        above=above,
        # What an organisation used with its other tenants is nothing for one of them.
        bars=await bars_of(database, limits + ([] if caller_of(request).tenant_id else above), now),
        limit_labels=LIMIT_LABELS,
        used=sorted((tier, usage) for (_, tier), usage in used.items()),
        month=now,
        keys=keys[:KEYS_SHOWN],
        more_keys=len(keys) > KEYS_SHOWN,
    )


@router.get("/admin/tenants/{tenant}/change")
async def show_change(request: Request, tenant: str) -> Response:
    """Show the form of another tier or organisation."""
    query_of(request)
    record = await visible_tenant(request, tenant)
    texts = await _texts(request, record)
    return await _tenant_form(request, Form(texts | {SHOWN: as_shown(texts)}), record)


async def _texts(request: Request, tenant: TenantRecord) -> dict[str, str]:
    """Return what may be changed of a tenant as a form shows it."""
    payer = await desk_of(request).repository.get_organisation(tenant.organisation_id)
    return {"tier": tenant.tier, "organisation": payer.name}


@router.post("/admin/tenants/{tenant}/change")
async def change_tenant(request: Request, tenant: str) -> Response:
    """Give a tenant the tier or organisation that was changed in the form."""
    record = await visible_tenant(request, tenant)
    form = await read_form(request, "tier", "organisation", SHOWN)
    typed, now = {n: form[n] for n in ("tier", "organisation")}, await _texts(request, record)
    diff = compared(form, typed, now)
    form.body(TenantChange, typed)  # says what is wrong with a field beside it
    body = None
    if not form.errors and await _fit(request, form):
        body = form.body(TenantChange, {name: typed[name] for name in diff.changed})
    if body is not None and diff.clashes:
        form.values |= {name: now[name] for name in diff.untouched} | {SHOWN: as_shown(now)}
        return await _tenant_form(request, form, record, CLASH, diff.clashes)
    if body is not None and not diff.changed:
        return go(request, f"/admin/tenants/{record.id}", "Nothing was changed.", "info")
    if body is not None:
        with form.told():
            await changed_tenant(request, record.id, body)
    if form.errors:
        return await _tenant_form(request, form, record, 422)
    return go(request, f"/admin/tenants/{record.id}", f"Tenant {record.name} is changed.")


@router.get("/admin/tenants/{tenant}/state")
async def ask_state(request: Request, tenant: str) -> Response:
    """Ask whether to shut a tenant out, or to let it in again."""
    query_of(request)
    record = await visible_tenant(request, tenant)
    keys = await desk_of(request).repository.list_keys(record.id, limit=1000)
    live = sum(key.is_live(utc_now()) for key in keys)
    return page(request, "tenants/state.html", tenant=record, live=live, form=Form())


@router.post("/admin/tenants/{tenant}/state")
async def change_state(request: Request, tenant: str) -> Response:
    """Shut a tenant out, or let it in again."""
    record = await visible_tenant(request, tenant)
    form = await read_form(request, "disabled")
    changed = await changed_tenant(request, record.id, TenantChange(disabled=shut_out(form)))
    said = "is shut out" if changed.disabled_at else "is served again"
    return go(request, f"/admin/tenants/{record.id}", f"Tenant {record.name} {said}.")


def shut_out(form: Form) -> bool:
    """Return what a form of a state says; raises ApiError for one that says neither."""
    return flag_of({"disabled": form["disabled"] or "neither"}, "disabled")


@router.get("/admin/organisations")
async def list_organisations(request: Request) -> Response:
    """List who pays."""
    query = query_of(request, "after")
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    onward = None
    if mine is not None:
        tenant = await repository.get_tenant(mine)
        found = [await repository.get_organisation(tenant.organisation_id)]
    else:
        after = query.get("after") or None
        found = await repository.list_organisations(after=after, limit=ON_PAGE + 1)
        onward = found[ON_PAGE - 1].name if len(found) > ON_PAGE else None
    ids = [payer.id for payer in found[:ON_PAGE]]
    now = utc_now()
    used = await usage_of(
        desk_of(request).ledger.database, Whose.ORGANISATION, ids, *month_span(now)
    )
    costs = dict.fromkeys(ids, 0)
    for (payer_id, _), usage in used.items():
        costs[payer_id] += usage.cost_nano
    return page(
        request,
        "tenants/organisations.html",
        active="/admin/tenants",
        rows=found[:ON_PAGE],
        # What an organisation used with its other tenants is nothing for one of them.
        costs=costs if mine is None else {},
        onward=onward,
    )


@router.get("/admin/organisations/new")
async def new_organisation(request: Request) -> Response:
    """Show the form of a new organisation."""
    query_of(request)
    return _organisation_form(request, Form())


@router.post("/admin/organisations/new")
async def make_organisation(request: Request) -> Response:
    """Add an organisation."""
    form = await read_form(request, "name")
    body = form.body(OrganisationBody, {"name": form["name"]})
    record = None
    if body is not None:
        with form.told("name"):
            record = await made_organisation(request, body)
    if record is None:
        return _organisation_form(request, form, 422)
    return go(request, f"/admin/organisations/{record.id}", f"Organisation {record.name} is there.")


def _organisation_form(request: Request, form: Form, status: int = 200) -> Response:
    return page(
        request,
        "tenants/organisation_form.html",
        status=status,
        active="/admin/tenants",
        form=form,
    )


@router.get("/admin/organisations/{organisation}")
async def show_organisation(request: Request, organisation: str) -> Response:
    """Show one organisation: its tenants, limits and budgets."""
    query_of(request)
    record = await visible_organisation(request, organisation)
    desk, mine, now = desk_of(request), caller_of(request).tenant_id, utc_now()
    if mine is not None:
        tenants, onward = [await desk.repository.get_tenant(mine)], None
    else:
        tenants, onward = await desk.repository.search_tenants("", record.id, limit=ON_PAGE)
    limits = list(await visible_limits(request, (Scope.ORGANISATION, record.id)))
    return page(
        request,
        "tenants/organisation.html",
        active="/admin/tenants",
        payer=record,
        tenants=tenants,
        onward=onward,
        limits=limits,
        bars=[] if mine is not None else await bars_of(desk.ledger.database, limits, now),
        limit_labels=LIMIT_LABELS,
    )
