"""`/admin/api/requests`: the latest requests, and the whole story of one; for operators only.

Both are of all workers, whichever of them is asked.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.admin.route import AdminRoute
from gateway.errors import ApiError, Problem, bad_value
from gateway.request_stories import find_story, newest_requests
from gateway.routes.json_response import json_response
from gateway.services import Services

router = APIRouter(route_class=AdminRoute)

LISTED, MOST_LISTED = 50, 500
MOST_DIGITS = 9


@router.get("/admin/api/requests")
async def requests(request: Request) -> Response:
    """List the latest requests, the newest first; `?limit=` says how many."""
    services: Services = request.app.state.services
    asked = request.query_params.get("limit", str(LISTED))
    is_number = len(asked) <= MOST_DIGITS and asked.isascii() and asked.isdigit()
    if not is_number or not 1 <= int(asked) <= MOST_LISTED:
        raise bad_value("limit", f"'limit' must be a whole number from 1 to {MOST_LISTED}.")
    return json_response({"requests": await newest_requests(services, int(asked))})


@router.get("/admin/api/requests/{request_id}", responses={404: {"description": "no such request"}})
async def one_request(request: Request, request_id: str) -> Response:
    """Tell the story of one request, by the id of its answer, of a choice, or `x-request-id`."""
    services: Services = request.app.state.services
    story = await find_story(services, request_id)
    if story is None:
        raise ApiError(Problem.NOT_FOUND, "No such request is known (any more).")
    return json_response(story)
