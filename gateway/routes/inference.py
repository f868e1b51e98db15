"""`POST /v1/chat/completions` and `/v1/completions`: the verbs in their order, one function each.

authenticate -> read -> encode -> guess the length -> (in the response) reserve limits -> admit ->
submit -> stream -> settle. Everything before the response holds nothing that would have to be given
back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway import metric_names as names
from gateway.answer import Answer
from gateway.errors import ApiError, Problem, unauthenticated
from gateway.plan import Plan
from gateway.principal import Principal
from gateway.request_body import read_body
from gateway.routes.documented import CHAT, COMPLETION, documented
from gateway.schemas import ChatBody, CompletionBody, parse_body
from gateway.services import Services
from gateway.streaming import AnswerResponse
from gateway.telemetry import AnswerRecord
from gateway.wishes import read_wishes
from tenants.values import Route, TierRecord

router = APIRouter()

MakePlan = Callable[[bytes, Principal, Sequence[TierRecord]], Awaitable[Plan]]


@router.post("/v1/chat/completions", openapi_extra=documented(CHAT, ChatBody, streams=True))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""

    async def plan(raw: bytes, principal: Principal, tiers: Sequence[TierRecord]) -> Plan:
        body = parse_body(raw, ChatBody)
        encoder = _services(request).host.encoder()
        return await encoder.chat(body, principal, tiers, request.state.arrival_ns)

    return await infer(request, names.OPERATION_CHAT, Route.CHAT, plan)


@router.post("/v1/completions", openapi_extra=documented(COMPLETION, CompletionBody, streams=True))
async def completions(request: Request) -> Response:
    """Continue one or several texts."""

    async def plan(raw: bytes, principal: Principal, tiers: Sequence[TierRecord]) -> Plan:
        body = parse_body(raw, CompletionBody)
        encoder = _services(request).host.encoder()
        return await encoder.completion(body, principal, tiers, request.state.arrival_ns)

    return await infer(request, names.OPERATION_COMPLETION, Route.COMPLETIONS, plan)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def infer(request: Request, operation: str, route: Route, make_plan: MakePlan) -> Response:
    """Do what both routes do, up to the response; what is refused on the way is counted."""
    services = _services(request)
    principal: Principal | None = None
    # Until it has come to another end: a fault of ours, or that we stop while its body arrives.
    refusal: ApiError | None = ApiError(Problem.INTERNAL, "")
    try:
        principal = await authenticate(request, services, route)
        raw = await read(request, services)
        wishes = read_wishes(request.scope["headers"])
        plan = await make_plan(raw, principal, services.tiers.current)
        plan = plan.eased(wishes)
        plan = await services.lengths.guess(plan)
        # A body may be long under way, and a key revoked meanwhile: nothing watches it before its
        # answer is among the live ones. Answered from memory unless some key has changed.
        if not await services.auth.still_opens(principal.digest):
            raise unauthenticated()
        response = respond(request, services, plan)
        refusal = None
        return response
    except ApiError as error:
        refusal, principal = error, principal or error.sender
        raise
    except asyncio.CancelledError:
        refusal = ApiError(Problem.DRAINING, "")
        raise
    finally:
        if refusal is not None:
            count_refusal(request, services, operation, principal, refusal)


def count_refusal(
    request: Request,
    services: Services,
    operation: str,
    principal: Principal | None,
    error: ApiError,
) -> None:
    """Tell telemetry of a request that did not come to an answer."""
    if principal is None:
        services.telemetry.stranger(operation, error.spec.error_type)
        return
    info = services.host.engine.info
    total_ns = services.clock.now_ns() - request.state.arrival_ns
    slo = services.slo.refused(
        principal,
        error.spec,
        operation=operation,
        model="" if info is None else info.model,
        request_id=request.state.request_id,
        arrival=utc_now() - timedelta(microseconds=total_ns // 1000),
        total_ns=total_ns,
    )
    services.telemetry.answered(
        AnswerRecord(
            operation=operation,
            model=slo.model,
            tier=principal.tier.name,
            tenant_id=principal.tenant.id,
            outcome=error.spec.error_type,
            duration_ns=total_ns,
            verdict=slo.verdict,
        )
    )


async def authenticate(request: Request, services: Services, route: Route) -> Principal:
    """Return who asks; raises ApiError."""
    address = "" if request.client is None else request.client.host
    header = request.headers.get("authorization")
    if header is None and route is Route.MESSAGES:
        header = f"Bearer {request.headers.get('x-api-key', '')}"
    principal = await services.auth.authenticate(header, address, route)
    request.state.log.update(tenant=principal.tenant.id, key=principal.key_id)
    return principal


async def read(request: Request, services: Services) -> bytes:
    """Return the body of a request to a gateway that is open; raises ApiError."""
    services.admission.check_open()
    settings = services.settings
    return await read_body(request, settings.max_body_bytes, settings.body_timeout_s)


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
        services.gate,
        services.meter,
        services.lengths,
        services.desk,
    )
    return AnswerResponse(
        answer,
        services.live,
        services.telemetry,
        services.journal,
        services.slo,
        services.clock,
    )
