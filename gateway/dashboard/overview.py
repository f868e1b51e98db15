"""`/admin`: how it goes, live; who may see one tenant only is sent to the first page of its own."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from gateway.admin.route import caller_of
from gateway.dashboard.frame import page
from gateway.dashboard.navigation import entries_for
from gateway.dashboard.route import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/admin")
async def overview(request: Request) -> Response:
    """Show the page."""
    caller = caller_of(request)
    if caller.tenant_id is not None:
        mine = entries_for(caller.role)
        if mine:
            return RedirectResponse(mine[0].path, 303)
    return page(request, "overview.html")
