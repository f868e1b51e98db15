"""What the admin routes share: the token, passwords, attempts, cookies, turns; it has no routes."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from engine.core.clock import Clock, utc_now
from gateway.admin.attempts import Attempts
from gateway.admin.oidc_settings import oidc_config
from gateway.admin.token_login import log_out_of_token
from gateway.errors import ApiError, Problem
from gateway.ledger import Ledger
from gateway.passwords import Passwords
from gateway.settings import Settings
from gateway.strangers import Strangers
from tenants.repository.users import session_digest
from tenants.values import Actor, SessionRecord, UserRecord

if TYPE_CHECKING:
    from gateway.admin.oidc import OidcClient

MAX_EXPORTS = 2  # at once
MAX_LOGINS = 32  # waiting for their password to be looked at
MAX_LOOKUPS = 2  # of cookies at once: most of the ledger's connections are for keys
MAX_GOOD = 1000


def make_oidc(settings: Settings, clock: Clock) -> OidcClient | None:
    """Return the client of the provider, None where none is set; raises SettingsError, one line."""
    config = oidc_config(settings)
    if config is None:
        return None
    from gateway.admin.oidc import OidcClient  # an extra: only who sets a provider needs it

    return OidcClient(config, clock)


class AdminDesk:
    """The admin routes' own things; used from one event loop."""

    def __init__(self, settings: Settings, ledger: Ledger, token: str, clock: Clock) -> None:
        self.token = token
        self.ledger = ledger
        self.repository = ledger.repository
        self.settings = settings
        self.url = settings.admin_url
        self.idle = timedelta(seconds=settings.admin_idle_s)
        self.recent = timedelta(seconds=settings.admin_recent_s)
        self.lifetime = timedelta(seconds=settings.admin_session_s)
        self.passwords = Passwords()
        self.attempts = Attempts(clock)
        self.logins = asyncio.Semaphore(MAX_LOGINS)
        self.exports = asyncio.Semaphore(MAX_EXPORTS)
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)
        self._strangers = Strangers(clock)
        self._good: OrderedDict[str, None] = OrderedDict()  # digests of cookies that were good
        self.oidc = make_oidc(settings, clock)

    async def find_session(self, secret: str, now: datetime, address: str) -> SessionRecord | None:
        """Return a login in force; raises 429 for an address that tries one cookie after the other.

        A cookie that was good is never held up: a bad neighbour locks nobody out.
        """
        digest = session_digest(secret)
        wait_ms = 0 if digest in self._good else self._strangers.wait_ms(address)
        if wait_ms:
            raise ApiError(
                Problem.RATE_LIMITED, "Too many invalid logins were sent.", retry_after_ms=wait_ms
            )
        async with self._lookups:
            session = await self.repository.find_session(secret, now, idle=self.idle)
        if session is None:
            self._strangers.failed(address)
            return None
        self._good[digest] = None
        self._good.move_to_end(digest)
        while len(self._good) > MAX_GOOD:
            self._good.popitem(last=False)
        return session

    def is_https(self, request: Request) -> bool:
        """True where people reach this gateway over TLS."""
        url = str(request.url) if self.url is None else self.url
        return url.startswith("https://")

    def cookie_name(self, request: Request) -> str:
        """Return the name of the login's cookie; browsers take `__Host-` over TLS only."""
        return "__Host-tiergate" if self.is_https(request) else "tiergate-login"

    async def log_in(
        self,
        request: Request,
        response: Response,
        user: UserRecord,
        by: Actor,
        *,
        before_s: float = 0.0,
    ) -> None:
        """Begin a login of `user` and give its cookie to `response`; one that is there ends.

        `before_s`: so long ago the user has proved who it is.
        """
        now = utc_now()
        name = self.cookie_name(request)
        old = request.cookies.get(name)
        if old:
            await self.repository.end_session(old, now, by=by)
        log_out_of_token(self, request, response)
        secret = secrets.token_urlsafe(32)
        await self.repository.create_session(
            user.id,
            secret,
            now,
            expires_at=now + self.lifetime,
            by=by,
            authenticated_at=now - timedelta(seconds=before_s),
        )
        response.set_cookie(
            name,
            secret,
            max_age=int(self.lifetime.total_seconds()),
            path="/",
            secure=self.is_https(request),
            httponly=True,
            samesite="strict",
        )

    async def log_out(self, request: Request, response: Response, by: Actor) -> None:
        """End the login of `request`, if there is one."""
        name = self.cookie_name(request)
        secret = request.cookies.get(name)
        if secret:
            await self.repository.end_session(secret, utc_now(), by=by)
        response.delete_cookie(
            name, path="/", secure=self.is_https(request), httponly=True, samesite="strict"
        )
        log_out_of_token(self, request, response)
