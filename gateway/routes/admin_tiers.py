"""Tiers of the admin API: rows with versions, changed one at a time or several all or none.

A change names the version it was made for (`If-Match`, or `version` in a set), so that nobody
undoes unseen what somebody else has done. Prices are fields of a tier, and change as all others do.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import TierBody, TierSet, TierValues
from gateway.admin.documented import ERRORS, documented
from gateway.admin.pages import etag, one, shown, whole
from gateway.admin.reading import body_of, name, nothing_there, query_of
from gateway.admin.roles import V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import ApiError, Problem, bad_value
from gateway.routes.json_response import json_response
from tenants.repository import WantedTier
from tenants.tiers import PRICES
from tenants.values import TierRecord

router = APIRouter(route_class=AdminRoute, responses=ERRORS)


@router.get(f"{V1}/tiers")
async def list_tiers(request: Request) -> Response:
    """List the tiers, the one served first in front."""
    query_of(request)
    return whole(await visible_tiers(request))


@router.post(f"{V1}/tiers", status_code=201, openapi_extra=documented(TierBody))
async def create_tier(request: Request) -> Response:
    """Add a tier."""
    record = await made_tier(request, await body_of(request, TierBody))
    return one(record, 201, etag=etag(record))


async def made_tier(request: Request, body: TierBody) -> TierRecord:
    """Add a tier for the caller, whatever form the body came in."""
    return await desk_of(request).repository.create_tier(
        body.name, body.as_text, now=utc_now(), by=caller_of(request).actor
    )


@router.post(f"{V1}/tiers/apply", openapi_extra=documented(TierSet))
async def apply_tiers(request: Request) -> Response:
    """Set several tiers, all or none; with `check` only say what would change."""
    body = await body_of(request, TierSet)
    wanted = [WantedTier(name, tier.as_text, tier.version) for name, tier in body.tiers.items()]
    repository = desk_of(request).repository
    if body.check:
        plans = await repository.plan_tiers(wanted)
    else:
        by = caller_of(request).actor
        plans = await repository.apply_tiers(wanted, now=utc_now(), by=by)
    data = [
        {"tier": p.after.name, "changed": p.before != p.after, "before": p.before, "after": p.after}
        for p in plans
    ]
    return json_response({"object": "list", "applied": not body.check, "data": shown(data)})


@router.get(f"{V1}/tiers/{{tier}}")
async def read_tier(request: Request, tier: str) -> Response:
    """Show one tier; its version is in `etag`."""
    record = await visible_tier(request, tier)
    return one(record, etag=etag(record))


@router.patch(f"{V1}/tiers/{{tier}}", openapi_extra=documented(TierValues))
async def change_tier(request: Request, tier: str) -> Response:
    """Change fields of the tier as it is at the version that `If-Match` names."""
    body = await body_of(request, TierValues)
    record = await changed_tier(request, tier, body, request.headers.get("if-match"))
    return one(record, etag=etag(record))


async def changed_tier(
    request: Request, tier: str, body: TierValues, if_match: str | None
) -> TierRecord:
    """Change a tier for the caller, whatever form the body came in; `if_match` names a version."""
    if not body.as_text:
        raise bad_value(None, "Nothing is to be changed.")
    version = _version(if_match)
    return await desk_of(request).repository.change_tier(
        name(tier), body.as_text, version=version, now=utc_now(), by=caller_of(request).actor
    )


@router.get(f"{V1}/tiers/{{tier}}/versions")
async def list_versions(request: Request, tier: str) -> Response:
    """List what a tier has promised and cost over time, the oldest first."""
    record = await visible_tier(request, tier)
    versions = await desk_of(request).repository.list_tier_versions(record.name)
    data = [{**shown(v.tier), "changed_at": shown(v.changed_at)} for v in versions]
    return json_response({"object": "list", "data": data})


@router.get(f"{V1}/prices")
async def list_prices(request: Request) -> Response:
    """List what a token costs in each tier now, in billionths of the currency."""
    data = [
        {"tier": t.name, "version": t.version, **{field: getattr(t, field) for field in PRICES}}
        for t in await visible_tiers(request)
    ]
    return json_response({"object": "list", "data": data})


async def visible_tiers(request: Request) -> list[TierRecord]:
    """Return the tiers that the caller may see: of a tenant's viewer, the tenant's own."""
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    tiers = await repository.list_tiers()
    if mine is None:
        return tiers
    own = (await repository.get_tenant(mine)).tier
    return [tier for tier in tiers if tier.name == own]


async def visible_tier(request: Request, tier: str) -> TierRecord:
    """Return a tier that the caller may see; another one is as unknown as none."""
    for record in await visible_tiers(request):
        if record.name == tier:
            return record
    raise nothing_there()


def _version(sent: str | None) -> int:
    if sent is None:
        raise ApiError(
            Problem.NEEDS_VERSION, "Send If-Match with the ETag of the tier as you have seen it."
        )
    digits = sent.strip().strip('"')
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise ApiError(Problem.CHANGED, "It was changed meanwhile: look at it again.")
    return int(digits)
