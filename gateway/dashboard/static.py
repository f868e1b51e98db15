"""`/admin/static/...`: the pages' files, kept by browsers for as long as their address is the same.

The address holds the digest's beginning, so a new file has a new address. Anyone may have them:
the login page needs them too, and they say nothing of this gateway.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.admin.reading import nothing_there
from gateway.dashboard.frame import frame_of
from gateway.dashboard.route import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)

FOREVER = "public, max-age=31536000, immutable"


@router.get("/admin/static/{name:path}")
async def static(request: Request, name: str) -> Response:
    """Send one file."""
    asset = frame_of(request).assets.find(name)
    if asset is None:
        raise nothing_there()
    etag = f'"{asset.version}"'
    is_named = request.query_params.get("v") == asset.version
    headers = {"etag": etag, "cache-control": FOREVER if is_named else "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers=headers | {"content-type": asset.media_type})
