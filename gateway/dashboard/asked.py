"""The tenant or organisation that a list is asked for by name; a name that nobody has is said so.

A filter with a typing error must not look like no filter: the list is not drawn, the name stays to
be put right. For a tenant's viewer what belongs to others is not there, in the words for all that
is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from starlette.responses import Response

from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.forms import Form
from gateway.dashboard.frame import page
from gateway.routes.admin_tenants import visible_organisation, visible_tenant
from tenants.errors import NotFound
from tenants.values import OrganisationRecord, TenantRecord

NOT_FOUND = 404


async def asked_tenant(
    request: Request, query: Mapping[str, str]
) -> TenantRecord | Response | None:
    """Return the tenant of the filter, a tenant viewer's own, None for all; or what to answer."""
    mine = caller_of(request).tenant_id
    name = query.get("tenant", "").strip()
    if not name:
        return None if mine is None else await desk_of(request).repository.get_tenant(mine)
    try:
        return await visible_tenant(request, name)
    except NotFound:
        if mine is not None:
            raise
        return _unknown(request, "tenant", name)


async def asked_organisation(
    request: Request, query: Mapping[str, str]
) -> OrganisationRecord | Response | None:
    """Return the organisation of the filter likewise."""
    name = query.get("organisation", "").strip()
    if not name:
        return None
    try:
        return await visible_organisation(request, name)
    except NotFound:
        if caller_of(request).tenant_id is not None:
            raise
        return _unknown(request, "organisation", name)


def _unknown(request: Request, what: str, name: str) -> Response:
    form = Form({what: name})
    form.wrong(what, f"There is no {what} of that name.")
    return page(request, "unknown.html", status=NOT_FOUND, form=form, what=what)
