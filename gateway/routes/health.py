"""Liveness, readiness and metrics, for whoever runs the gateway; they say nothing of any tenant.

Liveness depends on nothing but this process. What readiness depends on is in `gateway.readiness`.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from gateway.readiness import readiness
from gateway.routes.json_response import json_response
from gateway.services import Services
from gateway.workers.answers import all_metrics

router = APIRouter()


@router.get("/livez")
async def livez() -> Response:
    """Say that the process and its event loop are alive."""
    return json_response({"status": "alive"})


@router.get("/readyz", responses={503: {"description": "what is missing is named"}})
async def readyz(request: Request) -> Response:
    """Say whether a request sent now could be answered, and if not, why."""
    services: Services = request.app.state.services
    body = readiness(services)
    return json_response(body, 503 if body["missing"] else 200)


# Load balancers that ask with HEAD want the status alone.
router.add_api_route("/livez", livez, methods=["HEAD"], include_in_schema=False)
router.add_api_route("/readyz", readyz, methods=["HEAD"], include_in_schema=False)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return all metrics in Prometheus' text form, those of the other workers too."""
    services: Services = request.app.state.services
    text = await all_metrics(services)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
