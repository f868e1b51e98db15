"""`/admin/api/login`, `logout`, `session`, `password`: how users come in and go; not what they do.

Every failure to log in has the same answer after the same work: unknown name, wrong password, no
password, shut out. How often it may be tried is bounded, for an address and for an account.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import LoginBody, OwnPasswordBody
from gateway.admin.caller import Caller, actor_of, address_of
from gateway.admin.cross_site import says_other_site
from gateway.admin.desk import AdminDesk
from gateway.admin.documented import ERRORS, documented
from gateway.admin.pages import shown
from gateway.admin.reading import body_of
from gateway.admin.roles import BASE
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import ApiError, Problem
from gateway.routes.json_response import json_response
from tenants.repository import Change
from tenants.values import UserRecord

router = APIRouter(route_class=AdminRoute, responses=ERRORS)

STRANGER = "unknown"


@router.post(f"{BASE}/login", openapi_extra=documented(LoginBody))
async def login(request: Request) -> Response:
    """Begin a login; the answer sets its cookie."""
    desk = desk_of(request)
    if says_other_site(request.headers, desk.url):
        raise ApiError(Problem.CROSS_SITE, "This login does not come from a page of this gateway.")
    body = await body_of(request, LoginBody)
    user = await prove(request, desk, body.user, body.password)
    response = json_response({"user": shown(user)})
    await desk.log_in(request, response, user, actor_of(request, user.name, "user"))
    return response


@router.post(f"{BASE}/logout")
async def logout(request: Request) -> Response:
    """End this login; harmless without one."""
    response = json_response({"status": "logged out"})
    await desk_of(request).log_out(request, response, caller_of(request).actor)
    return response


@router.get(f"{BASE}/session")
async def session(request: Request) -> Response:
    """Say who the caller is, what it may do, and how long this login lasts."""
    desk, caller = desk_of(request), caller_of(request)
    held = caller.session
    return json_response(
        {
            "name": caller.actor.name,
            "kind": caller.actor.kind,
            "role": caller.role,
            "tenant_id": caller.tenant_id,
            "expires_at": None if held is None else shown(held.expires_at),
            "recent_until": None if held is None else shown(held.authenticated_at + desk.recent),
        }
    )


@router.post(f"{BASE}/password", openapi_extra=documented(OwnPasswordBody))
async def own_password(request: Request) -> Response:
    """Give oneself another password; all one's logins end, and this one begins anew."""
    changed = await changed_own_password(request, await body_of(request, OwnPasswordBody))
    response = json_response({"user": shown(changed)})
    await desk_of(request).log_in(request, response, changed, caller_of(request).actor)
    return response


async def changed_own_password(request: Request, body: OwnPasswordBody) -> UserRecord:
    """Give the caller another password, whatever form the body came in; its logins end."""
    desk, caller = desk_of(request), caller_of(request)
    user = _user_of(caller)
    await prove(request, desk, user.name, body.old)
    digest = await desk.passwords.digest(body.new)
    return await desk.repository.set_password(user.id, digest, utc_now(), by=caller.actor)


def _user_of(caller: Caller) -> UserRecord:
    if caller.session is None:
        raise ApiError(Problem.BAD_REQUEST, "The admin token has no password.")
    return caller.session.user


async def prove(request: Request, desk: AdminDesk, name: str, password: str) -> UserRecord:
    """Return the user of this name and password; raises the one 401, or 429."""
    address = address_of(request)
    wait_ms = desk.attempts.begin(address, name)
    if wait_ms or desk.logins.locked():
        raise ApiError(
            Problem.RATE_LIMITED, "Too many attempts to log in.", retry_after_ms=wait_ms or 1000
        )
    async with desk.logins:
        found = await desk.repository.find_login(name)
        user, digest = (None, None) if found is None else found
        fits = await desk.passwords.fits(password, digest)
    if user is None or not fits or user.disabled_at is not None:
        # The name is written down only if it is one: people type passwords into the wrong field.
        who = actor_of(request, STRANGER if user is None else user.name, "user")
        target = "" if user is None else user.id
        change = Change("session.refuse", "user", target, result="refused")
        await desk.repository.write_event(who, utc_now(), change)
        raise ApiError(Problem.LOGIN_FAILED, "User and password do not fit.")
    desk.attempts.succeeded(address, name)
    return user
