"""A browser's login with the admin token: a signed cookie, since the token is no user's.

It ends after the time of every login, when the browser does not come for the time that logins may
idle, at logout (the browser forgets it), and everywhere when the token or the pepper is changed.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.seal import opened, sealed

if TYPE_CHECKING:
    from gateway.admin.desk import AdminDesk

PURPOSE = "token login"


def token_cookie(desk: AdminDesk, request: Request) -> str:
    """Return the cookie's name."""
    return desk.cookie_name(request) + "-token"


def log_in_with_token(
    desk: AdminDesk, request: Request, response: Response, proved: datetime | None = None
) -> None:
    """Give `response` the cookie; `proved` is when the token was shown, if that was not now."""
    now = utc_now()
    proved = proved or now
    end = min(now + desk.idle, proved + desk.lifetime)
    response.set_cookie(
        token_cookie(desk, request),
        sealed({"proved": int(proved.timestamp())}, PURPOSE, _secret(desk), end),
        max_age=max(int((end - now).total_seconds()), 0),
        path="/",
        secure=desk.is_https(request),
        httponly=True,
        samesite="strict",
    )


def log_out_of_token(desk: AdminDesk, request: Request, response: Response) -> None:
    """Let the browser forget it, if it has it."""
    if token_cookie(desk, request) not in request.cookies:
        return
    response.delete_cookie(
        token_cookie(desk, request),
        path="/",
        secure=desk.is_https(request),
        httponly=True,
        samesite="strict",
    )


def token_proved(desk: AdminDesk, request: Request, now: datetime) -> datetime | None:
    """Return when this browser has shown the token, None where it has not, or too long ago."""
    value = request.cookies.get(token_cookie(desk, request), "")
    found = opened(value, PURPOSE, _secret(desk), now) if value else None
    return None if found is None else datetime.fromtimestamp(found["proved"], UTC)


def _secret(desk: AdminDesk) -> bytes:
    return hmac.digest(desk.ledger.pepper.secret, desk.token.encode(), "sha256")
