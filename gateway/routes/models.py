"""`GET /v1/models` and `/v1/models/{id}`: the one model served, to keys that may use it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import NS_PER_S, utc_now
from gateway.completion import ModelCard
from gateway.encoding import context_limit, is_served
from gateway.errors import ApiError, Problem
from gateway.principal import Principal
from gateway.routes.documented import MODEL, MODELS, documented
from gateway.routes.inference import authenticate
from gateway.routes.json_response import json_response
from gateway.services import Services
from tenants.values import Route

router = APIRouter()


@router.get("/v1/models", openapi_extra=documented(MODELS))
async def list_models(request: Request) -> Response:
    """List the models that the key may use."""
    services: Services = request.app.state.services
    principal = await authenticate(request, services, Route.MODELS)
    cards = [card.as_dict() for card in visible_models(services, principal)]
    return json_response({"object": "list", "data": cards})


@router.get("/v1/models/{model:path}", openapi_extra=documented(MODEL))
async def retrieve_model(request: Request, model: str) -> Response:
    """Describe one model; one that the key may not use is as unknown as one that is not there."""
    services: Services = request.app.state.services
    principal = await authenticate(request, services, Route.MODELS)
    info = services.host.engine.info
    if info is not None and is_served(model, info, services.host.aliases):
        for card in visible_models(services, principal):
            return json_response(card.as_dict())
    raise ApiError(Problem.MODEL_UNKNOWN, "There is no such model here.", param="model")


def visible_models(services: Services, principal: Principal) -> list[ModelCard]:
    """Return the cards of the models that `principal` may use; none before the first load."""
    info = services.host.engine.info
    if info is None or not any(map(principal.allows, (info.model, *services.host.aliases))):
        return []
    # When the model was loaded: the monotonic clock's difference, told in the wall clock's time.
    age_s = (services.clock.now_ns() - services.host.loaded_ns) // NS_PER_S
    created = int(utc_now().timestamp()) - age_s
    return [ModelCard(id=info.model, created=created, max_model_len=context_limit(info))]
