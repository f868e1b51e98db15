"""What the settings say of OpenID Connect, checked: one issuer, one client, who gets which role."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from gateway.admin.roles import BASE
from gateway.settings import Settings, SettingsError
from tenants.values import Role

CALLBACK = f"{BASE}/oidc/callback"


@dataclass(frozen=True, slots=True)
class Grant:
    """The role that a value of the claim stands for; `tenant` goes with tenant-viewer."""

    value: str
    role: Role
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """The one provider whose users may log in; without `grants` only users known by subject."""

    issuer: str
    client_id: str
    client_secret: str | None = field(repr=False)
    redirect_uri: str
    scopes: str
    role_claim: str
    grants: tuple[Grant, ...]

    def granted(self, claims: Mapping[str, Any]) -> Grant | None:
        """Return the most powerful grant that the claim holds, None where it holds none."""
        held = _values(claims, self.role_claim)
        found = [grant for grant in self.grants if grant.value in held]
        return min(found, key=lambda grant: list(Role).index(grant.role), default=None)


def oidc_config(settings: Settings) -> OidcConfig | None:
    """Return the provider, None where none is set; raises SettingsError, one line."""
    issuer = settings.oidc_issuer
    if issuer is None:
        return None
    if not is_safe_url(issuer) or urlsplit(issuer).query or urlsplit(issuer).fragment:
        raise SettingsError(
            "TIERGATE_OIDC_ISSUER: must be an https URL (http only on a loopback address)"
        )
    if not settings.oidc_client_id:
        raise SettingsError("TIERGATE_OIDC_CLIENT_ID: is needed with an issuer")
    if settings.admin_url is None:
        raise SettingsError(
            "TIERGATE_ADMIN_URL: is needed with an issuer, which sends people back there"
        )
    if "openid" not in settings.oidc_scopes.split():
        raise SettingsError("TIERGATE_OIDC_SCOPES: must hold openid")
    secret = settings.oidc_client_secret
    return OidcConfig(
        issuer=issuer,
        client_id=settings.oidc_client_id,
        client_secret=None if secret is None else secret.get_secret_value(),
        redirect_uri=settings.admin_url + CALLBACK,
        scopes=settings.oidc_scopes,
        role_claim=settings.oidc_role_claim,
        grants=tuple(
            _grant(text.strip()) for text in settings.oidc_roles.split(",") if text.strip()
        ),
    )


def require_oidc(settings: Settings) -> None:
    """Raise SettingsError, one line, unless a provider that is set can be used as it is set."""
    if oidc_config(settings) is not None and find_spec("authlib") is None:
        raise SettingsError("TIERGATE_OIDC_ISSUER: needs packages: pip install 'tiergate[oidc]'")


def is_safe_url(url: Any) -> bool:
    """True for https, and for http on this machine: nobody on the way may forge keys."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    if parts.scheme != "http":
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _grant(text: str) -> Grant:
    value, equals, wanted = text.strip().rpartition("=")
    name, colon, tenant = wanted.partition(":")
    try:
        role = Role(name)
    except ValueError:
        role = None
    if not equals or not value or role is None:
        raise SettingsError(
            "TIERGATE_OIDC_ROLES: is written like admins=owner,staff=viewer, with the roles "
            f"{', '.join(Role)}"
        )
    if (role is Role.TENANT_VIEWER) != bool(colon and tenant):
        raise SettingsError(
            "TIERGATE_OIDC_ROLES: tenant-viewer, and no other role, has a tenant: "
            "VALUE=tenant-viewer:TENANT"
        )
    return Grant(value, role, tenant or None)


def _values(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return what a claim holds: a text or a list of them, by its name or by a path with dots."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return frozenset({found})
    if isinstance(found, list):
        return frozenset(value for value in found if isinstance(value, str))
    return frozenset()
