"""`POST /v1/embeddings`: a vector for each input, by the way that every answer takes."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import metric_names as names
from gateway.dialects.embeddings import EmbeddingBody
from gateway.plan import Plan
from gateway.principal import Principal
from gateway.routes.documented import EMBEDDINGS, documented
from gateway.routes.inference import infer
from gateway.schemas import field_names, parse_body
from gateway.services import Services
from tenants.values import Route, TierRecord

router = APIRouter()

KNOWN = field_names(EmbeddingBody)


@router.post("/v1/embeddings", openapi_extra=documented(EMBEDDINGS, EmbeddingBody))
async def embeddings(request: Request) -> Response:
    """Return the embeddings of some texts."""

    async def plan(raw: bytes, principal: Principal, tiers: Sequence[TierRecord]) -> Plan:
        body = parse_body(raw, EmbeddingBody, KNOWN)
        services: Services = request.app.state.services
        encoder = services.host.encoder()
        return await encoder.embedding(body, principal, tiers, request.state.arrival_ns)

    return await infer(request, names.OPERATION_EMBEDDINGS, Route.EMBEDDINGS, plan)
