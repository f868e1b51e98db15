"""Speaks OpenID Connect with the one provider of the settings; who its users are here is elsewhere.

Authorization code with PKCE (RFC 7636), discovery, and ID tokens checked as OpenID Connect Core
1.0, section 3.1.3.7, says: signature by a key of the provider with an asymmetric algorithm, issuer,
audience, expiry, nonce. Only URLs of the settings, and those that the provider's own discovery
document names, are ever fetched; all of them over https, or on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuthError
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from engine.core.clock import NS_PER_S, Clock, utc_now
from gateway.admin.oidc_settings import OidcConfig, is_safe_url

TIMEOUT_S = 10.0
KEPT_NS = 3600 * NS_PER_S
RETRY_NS = 60 * NS_PER_S  # an unknown key makes us look again, but not for everybody who asks
PAUSE_NS = 2 * NS_PER_S  # after a failure
LEEWAY_S = 60
MOST_BYTES = 512 * 1024
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
KEY_TYPES = ("RSA", "EC")


class OidcRefused(Exception):
    """The provider's answer cannot be taken; the message names the check, never a token."""


class OidcAway(Exception):
    """The provider does not answer, or not as a provider; trying again may help."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What the discovery document says, as far as it is used."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    says_issuer: bool  # in its answer to the browser (RFC 9207)


class OidcClient:
    """One client of one provider; used from one event loop."""

    def __init__(self, config: OidcConfig, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._provider: tuple[int, Provider] | None = None
        self._fetching = asyncio.Lock()
        self._failed_ns: int | None = None
        self._keys: tuple[int, KeySet] | None = None

    async def authorization_url(self, *, state: str, nonce: str, verifier: str, again: bool) -> str:
        """Return where to send the browser; `again`: the provider shall ask for a new proof."""
        provider = await self.provider()
        more = {"prompt": "login", "max_age": "0"} if again else {}
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                provider.authorization_endpoint,
                state=state,
                nonce=nonce,
                code_verifier=verifier,
                **more,
            )
        return str(url)

    async def claims(
        self, *, code: str, verifier: str, nonce: str, issuer: str | None
    ) -> dict[str, Any]:
        """Return the checked claims of whoever got this code; raises OidcRefused, OidcAway."""
        provider = await self.provider()
        if issuer != self.config.issuer and (issuer is not None or provider.says_issuer):
            raise OidcRefused("the answer is another issuer's")
        try:
            async with self._client() as client:
                token = await client.fetch_token(
                    provider.token_endpoint, code=code, code_verifier=verifier
                )
        except OAuthError as error:
            raise OidcRefused(f"the token endpoint refuses: {error.error!s:.40}") from None
        except (httpx2.HTTPError, ValueError) as error:
            raise OidcAway(f"the token endpoint: {type(error).__name__}") from None
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise OidcRefused("there is no ID token")
        return await self._checked(id_token, nonce, token.get("access_token"))

    async def provider(self) -> Provider:
        """Return the provider's own description, fetched at most once an hour."""
        async with self._fetching:  # one at a time: strangers may ask for it as often as they like
            if self._provider is None or self._is_old(self._provider[0], KEPT_NS):
                if self._failed_ns is not None and not self._is_old(self._failed_ns, PAUSE_NS):
                    raise OidcAway("it did not answer a moment ago")
                self._failed_ns = self._clock.now_ns()
                url = self.config.issuer.rstrip("/") + "/.well-known/openid-configuration"
                described = self._described(await _fetch(url))
                self._provider, self._failed_ns = (self._clock.now_ns(), described), None
            return self._provider[1]

    def _described(self, said: Mapping[str, Any]) -> Provider:
        if said.get("issuer") != self.config.issuer:
            raise OidcAway("the discovery document is another issuer's")
        names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        if not all(is_safe_url(said.get(name)) for name in names):
            raise OidcAway("the discovery document lacks an endpoint, or one is not https")
        return Provider(
            **{name: str(said[name]) for name in names},
            says_issuer=said.get("authorization_response_iss_parameter_supported") is True,
        )

    async def _checked(self, id_token: str, nonce: str, access_token: Any) -> dict[str, Any]:
        try:
            token = await self._verified(id_token)
            claims = CodeIDToken(
                token.claims,
                token.header,
                {
                    "iss": {"essential": True, "value": self.config.issuer},
                    "aud": {"essential": True, "value": self.config.client_id},
                },
                {
                    "nonce": nonce,
                    "client_id": self.config.client_id,
                    "access_token": access_token,
                },
            )
            claims.validate(now=int(utc_now().timestamp()), leeway=LEEWAY_S)
        except JoseError as error:
            raise OidcRefused(f"the ID token: {_said(error)}") from None
        # Of malformed tokens the libraries throw what Python does.
        except (ValueError, TypeError, KeyError) as error:
            raise OidcRefused(f"the ID token: {type(error).__name__}") from None
        return dict(claims)

    async def _verified(self, id_token: str) -> jwt.Token:
        try:
            return jwt.decode(id_token, await self._key_set(KEPT_NS), algorithms=list(ALGORITHMS))
        except (JoseError, ValueError):
            # Providers change their keys: perhaps we know only the old ones.
            if self._keys is None or not self._is_old(self._keys[0], RETRY_NS):
                raise
        return jwt.decode(id_token, await self._key_set(RETRY_NS), algorithms=list(ALGORITHMS))

    async def _key_set(self, kept_ns: int) -> KeySet:
        if self._keys is None or self._is_old(self._keys[0], kept_ns):
            said = await _fetch((await self.provider()).jwks_uri)
            keys = said.get("keys")
            usable = [
                key
                for key in (keys if isinstance(keys, list) else [])
                if isinstance(key, dict)
                and key.get("kty") in KEY_TYPES
                and key.get("use", "sig") == "sig"
            ]
            try:
                self._keys = self._clock.now_ns(), KeySet.import_key_set({"keys": usable})
            except (JoseError, ValueError, KeyError) as error:
                raise OidcAway(f"the provider's keys: {type(error).__name__}") from None
        return self._keys[1]

    def _is_old(self, at_ns: int, kept_ns: int) -> bool:
        return self._clock.now_ns() - at_ns >= kept_ns

    def _client(self) -> AsyncOAuth2Client:
        config = self.config
        return AsyncOAuth2Client(
            config.client_id,
            config.client_secret,
            token_endpoint_auth_method="none" if config.client_secret is None else None,
            scope=config.scopes,
            redirect_uri=config.redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
            follow_redirects=False,
        )


def _said(error: JoseError) -> str:
    """Return which check failed; for a claim its name, never its value."""
    claim = getattr(error, "claim", None)
    return error.error if claim is None else f"{error.error} {claim}"


async def _fetch(url: str) -> dict[str, Any]:
    """Return a JSON object from the provider, bounded in time and size; raises OidcAway."""
    body = bytearray()
    try:
        async with (
            httpx2.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as response,
        ):
            if response.status_code != 200:
                raise OidcAway(f"the provider answers {response.status_code}")
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MOST_BYTES:
                    raise OidcAway("the provider's answer is too long")
        said = _object(bytes(body))
    except httpx2.HTTPError as error:
        raise OidcAway(type(error).__name__) from None
    return said


def _object(body: bytes) -> dict[str, Any]:
    """Return a body as a JSON object; raises OidcAway."""
    try:
        said = orjson.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise OidcAway("the provider's answer is no JSON object")
    return said
