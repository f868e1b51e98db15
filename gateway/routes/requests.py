"""`/admin/api/requests`: the latest requests, and the whole story of one; for operators only.

The list is the door's own. A story asks the engine what it decided, which it says between two
steps; where it does not, the door's part is told without it.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from gateway.errors import ApiError, Problem, bad_value
from gateway.request_records import DoorRecord
from gateway.request_view import request_fields, summary_fields
from gateway.routes.admin import require_admin
from gateway.routes.json_response import json_response
from gateway.services import Services

router = APIRouter()

LISTED, MOST_LISTED = 50, 500
MOST_CHOICES = 16  # of one answer are asked for; of others, ask by the choice's own id
MOST_ID = 200  # characters


@router.get("/admin/api/requests")
async def requests(request: Request) -> Response:
    """List the latest requests, the newest first; `?limit=` says how many."""
    services: Services = request.app.state.services
    require_admin(request, services)
    asked = request.query_params.get("limit", str(LISTED))
    if not asked.isascii() or not asked.isdigit() or not 1 <= int(asked[:9]) <= MOST_LISTED:
        raise bad_value("limit", f"'limit' must be a whole number from 1 to {MOST_LISTED}.")
    limit = int(asked)
    newest = services.journal.newest()
    rows = [summary_fields(record) for record, _ in zip(newest, range(limit), strict=False)]
    return json_response({"requests": rows})


@router.get("/admin/api/requests/{request_id}")
async def one_request(request: Request, request_id: str) -> Response:
    """Tell the story of one request, by the id of its answer, of a choice, or `x-request-id`."""
    services: Services = request.app.state.services
    require_admin(request, services)
    door = services.journal.find(request_id) if len(request_id) <= MOST_ID else None
    names = [request_id] if door is None else _choices(door, request_id)
    if door is not None and door.admitted_ns is None:
        found, error = dict[str, RequestRecord | None](), ""  # no engine has heard of it
    else:
        found, error = await _ask(services, names)
    if door is None and not any(found.values()):
        raise ApiError(Problem.NOT_FOUND, "No such request is known (any more).")
    return json_response(request_fields(door, found, error))


def _choices(door: DoorRecord, name: str) -> list[str]:
    """Return the engine requests meant: one choice where it was named, else the first ones."""
    ids = [choice.id for choice in door.choices]
    return [name] if name in ids else ids[:MOST_CHOICES]


async def _ask(services: Services, names: list[str]) -> tuple[dict[str, RequestRecord | None], str]:
    """Return what the engine knows of these, and why it was not heard where it was not."""
    explain = services.host.engine.explain
    answers = await asyncio.gather(*map(explain, names), return_exceptions=True)
    found: dict[str, RequestRecord | None] = {}
    error = ""
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, EngineUnavailable):
            found[name], error = None, str(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[name] = answer
    return found, error
