"""Organisations and tenants of the admin API; keys, limits and usage are elsewhere."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import OrganisationBody, TenantBody, TenantChange
from gateway.admin.documented import ERRORS, documented
from gateway.admin.pages import PAGE_QUERY, one, page, whole
from gateway.admin.reading import body_of, name, nothing_there, query_of
from gateway.admin.roles import V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import bad_value
from tenants.values import OrganisationRecord, TenantRecord

router = APIRouter(route_class=AdminRoute, responses=ERRORS)


@router.get(f"{V1}/organisations", openapi_extra=documented(None, *PAGE_QUERY))
async def list_organisations(request: Request) -> Response:
    """List who pays, by name."""
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    query = query_of(request, *PAGE_QUERY)
    if mine is not None:
        tenant = await repository.get_tenant(mine)
        return whole([await repository.get_organisation(tenant.organisation_id)])

    async def read(cursor: list[str], limit: int) -> list[OrganisationRecord]:
        return await repository.list_organisations(after=cursor[0] if cursor else None, limit=limit)

    return await page(query, read, lambda record: [record.name])


@router.post(f"{V1}/organisations", status_code=201, openapi_extra=documented(OrganisationBody))
async def create_organisation(request: Request) -> Response:
    """Add an organisation."""
    return one(await made_organisation(request, await body_of(request, OrganisationBody)), 201)


async def made_organisation(request: Request, body: OrganisationBody) -> OrganisationRecord:
    """Add an organisation for the caller, whatever form the body came in."""
    by = caller_of(request).actor
    return await desk_of(request).repository.create_organisation(body.name, utc_now(), by=by)


@router.get(f"{V1}/organisations/{{organisation}}")
async def read_organisation(request: Request, organisation: str) -> Response:
    """Show one organisation, by name or id."""
    return one(await visible_organisation(request, organisation))


async def visible_organisation(request: Request, organisation: str) -> OrganisationRecord:
    """Return an organisation that the caller may see; another one is as unknown as none."""
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    record = await repository.get_organisation(name(organisation))
    if mine is not None and (await repository.get_tenant(mine)).organisation_id != record.id:
        raise nothing_there()
    return record


@router.get(f"{V1}/tenants", openapi_extra=documented(None, *PAGE_QUERY, "organisation"))
async def list_tenants(request: Request) -> Response:
    """List who is served, by name; of one organisation or of all."""
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    query = query_of(request, *PAGE_QUERY, "organisation")
    payer = query.get("organisation")
    if mine is not None:
        if payer is not None:
            await visible_organisation(request, payer)
        return whole([await repository.get_tenant(mine)])

    async def read(cursor: list[str], limit: int) -> list[TenantRecord]:
        after = cursor[0] if cursor else None
        return await repository.list_tenants(payer, after=after, limit=limit)

    return await page(query, read, lambda record: [record.name])


@router.post(f"{V1}/tenants", status_code=201, openapi_extra=documented(TenantBody))
async def create_tenant(request: Request) -> Response:
    """Add a tenant."""
    return one(await made_tenant(request, await body_of(request, TenantBody)), 201)


async def made_tenant(request: Request, body: TenantBody) -> TenantRecord:
    """Add a tenant for the caller, whatever form the body came in."""
    return await desk_of(request).repository.create_tenant(
        body.name,
        body.tier,
        utc_now(),
        organisation=body.organisation,
        by=caller_of(request).actor,
    )


@router.get(f"{V1}/tenants/{{tenant}}")
async def read_tenant(request: Request, tenant: str) -> Response:
    """Show one tenant, by name or id."""
    return one(await visible_tenant(request, tenant))


@router.patch(f"{V1}/tenants/{{tenant}}", openapi_extra=documented(TenantChange))
async def change_tenant(request: Request, tenant: str) -> Response:
    """Give a tenant another tier or organisation, or shut it out and let it in again."""
    return one(await changed_tenant(request, tenant, await body_of(request, TenantChange)))


async def changed_tenant(request: Request, tenant: str, body: TenantChange) -> TenantRecord:
    """Change a tenant for the caller, whatever form the body came in."""
    repository, by = desk_of(request).repository, caller_of(request).actor
    moves = body.tier is not None or body.organisation is not None
    if moves == (body.disabled is not None):
        raise bad_value(None, "Send tier and organisation, or disabled: one change at a time.")
    if body.disabled is not None:
        return await repository.set_tenant_disabled(name(tenant), body.disabled, utc_now(), by=by)
    return await repository.change_tenant(
        name(tenant), utc_now(), tier=body.tier, organisation=body.organisation, by=by
    )


async def visible_tenant(request: Request, tenant: str) -> TenantRecord:
    """Return a tenant that the caller may see; another one is as unknown as none."""
    mine = caller_of(request).tenant_id
    record = await desk_of(request).repository.get_tenant(name(tenant))
    if mine is not None and record.id != mine:
        raise nothing_there()
    return record
