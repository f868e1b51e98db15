"""What every page stands in: templates, headers, who looks at it, what was said; no page is here.

Templates escape everything. Pages hold no script and no style of their own: the policy below would
refuse them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from engine.core.clock import utc_now
from gateway.admin.caller import Caller
from gateway.admin.roles import may
from gateway.admin.route import desk_of
from gateway.admin.seal import opened, sealed
from gateway.dashboard.assets import ADMIN, BUILD_COMMAND, Assets
from gateway.dashboard.filters import FILTERS
from gateway.dashboard.navigation import active, entries_for
from gateway.dashboard.points import tier_lines
from gateway.dashboard.roles import PAGES
from tenants.values import Role

if TYPE_CHECKING:
    from gateway.dashboard.live import Live

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "tiergate-theme"
FLASH_COOKIE = "tiergate-flash"
FLASH = "flash"
FLASH_LIFE = timedelta(minutes=2)
MOST_FLASH = 300  # characters


class Frame:
    """Templates and assets of one gateway."""

    def __init__(self) -> None:
        self.assets = Assets()
        self.live: Live | None = None  # made with the first page that is
        self.templates = Environment(
            loader=FileSystemLoader(ADMIN / "templates"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.templates.filters.update(FILTERS)
        self.templates.globals.update(
            asset=self.assets.url,
            integrity=self.assets.integrity,
            has_assets=self.assets.is_complete,
            build_command=BUILD_COMMAND,
        )


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page, as templates know it."""

    name: str
    role: Role
    is_token: bool
    tenant_id: str | None

    def may(self, method: str, path: str) -> bool:
        """True where this role may use a page; a button for what one may not do is not drawn."""
        access = PAGES.get((method, path))
        return access is not None and (access.role is None or may(self.role, access.role))


def viewer_of(caller: Caller | None) -> Viewer | None:
    """Return who looks, None before a login."""
    if caller is None:
        return None
    return Viewer(caller.actor.name, caller.role, caller.actor.kind == "token", caller.tenant_id)


def frame_of(request: Request) -> Frame:
    """Return what all pages share."""
    frame: Frame = request.app.state.frame
    return frame


def fragment(request: Request, template: str, **values: Any) -> str:
    """Return a template's HTML without the frame, as for a part that is renewed."""
    shared = {"now": utc_now(), "me": viewer_of(getattr(request.state, "caller", None))}
    return frame_of(request).templates.get_template(template).render(shared | values)


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page: `template` extends `base.html`; what was to be said is said on it."""
    caller: Caller | None = getattr(request.state, "caller", None)
    flash = _flash(request)
    shared = {
        "nav": [] if caller is None else entries_for(caller.role),
        "active": active(request.url.path),
        "path": request.url.path,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "theme": theme_of(request),
        "flash": flash,
        "own_url": own_url(request),
        "model_name": model_name(request),
        "tier_lines": partial(tier_lines, request.app.state.services.tiers.current),
    }
    response = HTMLResponse(fragment(request, template, **(shared | values)), status)
    if flash is not None:
        response.delete_cookie(FLASH_COOKIE, path="/admin")
    return response


def own_url(request: Request) -> str:
    """Return where this gateway is reached, for commands that pages show."""
    return desk_of(request).url or f"{request.url.scheme}://{request.url.netloc}"


def model_name(request: Request) -> str:
    """Return the model that is served, likewise; the built-in one until the engine is there."""
    info = request.app.state.services.host.engine.info
    return "builtin" if info is None else str(info.model)


def go(request: Request, path: str, said: str = "", kind: str = "good") -> Response:
    """Send the browser to another page after a form, which says `said`: no secret, it is a cookie.

    `kind`: "good", "warn" or "bad".
    """
    response = RedirectResponse(path, 303)
    if said:
        secret, end = desk_of(request).ledger.pepper.secret, utc_now() + FLASH_LIFE
        value = sealed({"said": said[:MOST_FLASH], "kind": kind}, FLASH, secret, end)
        response.set_cookie(
            FLASH_COOKIE,
            value,
            max_age=int(FLASH_LIFE.total_seconds()),
            path="/admin",
            secure=desk_of(request).is_https(request),
            httponly=True,
            samesite="strict",
        )
    return response


def _flash(request: Request) -> dict[str, Any] | None:
    value = request.cookies.get(FLASH_COOKIE, "")
    if not value:
        return None
    return opened(value, FLASH, desk_of(request).ledger.pepper.secret, utc_now())


def theme_of(request: Request) -> str:
    """Return the colours asked for: "light", "dark", or "auto" for the system's own."""
    theme = request.cookies.get(THEME_COOKIE, THEMES[0])
    return theme if theme in THEMES else THEMES[0]
