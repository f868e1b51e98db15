"""`POST /v1/messages` and its counter of tokens: the Anthropic Messages API, served as a chat."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import metric_names as names
from gateway.dialects.messages import MessageShape
from gateway.dialects.messages_body import KNOWN, CountBody, MessagesBody
from gateway.plan import Plan
from gateway.principal import Principal
from gateway.routes.documented import MESSAGE, TOKEN_COUNT, documented
from gateway.routes.inference import authenticate, infer, read
from gateway.routes.json_response import json_response
from gateway.schemas import parse_body
from gateway.services import Services
from tenants.values import Route, TierRecord

router = APIRouter()
MESSAGES = MessageShape()


@router.post(
    "/v1/messages",
    openapi_extra=documented(MESSAGE, MessagesBody, streams=True, anthropic=True),
)
async def messages(request: Request) -> Response:
    """Answer a conversation."""

    async def plan(raw: bytes, principal: Principal, tiers: Sequence[TierRecord]) -> Plan:
        body = parse_body(raw, MessagesBody, KNOWN).as_chat()
        services: Services = request.app.state.services
        encoder = services.host.encoder()
        return await encoder.chat(body, principal, tiers, request.state.arrival_ns, MESSAGES)

    return await infer(request, names.OPERATION_CHAT, Route.MESSAGES, plan)


@router.post(
    "/v1/messages/count_tokens", openapi_extra=documented(TOKEN_COUNT, CountBody, anthropic=True)
)
async def count_tokens(request: Request) -> Response:
    """Count the tokens of a conversation; nothing is computed, and nothing is billed."""
    services: Services = request.app.state.services
    principal = await authenticate(request, services, Route.MESSAGES)
    body = parse_body(await read(request, services), CountBody, KNOWN).chat()
    return json_response({"input_tokens": await services.host.encoder().count(body, principal)})
