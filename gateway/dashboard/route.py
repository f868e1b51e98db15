"""The gate in front of every admin page: the API's rules, told to people instead of programs.

A page of this class is refused to everybody unless `roles.PAGES` names it. Who has no login is sent
to the login page, who has an old one where a recent one is needed is asked for the password; both
come back. Faults become pages.
"""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse, Response

from engine.core.clock import utc_now
from gateway.admin.caller import Caller, find_caller, is_recent
from gateway.admin.cross_site import SAFE_METHODS
from gateway.admin.onward import safe_next
from gateway.admin.roles import may
from gateway.admin.route import AdminRoute, Handler, desk_of, told
from gateway.admin.token_login import log_in_with_token
from gateway.dashboard.frame import HEADERS, go, page
from gateway.dashboard.roles import PAGES
from gateway.errors import ApiError, Problem
from tenants.errors import LedgerError

LOGIN = "/admin/login"
LIVE = "/admin/live/{page}"
NO_FORMS = ("/admin/logout", "/admin/theme")  # buttons: nobody has typed anything


class PageRoute(AdminRoute):
    """An admin page; its router has `include_in_schema=False`."""

    def get_route_handler(self) -> Handler:
        """Return the handler behind the gate."""
        handler = APIRoute.get_route_handler(self)

        async def guarded(request: Request) -> Response:
            try:
                sent_away = await _let_in(request, self.path_format)
                response = sent_away or await handler(request)
            except LedgerError as error:
                response = fault_page(request, told(error))
            except ApiError as error:
                response = fault_page(request, error)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            _keep_token_login(request, response, self.path_format)
            return response

        return guarded


def fault_page(request: Request, error: ApiError) -> Response:
    """Return a page that says what went wrong; `x-tiergate-fault` says it for programs."""
    status = error.spec.status
    response = page(request, "fault.html", status=status, error=error, fault=error.spec)
    plain = error.response()
    for name in ("retry-after", "retry-after-ms"):
        if name in plain.headers:
            response.headers[name] = plain.headers[name]
    response.headers["x-tiergate-fault"] = error.spec.code or error.spec.type
    return response


def lost_page(request: Request, error: ApiError) -> Response | None:
    """Return a page for a browser that is at no page of ours, None for all but browsers there."""
    path = request.url.path
    is_ours = path.startswith("/admin/") and not path.startswith("/admin/api/")
    if not is_ours or "text/html" not in request.headers.get("accept", ""):
        return None
    if getattr(request.app.state, "admin", None) is None:  # then there are no pages
        return None
    response = fault_page(request, error)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _let_in(request: Request, path: str) -> Response | None:
    """Return where to send the caller instead, None to go on; raises ApiError."""
    request.state.caller = None
    method = "GET" if request.method == "HEAD" else request.method
    access = PAGES.get((method, path))
    if access is None:
        raise _not_for_you()
    if access.role is None:
        return None
    desk = desk_of(request)
    try:
        caller = await find_caller(request, desk, touch=path != LIVE)
    except ApiError as error:
        if error.problem is not Problem.UNAUTHENTICATED:
            raise
        return _to_login(request, "")
    request.state.log["admin"] = caller.actor.kind
    request.state.caller = caller
    if not may(caller.role, access.role):
        raise _not_for_you()
    if access.is_fresh and not is_recent(caller, utc_now(), desk):
        return _to_login(request, "&again=true")
    return None


def _to_login(request: Request, more: str) -> Response:
    url = f"{LOGIN}?next={quote(_came_from(request), safe='/')}{more}"
    if request.headers.get("hx-request") == "true":
        # A part of a page that renews itself: the whole page is to go, not the part.
        said = "Your login has ended. Log in, and you go on where you were."
        response = go(request, url, said, "warn")
        response.status_code = 401
        response.headers["hx-redirect"] = response.headers["location"]
        del response.headers["location"]
        return response
    if request.method in SAFE_METHODS or request.url.path in NO_FORMS:
        return RedirectResponse(url, 303)
    return go(request, url, "Nothing is saved yet: log in, and you are back at your form.", "warn")


def _came_from(request: Request) -> str:
    """Return the page to come back to: this one, or of a form the page it is on."""
    if request.method in SAFE_METHODS and request.headers.get("hx-request") != "true":
        query = request.url.query
        return safe_next(request.url.path + (f"?{query}" if query else ""))
    parts = urlsplit(request.headers.get("referer", ""))
    return safe_next(parts.path + (f"?{parts.query}" if parts.query else ""))


def _keep_token_login(request: Request, response: Response, path: str) -> None:
    """A login with the token lives on while its browser is used, as other logins do."""
    caller: Caller | None = request.state.caller
    if caller is None or caller.proved_at is None or path in (LIVE, "/admin/logout"):
        return
    log_in_with_token(desk_of(request), request, response, caller.proved_at)


def _not_for_you() -> ApiError:
    return ApiError(Problem.ROLE_FORBIDDEN, "Your role may not do this.")
