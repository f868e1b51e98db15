"""Pages of tiers and their versions, and what other targets would have meant: not who has them.

Every change is the API's own: the same body, the same call, the same audit, for the version that
was looked at. Who has tiers is elsewhere.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from engine.core.clock import utc_now
from gateway.admin.bodies import TierBody, TierValues
from gateway.admin.pages import etag
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import fragment, go, page
from gateway.dashboard.route import PageRoute
from gateway.dashboard.tenants import SLO_DAYS, Promise, slo_span
from gateway.dashboard.tier_fields import (
    LABELS,
    NAMES,
    PRICES,
    PROMISES,
    SERVICE,
    both_changed,
    place_fault,
    text_of,
    typed,
    wanted,
)
from gateway.dashboard.what_if import WhatIf, what_if
from gateway.principal import service_tier_name
from gateway.routes.admin_tiers import changed_tier, made_tier, visible_tier, visible_tiers
from tenants.errors import AlreadyExists, ChangedMeanwhile, InvalidValue
from tenants.slo import SloCounts
from tenants.slo_store import counts, sample_records
from tenants.slo_windows import HOUR, floor_to
from tenants.tiers import changed_tier as next_version
from tenants.values import TierRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

LOOK_BACK = timedelta(days=7)
# So many give an answer that is good to three points; reading them is most of the page's time.
SAMPLE = 1500
VERSIONS_SHOWN = 20


@router.get("/admin/tiers")
async def list_tiers(request: Request) -> Response:
    """List the tiers, the one served first in front."""
    query_of(request)
    tiers = await visible_tiers(request)
    promises = await _promises(request)
    return page(
        request,
        "tiers/list.html",
        rows=[(t, service_tier_name(t), promises.get(t.name)) for t in tiers],
        days=SLO_DAYS,
    )


async def _promises(request: Request) -> dict[str, Promise]:
    """Return how promises went, by tier; to a tenant's viewer, those to its own tenant."""
    found = await counts(
        desk_of(request).ledger.database,
        *slo_span(utc_now()),
        tenant_id=caller_of(request).tenant_id,
    )
    tiers = {tier.name: tier.objective for tier in await desk_of(request).repository.list_tiers()}
    return {name: Promise(name, sums, tiers.get(name)) for name, sums in found.items()}


@router.get("/admin/tiers/new")
async def new_tier(request: Request) -> Response:
    """Show the form of a new tier."""
    query_of(request)
    begin = {"tbt_mode": "gap", "objective": "95", "on_overload": "queue", "weight": "1"}
    more = {"on_limiter_away": "local", "ttft_ms_per_1k_prompt_tokens": "0", "pace_ms": "0"}
    prices = {field.name: "0" for field in PRICES}
    return _new_page(request, Form({**begin, **more, **prices, "max_queue": "256"}))


@router.post("/admin/tiers/new")
async def make_tier(request: Request) -> Response:
    """Add a tier."""
    form = await read_form(request, "name", *NAMES)
    fields = wanted(form, None)
    body = None if form.errors else form.body(TierBody, {"name": form["name"], **fields})
    record = None
    if body is not None:
        try:
            record = await made_tier(request, body)
        except AlreadyExists:
            form.wrong("name", "There is one of that name already.")
        except InvalidValue as error:
            _tell(form, error)
    if record is None:
        return _new_page(request, form, 422)
    return go(request, f"/admin/tiers/{record.name}", f"Tier {record.name} is there.")


def _new_page(request: Request, form: Form, status: int = 200) -> Response:
    groups = _groups()
    return page(request, "tiers/new.html", status=status, form=form, groups=groups, clashes={})


def _groups() -> list[tuple[str, Any]]:
    return [
        ("What is promised", PROMISES),
        ("How it is served", SERVICE),
        ("What it costs", PRICES),
    ]


def _tell(form: Form, error: InvalidValue) -> None:
    text = str(error)
    if text.startswith("a tier's name"):
        form.wrong("name", f"{text[:1].upper()}{text[1:]}.")
    else:
        place_fault(form, f"{text[:1].upper()}{text[1:]}.")


@router.get("/admin/tiers/{tier}")
async def show_tier(request: Request, tier: str) -> Response:
    """Show one tier: what it promises, how that went, and what it was before."""
    query_of(request)
    record = await visible_tier(request, tier)
    versions = await desk_of(request).repository.list_tier_versions(record.name)
    promise = (await _promises(request)).get(record.name)
    latest = versions[::-1][:VERSIONS_SHOWN]
    steps = [
        (version, _differences(versions[version.tier.version - 2].tier, version.tier))
        if version.tier.version > 1 and len(versions) >= version.tier.version
        else (version, [])
        for version in latest
    ]
    return page(
        request,
        "tiers/tier.html",
        tier=record,
        word=service_tier_name(record),
        promise=promise or Promise(record.name, SloCounts(), record.objective),
        groups=_groups(),
        texts=typed(record),
        steps=steps,
        more_versions=len(versions) > VERSIONS_SHOWN,
        days=SLO_DAYS,
    )


def _differences(before: TierRecord, after: TierRecord) -> list[tuple[str, str, str]]:
    """Return (label, before, after) of each field that differs, as people type it."""
    pairs = [(n, text_of(before, n), text_of(after, n)) for n in NAMES]
    return [(LABELS[n], was or "none", now or "none") for n, was, now in pairs if was != now]


@router.get("/admin/tiers/{tier}/change")
async def show_change(request: Request, tier: str) -> Response:
    """Show the form of other targets."""
    query_of(request)
    record = await visible_tier(request, tier)
    form = Form({**typed(record), "version": str(record.version)})
    return await _change_page(request, form, record)


@router.post("/admin/tiers/{tier}/change")
async def change_tier(request: Request, tier: str) -> Response:
    """Change a tier as it was looked at; where somebody was faster, show both instead."""
    record = await visible_tier(request, tier)
    form = await read_form(request, *NAMES, "version")
    base = await _base(request, form, record)
    fields = wanted(form, base)
    if not fields and not form.errors:
        form.wrong("", "Nothing is changed yet.")
    body = None if form.errors else form.body(TierValues, fields)
    changed, clashes, status = None, {}, 422
    if body is not None:
        try:
            changed = await changed_tier(request, record.name, body, etag(base))
        except ChangedMeanwhile:
            record = await visible_tier(request, tier)
            clashes, status = both_changed(form, base, record), 412
            form.values["version"] = str(record.version)
        except InvalidValue as error:
            _tell(form, error)
    if changed is None:
        is_late = status == 412
        return await _change_page(request, form, record, clashes, status, is_late=is_late)
    return go(
        request,
        f"/admin/tiers/{changed.name}",
        f"Tier {changed.name} is at version {changed.version}. Requests that run keep the promise "
        "they were let in with; new ones get the new one.",
    )


@router.get("/admin/tiers/{tier}/preview")
async def preview(request: Request, tier: str) -> Response:
    """Say how the requests of the last week would have fared by other targets; change nothing."""
    record = await visible_tier(request, tier)
    query = query_of(request, *NAMES, "version")
    form = Form(query or {**typed(record), "version": str(record.version)})
    then = await _then(request, form, record)
    answer = None if then is None else await _answer(request, record, then)
    names = await _names(request, answer)
    if request.headers.get("hx-request") == "true":
        part = fragment(
            request,
            "tiers/preview.html",
            form=form,
            groups=_groups(),
            answer=answer,
            names=names,
            tier=record,
            then=then,
        )
        return HTMLResponse(part)
    return await _change_page(
        request, form, record, answer=answer, names=names, then=then, is_preview=True
    )


async def _base(request: Request, form: Form, record: TierRecord) -> TierRecord:
    """Return the version that a form was made from; where it names none, the one there is."""
    number = form.number("version")
    if number == record.version:
        return record
    versions = await desk_of(request).repository.list_tier_versions(record.name)
    return next((v.tier for v in versions if v.tier.version == number), record)


async def _then(request: Request, form: Form, record: TierRecord) -> TierRecord | None:
    """Return the tier as it would be; None where what was typed cannot be, which is said."""
    fields = wanted(form, await _base(request, form, record))
    body = None if form.errors else form.body(TierValues, fields)
    if body is None:
        return None
    if not body.as_text:
        return record
    try:
        return next_version(record, body.as_text)
    except InvalidValue as error:
        _tell(form, error)
        return None


async def _answer(request: Request, now: TierRecord, then: TierRecord) -> WhatIf:
    until = utc_now()
    since = floor_to(until - LOOK_BACK, HOUR)
    database = desk_of(request).ledger.database
    records, share = await sample_records(
        database, tier=now.name, since=since, until=until, want=SAMPLE
    )
    # Aside: it takes milliseconds in which streams want to go on.
    return await asyncio.to_thread(what_if, records, share, now, then)


async def _names(request: Request, answer: WhatIf | None) -> dict[str, str]:
    ids = [] if answer is None else [tenant_id for tenant_id, _ in answer.tenants]
    found = await desk_of(request).repository.tenants_by_id(ids)
    return {tenant_id: tenant.name for tenant_id, tenant in found.items()}


async def _change_page(
    request: Request,
    form: Form,
    tier: TierRecord,
    clashes: dict[str, str] | None = None,
    status: int = 200,
    **more: Any,
) -> Response:
    shared: dict[str, Any] = {"answer": None, "names": {}, "then": None}
    shared |= {"is_late": False, "is_preview": False}
    return page(
        request,
        "tiers/change.html",
        status=status,
        form=form,
        tier=tier,
        groups=_groups(),
        clashes=clashes or {},
        **(shared | more),
    )
