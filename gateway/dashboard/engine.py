"""`/admin/engine`: what the engine computes, who holds its memory, how well it foresees; live."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.admin.reading import query_of
from gateway.dashboard.engine_view import values
from gateway.dashboard.frame import page
from gateway.dashboard.live import live_of
from gateway.dashboard.route import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/admin/engine")
async def engine(request: Request) -> Response:
    """Show the page as it is now; it renews itself from there on."""
    query_of(request)
    live = live_of(request)
    look = await live.pulse.look()
    return page(request, "engine.html", **values(live.pulse, look, live.services))
