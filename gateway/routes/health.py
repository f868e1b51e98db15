"""Liveness, readiness and metrics, for whoever runs the gateway; they say nothing of any tenant.

Liveness depends on nothing but this process. Readiness is false while there is no engine, while
draining, and when usage records are about to be lost; a ledger that is away only degrades it, since
known keys are served on and usage waits on disk.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gateway.limits.breaker import BreakerState
from gateway.routes.json_response import json_response
from gateway.services import Services
from gateway.workers.answers import all_metrics

router = APIRouter()


@router.get("/livez")
async def livez() -> Response:
    """Say that the process and its event loop are alive."""
    return json_response({"status": "alive"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Say whether a request sent now could be answered, and if not, why."""
    services: Services = request.app.state.services
    missing, degraded = judge(services)
    body = {
        "status": "not ready" if missing else "ready",
        "missing": missing,
        "degraded": degraded,
    }
    return json_response(body, 503 if missing else 200)


def judge(services: Services) -> tuple[list[str], list[str]]:
    """Return what keeps the gateway from serving, and what merely hurts."""
    meter = services.meter.state
    missing: list[str] = []
    if services.admission.draining:
        missing.append("draining")
    if not services.host.is_ready:
        missing.append("engine")
    if not meter.database_ok and meter.nearly_full:
        missing.append("usage spool is full")
    missing += [f"task {name} failed" for name in services.background.failed]
    degraded = [] if meter.database_ok else ["database"]
    if services.desk.limiter.state.state != BreakerState.CLOSED:
        degraded.append("limits")
    if meter.lost:
        degraded.append("usage records were lost")
    return missing, degraded


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return all metrics in Prometheus' text form, those of the other workers too."""
    services: Services = request.app.state.services
    text = await all_metrics(services)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
