"""`/admin/requests`: the latest requests, under way and judged, by filters; page by page, bounded.

What is under way comes from the doors, the latest of it, and how many there are; the rest from the
records of promises: by an index, and no further than some thousand rows a page, which then says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from gateway.admin.pages import bad_cursor, cursor_of, encoded
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.forms import Form
from gateway.dashboard.frame import page
from gateway.dashboard.route import PageRoute
from gateway.request_stories import UnderWay, open_requests
from gateway.services import Services
from tenants.errors import NotFound
from tenants.repository import Repository
from tenants.slo import Outcome
from tenants.slo_store import Cursor, Page, newest_records

router = APIRouter(route_class=PageRoute, include_in_schema=False)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FILTERS = ("tenant", "tier", "outcome", "missed")
ON_PAGE = 25
MOST_OPEN = 20
NOTHING: UnderWay = (0, [])
OUTCOMES: Mapping[Outcome, tuple[str, str]] = {
    Outcome.COMPLETED: ("good", "completed"),
    Outcome.DISCONNECTED: ("off", "client left"),
    Outcome.REFUSED: ("bad", "refused"),
    Outcome.LIMITED: ("off", "over its limit"),
    Outcome.INVALID: ("off", "invalid"),
    Outcome.FAILED: ("bad", "failed"),
    Outcome.EXPIRED: ("bad", "expired"),
}


@router.get("/admin/requests")
async def requests(request: Request) -> Response:
    """List them; `id` goes to one of them."""
    query = query_of(request, *FILTERS, "cursor", "id")
    services: Services = request.app.state.services
    if wanted := query.get("id", "").strip():
        return RedirectResponse(f"/admin/requests/{quote(wanted, safe='')}", 303)
    form = Form({name: query.get(name, "") for name in FILTERS})
    repository = desk_of(request).repository
    tenant_id = await _tenant(form, repository, caller_of(request).tenant_id)
    outcome = _outcome(form)
    found = Page([], None, None)
    num_open, under_way = NOTHING
    if not form.errors:
        found = await newest_records(
            services.ledger.database,
            tenant_id=tenant_id,
            tier=form["tier"] or None,
            outcome=outcome,
            missed=form["missed"] == "true",
            before=_before(query),
            limit=ON_PAGE,
        )
        if "cursor" not in query and outcome is None and not form["missed"]:
            num_open, under_way = await open_requests(services, tenant_id, form["tier"], MOST_OPEN)
    names = await tenant_names(
        repository, {r.tenant_id for r in found.records} | {str(r["tenant"]) for r in under_way}
    )
    kept = {name: form[name] for name in FILTERS if form[name]}
    return page(
        request,
        "requests.html",
        status=400 if form.errors else 200,
        form=form,
        records=found.records,
        under_way=[r | {"at": datetime.fromisoformat(r["arrival"])} for r in under_way],
        num_open=num_open,
        names=names,
        outcomes=OUTCOMES,
        tier_options=[("", "all"), *((t.name, t.name) for t in services.tiers.current)],
        outcome_options=[("", "all"), *((one.value, said) for one, (_, said) in OUTCOMES.items())],
        is_filtered=bool(kept),
        looked_to=found.looked_to if len(found.records) < ON_PAGE else None,
        next=_next(kept, found.next_cursor),
        first=f"/admin/requests?{urlencode(kept)}" if "cursor" in query else None,
    )


async def _tenant(form: Form, repository: Repository, mine: str | None) -> str | None:
    """Return the id of the tenant asked for; a tenant's viewer never gets another's."""
    if not form["tenant"]:
        return mine
    try:
        found = await repository.get_tenant(form["tenant"])
    except NotFound:
        found = None
    if found is None or (mine is not None and found.id != mine):
        form.wrong("tenant", "There is no tenant of that name or id.")
        return mine
    return found.id


def _outcome(form: Form) -> Outcome | None:
    text = form["outcome"]
    if text and text not in Outcome.__members__.values():
        form.wrong("outcome", "There is no such outcome.")
    if form["missed"] not in ("", "true"):
        form.wrong("missed", "This is true, or not sent.")
    return Outcome(text) if text and "outcome" not in form.errors else None


async def tenant_names(repository: Repository, ids: Collection[str]) -> dict[str, str]:
    """Return the names of a page's tenants, in one question; one that is gone has none."""
    found = await repository.tenants_by_id(ids) if ids else {}
    return {tenant_id: tenant.name for tenant_id, tenant in found.items()}


def _before(query: dict[str, str]) -> Cursor | None:
    place = cursor_of(query)
    if not place:
        return None
    if len(place) != 2 or not (place[0].isascii() and place[0].isdigit() and len(place[0]) < 18):
        raise bad_cursor()
    try:
        return EPOCH + timedelta(microseconds=int(place[0])), place[1]
    except OverflowError:
        raise bad_cursor() from None


def _next(kept: Mapping[str, str], cursor: Cursor | None) -> str | None:
    if cursor is None:
        return None
    micros = (cursor[0] - EPOCH) // timedelta(microseconds=1)
    return f"/admin/requests?{urlencode({**kept, 'cursor': encoded([str(micros), cursor[1]])})}"
