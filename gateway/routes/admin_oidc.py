"""`/admin/api/oidc/...`: logging in with the provider of the settings; without one there is none.

Every failure has one answer. What failed is in the log, by the name of the check.
"""

from __future__ import annotations

import logging
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from engine.core.clock import utc_now
from gateway.admin.caller import actor_of, address_of
from gateway.admin.desk import AdminDesk
from gateway.admin.documented import ERRORS, documented
from gateway.admin.oidc_flow import LIFETIME_S, new_flow, opened, sealed
from gateway.admin.oidc_users import user_of
from gateway.admin.onward import MOST_NEXT, safe_next
from gateway.admin.reading import flag_of, nothing_there, query_of
from gateway.admin.roles import BASE
from gateway.admin.route import AdminRoute, desk_of
from gateway.errors import ApiError, Problem
from tenants.repository import Change
from tenants.values import UserRecord

logger = logging.getLogger(__name__)

router = APIRouter(route_class=AdminRoute, responses=ERRORS)

OIDC = "oidc"
MOST_AGE_S = 365 * 86_400.0
# A redirect would go on with the provider's request, and take no SameSite=Strict cookie along.
_BACK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={onward}">
<title>Tiergate</title></head><body><p>Logged in. <a href="{onward}">Go on</a></p></body></html>
"""
_BACK_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@router.get(f"{BASE}/oidc/login", status_code=302, openapi_extra=documented(None, "again", "next"))
async def begin(request: Request) -> Response:
    """Send the browser to the provider; with `again=true` it asks for a new proof.

    `next` is the page to go on to, as at the login page: one of ours, else the first one.
    """
    desk = desk_of(request)
    if desk.oidc is None:
        raise nothing_there()
    query = query_of(request, "again", "next", most=MOST_NEXT)
    again, onward = flag_of(query, "again"), safe_next(query.get("next", ""))
    from gateway.admin.oidc import OidcAway

    flow = new_flow(utc_now(), onward)
    try:
        url = await desk.oidc.authorization_url(
            state=flow.state, nonce=flow.nonce, verifier=flow.verifier, again=again
        )
    except OidcAway as error:
        raise _away(error) from None
    response = RedirectResponse(url, 302, {"cache-control": "no-store"})
    _keep(desk, request, response, sealed(flow, desk.ledger.pepper.secret), LIFETIME_S)
    return response


@router.get(f"{BASE}/oidc/callback", response_class=HTMLResponse)
async def come_back(request: Request) -> Response:
    """Take the provider's answer, and begin a login."""
    desk = desk_of(request)
    if desk.oidc is None:
        raise nothing_there()
    from gateway.admin.oidc import OidcAway, OidcRefused

    # Providers add parameters of their own, so unknown ones are no fault here.
    query = request.query_params
    sent = request.cookies.get(_cookie(desk, request), "")
    flow = opened(sent, desk.ledger.pepper.secret, query.get("state", ""), utc_now())
    address = address_of(request)
    if flow is None:
        raise _refused("the browser did not begin here, or too long ago")
    wait_ms = desk.attempts.begin(address, f"{OIDC} {address}")
    if wait_ms:
        raise ApiError(Problem.RATE_LIMITED, "Too many attempts to log in.", retry_after_ms=wait_ms)
    code = query.get("code", "")
    if not code or "error" in query:
        raise _refused("the provider has refused")
    try:
        claims = await desk.oidc.claims(
            code=code, verifier=flow.verifier, nonce=flow.nonce, issuer=query.get("iss")
        )
    except OidcAway as error:
        raise _away(error) from None
    except OidcRefused as error:
        raise _refused(str(error)) from None
    user = await _let_in(request, desk, claims)
    desk.attempts.succeeded(address, f"{OIDC} {address}")
    response = HTMLResponse(_BACK.format(onward=escape(flow.onward)), headers=_BACK_HEADERS)
    _keep(desk, request, response, "", 0)
    by = actor_of(request, user.name, "user")
    await desk.log_in(request, response, user, by, before_s=_age_s(claims))
    return response


async def _let_in(request: Request, desk: AdminDesk, claims: dict[str, Any]) -> UserRecord:
    assert desk.oidc is not None
    by = actor_of(request, OIDC, "system")
    user = await user_of(desk.repository, desk.oidc.config, claims, utc_now(), by)
    if user is None:
        change = Change("session.refuse", "user", "", result="refused")
        await desk.repository.write_event(by, utc_now(), change)
        raise _refused("nobody here has that subject, or no group gives a role")
    return user


def _age_s(claims: dict[str, Any]) -> float:
    """Return how long ago the user has proved who it is: now, unless the provider says when."""
    at = claims.get("auth_time")
    if not isinstance(at, int | float) or isinstance(at, bool):
        return 0.0
    return min(max(utc_now().timestamp() - at, 0.0), MOST_AGE_S)


def _cookie(desk: AdminDesk, request: Request) -> str:
    return desk.cookie_name(request) + "-oidc"


def _keep(desk: AdminDesk, request: Request, response: Response, value: str, seconds: int) -> None:
    response.set_cookie(
        _cookie(desk, request),
        value,
        max_age=seconds,
        path="/",  # the prefix of its name asks for it
        secure=desk.is_https(request),
        httponly=True,
        samesite="lax",
    )


def _refused(why: str) -> ApiError:
    logger.warning("a login by OIDC is refused: %s", why)
    return ApiError(Problem.LOGIN_FAILED, "The identity provider's answer lets nobody in.")


def _away(error: Exception) -> ApiError:
    logger.warning("the identity provider cannot be used: %s", error)
    return ApiError(
        Problem.PROVIDER_UNAVAILABLE, "The identity provider does not answer.", retry_after_ms=5000
    )
