"""`/admin`: how it goes, live; who may see one tenant only is sent to the first page of its own."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from gateway.admin.reading import query_of
from gateway.admin.route import caller_of
from gateway.dashboard.frame import page
from gateway.dashboard.live import live_of
from gateway.dashboard.navigation import entries_for
from gateway.dashboard.overview_view import values
from gateway.dashboard.route import PageRoute
from gateway.errors import ApiError, Problem

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/admin")
async def overview(request: Request) -> Response:
    """Show the page as it is now; it renews itself from there on."""
    query_of(request)
    caller = caller_of(request)
    if caller.tenant_id is not None:
        mine = entries_for(caller.role)
        if not mine:
            raise ApiError(Problem.ROLE_FORBIDDEN, "Your role may not do this.")
        return RedirectResponse(mine[0].path, 303)
    live = live_of(request)
    look = await live.pulse.look()
    return page(request, "overview.html", **values(live.pulse, look, live.services))
