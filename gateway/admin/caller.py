"""Who calls an admin route, from its credentials: the admin token, or a login; not what it may.

The admin token comes as `Authorization: Bearer tga_...`, or from a browser as the password of HTTP
Basic or by a cookie of its own; a login as a cookie. Browsers send all but the first by themselves,
so with those a request that changes something has to come from a page of this gateway.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.requests import Request

from engine.core.clock import utc_now
from gateway.admin.cross_site import SAFE_METHODS, is_own_site
from gateway.admin.desk import AdminDesk
from gateway.admin.token_login import token_proved
from gateway.errors import ApiError, Problem
from tenants.values import Actor, Role, SessionRecord

CHALLENGE = {"www-authenticate": 'Basic realm="tiergate admin", charset="UTF-8"'}
TOUCH_AFTER = timedelta(minutes=1)
TOKEN_NAME = "admin token"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `session` is None for the admin token, which proves itself with every request.

    Unless a browser has it in a cookie: `proved_at` is then when it was shown.
    """

    role: Role
    actor: Actor
    session: SessionRecord | None = None
    proved_at: datetime | None = None

    @property
    def tenant_id(self) -> str | None:
        """The only tenant whose things this caller may see; None: everybody's."""
        mine = None if self.session is None else self.session.user.tenant_id
        assert (mine is not None) == (self.role is Role.TENANT_VIEWER), "else it would see it all"
        return mine


def address_of(request: Request) -> str:
    """Return where a request comes from."""
    return "" if request.client is None else request.client.host


def actor_of(request: Request, name: str, kind: str) -> Actor:
    """Return who is written into the audit."""
    return Actor(name, kind, address_of(request), request.state.request_id)


def not_logged_in() -> ApiError:
    """Return the one answer to every failure to say who one is."""
    return ApiError(
        Problem.UNAUTHENTICATED, "The admin token or a login is needed here.", headers=CHALLENGE
    )


async def find_caller(request: Request, desk: AdminDesk, *, touch: bool = True) -> Caller:
    """Return who asks; raises the one 401, or 403 for what another site makes a browser send.

    `touch` False: it does not count as use of the login, as for what a page fetches by itself.
    """
    header = request.headers.get("authorization", "")
    if header:
        given = admin_secret(header)
        if not hmac.compare_digest(given.encode(), desk.token.encode()):
            raise not_logged_in()
        if not header.lower().startswith("bearer "):
            _check_site(request, desk)
        return Caller(Role.OWNER, actor_of(request, TOKEN_NAME, "token"))
    now = utc_now()
    proved = token_proved(desk, request, now)
    if proved is not None:
        _check_site(request, desk)
        return Caller(Role.OWNER, actor_of(request, TOKEN_NAME, "token"), None, proved)
    secret = request.cookies.get(desk.cookie_name(request))
    if not secret:
        raise not_logged_in()
    session = await desk.find_session(secret, now, address_of(request))
    if session is None:
        raise not_logged_in()
    _check_site(request, desk)
    if touch and now - session.seen_at > TOUCH_AFTER:
        await desk.repository.touch_session(secret, now)
    user = session.user
    return Caller(user.role, actor_of(request, user.name, "user"), session)


def is_recent(caller: Caller, now: datetime, desk: AdminDesk) -> bool:
    """True where the caller has proved who it is not long ago."""
    if caller.session is None:
        return caller.proved_at is None or now - caller.proved_at <= desk.recent
    return now - caller.session.authenticated_at <= desk.recent


def admin_secret(header: str) -> str:
    """Return the secret of a Bearer or Basic header, empty where there is none."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        # binascii.Error, UnicodeDecodeError, or the plain one of a header that is not ASCII.
        except ValueError:
            return ""
    return ""


def _check_site(request: Request, desk: AdminDesk) -> None:
    if request.method not in SAFE_METHODS and not is_own_site(request.headers, desk.url):
        raise ApiError(
            Problem.CROSS_SITE, "This request does not come from a page of this gateway."
        )
