"""`/admin/login`, `logout` and the colours: how people come to the pages; not what they do there.

One form takes a user's password or the admin token. Every failure has the same words after the same
work, as at the API; a right token is never held up, so that nobody can lock its owner out.
"""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from engine.core.clock import utc_now
from gateway.admin.caller import TOKEN_NAME, Caller, actor_of, address_of, find_caller, is_recent
from gateway.admin.cross_site import says_other_site
from gateway.admin.desk import AdminDesk
from gateway.admin.onward import MOST_NEXT, safe_next
from gateway.admin.reading import flag_of, query_of
from gateway.admin.route import caller_of, desk_of
from gateway.admin.token_login import log_in_with_token
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import THEME_COOKIE, THEMES, go, page
from gateway.dashboard.route import LOGIN, PageRoute
from gateway.errors import ApiError, Problem, bad_value
from gateway.passwords import MAX_LENGTH
from gateway.routes.admin_login import prove
from tenants.repository import Change

router = APIRouter(route_class=PageRoute, include_in_schema=False)

TOKEN_PREFIX = "tga_"
THEME_S = 400 * 86_400  # browsers keep no cookie for longer


@router.get(LOGIN)
async def show_login(request: Request) -> Response:
    """Show the form; who is logged in goes on, unless a new proof is asked for."""
    query = query_of(request, "next", "again", most=MOST_NEXT)
    onward = safe_next(query.get("next", ""))
    caller = await _caller(request)
    again = flag_of(query, "again")
    if caller is not None and not (again and not is_recent(caller, utc_now(), desk_of(request))):
        return RedirectResponse(onward, 303)
    return _form_page(request, Form({"next": onward}), caller)


@router.post(LOGIN)
async def log_in(request: Request) -> Response:
    """Begin a login, with a password or with the admin token."""
    desk = desk_of(request)
    if says_other_site(request.headers, desk.url):
        raise ApiError(Problem.CROSS_SITE, "This login does not come from a page of this gateway.")
    form = await read_form(request, "user", "secret", "next")
    onward, secret = safe_next(form["next"]), form.values.get("secret", "")
    if not secret:
        form.wrong("secret", "Type the password, or the admin token.")
    elif not form["user"] and not secret.strip().startswith(TOKEN_PREFIX):
        form.wrong("user", "Type a user name; only the admin token goes without one.")
    elif len(form["user"]) > 256 or len(secret) > MAX_LENGTH:
        form.wrong("", "User and password do not fit.")
    else:
        response = RedirectResponse(onward, 303)
        try:
            await _begin(request, desk, response, form["user"], secret)
            return response
        except ApiError as error:
            if error.problem not in (Problem.LOGIN_FAILED, Problem.RATE_LIMITED):
                raise
            form.wrong("", _said(error))
            return _form_page(request, form, await _caller(request), error.spec.status)
    return _form_page(request, form, await _caller(request), 400)


async def _begin(
    request: Request, desk: AdminDesk, response: Response, user: str, secret: str
) -> None:
    """Log in; raises ApiError where it does not fit, or was tried too often."""
    token = secret.strip()
    if hmac.compare_digest(token.encode(errors="replace"), desk.token.encode()):
        by = actor_of(request, TOKEN_NAME, "token")
        await desk.repository.write_event(by, utc_now(), Change("session.create", "token", ""))
        await desk.log_out(request, response, by)  # of the user that this browser was, if any
        log_in_with_token(desk, request, response)
    elif token.startswith(TOKEN_PREFIX):
        await _refuse_token(request, desk)
    else:
        found = await prove(request, desk, user, secret)
        await desk.log_in(request, response, found, actor_of(request, found.name, "user"))


async def _refuse_token(request: Request, desk: AdminDesk) -> None:
    wait_ms = desk.attempts.begin(address_of(request), TOKEN_NAME)
    if wait_ms:
        raise ApiError(Problem.RATE_LIMITED, "Too many attempts to log in.", retry_after_ms=wait_ms)
    by = actor_of(request, TOKEN_NAME, "token")
    change = Change("session.refuse", "token", "", result="refused")
    await desk.repository.write_event(by, utc_now(), change)
    raise ApiError(Problem.LOGIN_FAILED, "User and password do not fit.")


def _said(error: ApiError) -> str:
    if error.retry_after_ms is None:
        return error.message
    return f"{error.message} Try again in {-(-error.retry_after_ms // 1000)} seconds."


async def _caller(request: Request) -> Caller | None:
    """Return who is logged in already, None where nobody is."""
    try:
        return await find_caller(request, desk_of(request), touch=False)
    except ApiError as error:
        if error.problem is not Problem.UNAUTHENTICATED:
            raise
        return None


def _form_page(request: Request, form: Form, caller: Caller | None, status: int = 200) -> Response:
    session = None if caller is None else caller.session
    return page(
        request,
        "login.html",
        status=status,
        form=form,
        again=caller is not None,
        user=form["user"] or ("" if session is None else session.user.name),
        oidc=desk_of(request).oidc is not None,
        recent_min=round(desk_of(request).recent.total_seconds() / 60),
    )


@router.post("/admin/logout")
async def log_out(request: Request) -> Response:
    """End this login."""
    await read_form(request)
    response = go(request, LOGIN, "You are logged out.")
    await desk_of(request).log_out(request, response, caller_of(request).actor)
    return response


@router.post("/admin/theme")
async def set_theme(request: Request) -> Response:
    """Keep the colours that somebody likes, in that browser."""
    form = await read_form(request, "theme", "next")
    if form["theme"] not in THEMES:
        raise bad_value("theme", f"'theme' must be one of: {', '.join(THEMES)}.")
    response = RedirectResponse(safe_next(form["next"]), 303)
    response.set_cookie(
        THEME_COOKIE,
        form["theme"],
        max_age=THEME_S,
        path="/admin",
        secure=desk_of(request).is_https(request),
        httponly=True,
        samesite="strict",
    )
    return response
