"""`POST /v1/responses`: the OpenAI Responses API without its memory, served as a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import metric_names as names
from gateway.dialects.responses import ResponseShape
from gateway.dialects.responses_body import KNOWN, ResponsesBody
from gateway.errors import ApiError
from gateway.plan import Plan
from gateway.principal import Principal
from gateway.routes.documented import RESPONSE, documented
from gateway.routes.inference import infer
from gateway.schemas import parse_body
from gateway.services import Services
from tenants.values import Route, TierRecord

router = APIRouter()
# Fields of a chat by their names here, for faults that are found in it.
FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "prompt": "input",
        "response_format": "text.format",
    }
)


@router.post("/v1/responses", openapi_extra=documented(RESPONSE, ResponsesBody, streams=True))
async def responses(request: Request) -> Response:
    """Answer a conversation; nothing of it is kept."""

    async def plan(raw: bytes, principal: Principal, tiers: Sequence[TierRecord]) -> Plan:
        body = parse_body(raw, ResponsesBody, KNOWN)
        services: Services = request.app.state.services
        encoder = services.host.encoder()
        chat, shape = body.as_chat(encoder.model), ResponseShape(body.echo())
        try:
            return await encoder.chat(chat, principal, tiers, request.state.arrival_ns, shape)
        except ApiError as error:
            error.param = FIELDS.get(error.param or "", error.param)
            raise

    return await infer(request, names.OPERATION_CHAT, Route.RESPONSES, plan)
