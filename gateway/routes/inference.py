"""`POST /v1/chat/completions` and `/v1/completions`: the verbs in their order, one function each.

authenticate -> read -> encode -> (in the response) admit -> submit -> stream -> settle. Everything
before the response holds nothing that would have to be given back.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from gateway.answer import Answer
from gateway.errors import ApiError, Problem
from gateway.plan import Plan
from gateway.principal import Principal
from gateway.schemas import ChatBody, CompletionBody, parse_body
from gateway.services import Services
from gateway.streaming import AnswerResponse

router = APIRouter()


def _documented(body: type[ChatBody | CompletionBody]) -> dict[str, Any]:
    schema = {"schema": body.model_json_schema(ref_template="#/components/schemas/{model}")}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


@router.post("/v1/chat/completions", openapi_extra=_documented(ChatBody))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    services: Services = request.app.state.services
    principal = await authenticate(request, services)
    raw = await read(request, services)
    body = parse_body(raw, ChatBody)
    plan = await services.host.encoder().chat(
        body, principal, services.tiers.current, request.state.arrival_ns
    )
    return respond(request, services, plan)


@router.post("/v1/completions", openapi_extra=_documented(CompletionBody))
async def completions(request: Request) -> Response:
    """Continue one or several texts."""
    services: Services = request.app.state.services
    principal = await authenticate(request, services)
    raw = await read(request, services)
    body = parse_body(raw, CompletionBody)
    plan = await services.host.encoder().completion(
        body, principal, services.tiers.current, request.state.arrival_ns
    )
    return respond(request, services, plan)


async def authenticate(request: Request, services: Services) -> Principal:
    """Return who asks; raises ApiError."""
    principal = await services.auth.authenticate(request.headers.get("authorization"))
    request.state.log.update(tenant=principal.tenant.id, key=principal.key_id)
    return principal


async def read(request: Request, services: Services) -> bytes:
    """Return the body; a longer one than allowed is refused before it is parsed, or even read.

    A refusing gateway still lets the server swallow the rest of the body, so that the client gets
    to read the answer instead of a broken connection.
    """
    services.admission.check_open()
    limit = services.settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(services.settings.body_timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise ApiError(
            Problem.BODY_TIMEOUT,
            "The request body did not arrive in time.",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect:
        # Nobody will read this answer; it only ends the request in an orderly way.
        raise ApiError(Problem.BAD_REQUEST, "The client left.") from None
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(Problem.BODY_TOO_LARGE, f"A request body may have at most {limit} bytes.")


def respond(request: Request, services: Services, plan: Plan) -> Response:
    """Return the response that takes the seats, writes the answer and gives the seats back."""
    request.state.log.update(
        id=plan.heading.id,
        operation=plan.shape.operation,
        tier=plan.tier.name,
        stream=plan.stream,
        prompt_tokens=sum(map(len, plan.prompts)),
    )
    answer = Answer(
        plan,
        services.host.encoder().codec,
        services.host.engine,
        services.admission,
        services.meter,
    )
    return AnswerResponse(answer, services.live, services.telemetry, services.clock)
