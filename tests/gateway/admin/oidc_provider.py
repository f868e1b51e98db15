"""A small OpenID Connect provider of the tests' own: real keys, real codes, real signed tokens.

It signs in whoever is set as its user, and can be told to make each of the mistakes that a client
must not fall for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

import uvicorn
from door_kit import eventually
from joserfc import jwt
from joserfc.jwk import RSAKey

from engine.core.clock import utc_now
from gateway.server import listen

CLIENT, SECRET = "tiergate-client", "the client's secret"


@dataclass
class Provider:
    """What the provider is and does; `wrong` is changed by tests."""

    issuer: str = ""
    user: dict[str, Any] = field(default_factory=lambda: {"sub": "sub-1", "groups": ["staff"]})
    wrong: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, auto_kid=True))
    asked: list[str] = field(default_factory=list)
    authorizations: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request (ASGI)."""
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.asked.append(scope["path"])
        status, answer, more = self._answer(scope["path"], query, headers, body)
        content = b"" if answer is None else json.dumps(answer).encode()
        sent = [(b"content-type", b"application/json"), *more]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": content})

    def _answer(
        self, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Any, list[tuple[bytes, bytes]]]:
        if self.wrong.get("down") == path:
            return 500, None, []
        if path == "/.well-known/openid-configuration":
            return 200, self._description(), []
        if path == "/jwks":
            return 200, {"keys": [self.key.as_dict(private=False, use="sig")]}, []
        if path == "/authorize":
            return 302, None, [(b"location", self._authorize(query).encode())]
        if path == "/token":
            form = {k: v[0] for k, v in parse_qs(body.decode()).items()}
            return self._token(form, headers)
        return 404, None, []

    def _description(self) -> dict[str, Any]:
        return {
            "issuer": self.wrong.get("discovered_issuer", self.issuer),
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": self.wrong.get("token_endpoint", f"{self.issuer}/token"),
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def _authorize(self, query: dict[str, str]) -> str:
        self.authorizations.append(query)
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert query["client_id"] == CLIENT
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.wrong.get("iss", self.issuer)}
        if "error" in self.wrong:
            back = {"error": self.wrong["error"], "state": query["state"], "iss": self.issuer}
        return f"{query['redirect_uri']}?{urlencode(back)}"

    def _token(
        self, form: dict[str, str], headers: dict[str, str]
    ) -> tuple[int, Any, list[tuple[bytes, bytes]]]:
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if headers.get("authorization") != f"Basic {basic}":
            return 401, {"error": "invalid_client"}, []
        query = self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if query is None or query["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}, []
        token = {"access_token": "access", "token_type": "Bearer", "expires_in": 60}
        return 200, token | {"id_token": self.id_token(query["nonce"])}, []

    def id_token(self, nonce: str) -> str:
        """Return the user's token, with what is to be wrong about it."""
        now = int(utc_now().timestamp())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": nonce,
            **self.user,
            **self.wrong.get("claims", {}),
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        how = self.wrong.get("signed", "RS256")
        if how == "none":
            return ".".join(_coded(json.dumps(p).encode()) for p in ({"alg": "none"}, claims)) + "."
        if how == "HS256":  # with the public key as the secret: the classic confusion
            parts = [{"alg": "HS256", "kid": self.key.kid}, claims]
            head = ".".join(_coded(json.dumps(part).encode()) for part in parts)
            mac = hmac.digest(self.key.as_pem(private=False), head.encode(), "sha256")
            return f"{head}.{_coded(mac)}"
        key = RSAKey.generate_key(2048, {"kid": self.key.kid}) if how == "other" else self.key
        text = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, key)
        return text[:-8] + "AAAAAAAA" if how == "broken" else text


def _coded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


@asynccontextmanager
async def open_provider() -> AsyncIterator[Provider]:
    """Run a provider on a free port for the length of a block."""
    provider = Provider()
    bound = listen("127.0.0.1", 0)
    provider.issuer = f"http://127.0.0.1:{bound.getsockname()[1]}"
    config = uvicorn.Config(provider, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve(sockets=[bound]))
    await eventually(lambda: server.started, "the provider serves")
    try:
        yield provider
    finally:
        server.should_exit = True
        await serving
