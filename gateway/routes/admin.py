"""What an operator may see of the engine and the door, as JSON; it changes nothing.

Who may see them is in `gateway.admin.roles`. Without an admin token these routes do not exist.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import NS_PER_MS
from gateway.admin.route import AdminRoute
from gateway.admission_view import admission_fields
from gateway.engine_view import engine_fields
from gateway.readiness import judge
from gateway.routes.json_response import json_response
from gateway.services import Services
from gateway.workers.answers import all_doors

router = APIRouter(route_class=AdminRoute)


@router.get("/admin/api/engine")
async def engine_state(request: Request) -> Response:
    """Return the engine's present and last seconds, its newest snapshot, and the doors' counts."""
    services: Services = request.app.state.services
    return json_response(describe(services) | {"workers": await all_doors(services)})


@router.get("/admin/api/admission")
async def admission_state(request: Request) -> Response:
    """Return what is expected of first tokens and lengths, and how it has been borne out."""
    services: Services = request.app.state.services
    return json_response(admission_fields(services))


def describe(services: Services) -> dict[str, Any]:
    """Return the gateway's state as plain values."""
    host, admission = services.host, services.admission
    info, snapshot = host.engine.info, host.engine.snapshot
    missing, degraded = judge(services)
    engine = shown = None
    if snapshot is not None:
        now_ns = services.clock.now_ns()
        shown = dataclasses.asdict(dataclasses.replace(snapshot, load=None))
        del shown["load"]  # the door's business: /admin/api/admission
        for name in ("waiting_by_tier", "running_by_tier", "parked_by_tier"):
            shown[name] = dict(shown[name])
        shown["age_ms"] = (now_ns - shown.pop("at_ns")) // NS_PER_MS
        if info is not None:
            recent = services.watch.recent(snapshot, now_ns)
            engine = engine_fields(info, snapshot, recent, now_ns)
    return {
        "ready": not missing,
        "missing": missing,
        "degraded": degraded,
        "restarts": host.restarts,
        "engine": engine,
        "info": None if info is None else dataclasses.asdict(info),
        "snapshot": shown,
        "door": {
            "open_answers": len(services.live),
            "waiting": admission.waiting,
            "waiting_by_tier": admission.waiting_by_tier(),
            "waiting_prompt_tokens": admission.waiting_prompt_tokens,
            "max_queue": services.settings.max_queue,
        },
        "usage": dataclasses.asdict(services.meter.state),
    }
