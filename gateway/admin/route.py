"""The gate in front of every admin route: who asks, may they, and one answer to every failure.

A route of this class is refused to everybody unless `roles.ACCESS` names it. The handler finds the
caller in `request.state.caller`. What the ledger throws becomes an answer in the door's own words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.caller import Caller, find_caller, is_recent
from gateway.admin.desk import AdminDesk
from gateway.admin.roles import ACCESS, may
from gateway.errors import ApiError, Problem
from tenants.errors import (
    AlreadyExists,
    ChangedMeanwhile,
    InvalidValue,
    LedgerError,
    NotFound,
)

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
RETRY_MS = 1000


class AdminRoute(APIRoute):
    """An admin route."""

    def get_route_handler(self) -> Handler:
        """Return the handler behind the gate."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                await _let_in(request, self.path_format)
                return await handler(request)
            except LedgerError as error:
                raise told(error) from None

        return guarded


def desk_of(request: Request) -> AdminDesk:
    """Return what the admin routes share."""
    desk: AdminDesk = request.app.state.admin
    return desk


def caller_of(request: Request) -> Caller:
    """Return who was let in."""
    caller: Caller = request.state.caller
    return caller


async def _let_in(request: Request, path: str) -> None:
    """Raise unless the caller may use this route."""
    method = "GET" if request.method == "HEAD" else request.method
    access = ACCESS.get((method, path))
    if access is None:
        raise _not_for_you()
    if access.role is None:
        return
    desk = desk_of(request)
    caller = await find_caller(request, desk)
    request.state.log["admin"] = caller.actor.kind
    if not may(caller.role, access.role):
        raise _not_for_you()
    if access.is_fresh and not is_recent(caller, utc_now(), desk):
        raise ApiError(Problem.LOGIN_TOO_OLD, "This needs a recent login: log in again.")
    request.state.caller = caller


def _not_for_you() -> ApiError:
    return ApiError(Problem.ROLE_FORBIDDEN, "Your role may not do this.")


def told(error: LedgerError) -> ApiError:
    """Return what the caller is told of a failure of the ledger."""
    if isinstance(error, NotFound):
        return ApiError(Problem.NOT_FOUND, "There is nothing of that name here.")
    if isinstance(error, AlreadyExists):
        return ApiError(Problem.CONFLICT, "There is one of that name already.")
    if isinstance(error, ChangedMeanwhile):
        return ApiError(Problem.CHANGED, "It was changed meanwhile: look at it again.")
    if isinstance(error, InvalidValue):
        # Bodies were checked before: what is left are the ledger's rules, which hold no secret.
        text = str(error)
        return ApiError(Problem.BAD_REQUEST, f"{text[:1].upper()}{text[1:]}.")
    logger.warning("the ledger does not answer an admin route: %s", error)
    return ApiError(
        Problem.DATABASE_UNAVAILABLE, "The database does not answer.", retry_after_ms=RETRY_MS
    )
