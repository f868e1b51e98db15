"""Which role each admin route needs, in one table; what is not in it is refused, whoever asks.

A route's least role opens it to all roles above. `tenant-viewer` as the least role means that the
route shows such a user what is its own tenant's, and nothing else. `is_fresh` asks for a login that
is recent: whoever finds an open browser must not change keys, tiers or users with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tenants.values import Role

BASE = "/admin/api"
V1 = f"{BASE}/v1"
_ORDER = tuple(Role)


@dataclass(frozen=True, slots=True)
class Access:
    """What a route asks of its caller; `role` None: nothing, as before a login."""

    role: Role | None
    is_fresh: bool = False


ANYONE = Access(None)
EVERY_USER = Access(Role.TENANT_VIEWER)
VIEWER = Access(Role.VIEWER)
OPERATOR = Access(Role.OPERATOR)
OPERATOR_FRESH = Access(Role.OPERATOR, is_fresh=True)
OWNER_FRESH = Access(Role.OWNER, is_fresh=True)

ACCESS: Mapping[tuple[str, str], Access] = MappingProxyType(
    {
        ("GET", f"{BASE}/engine"): VIEWER,
        ("GET", f"{BASE}/admission"): VIEWER,
        ("GET", f"{BASE}/requests"): VIEWER,
        ("GET", f"{BASE}/requests/{{request_id}}"): VIEWER,
        # logins
        ("POST", f"{BASE}/login"): ANYONE,
        ("POST", f"{BASE}/logout"): EVERY_USER,
        ("GET", f"{BASE}/session"): EVERY_USER,
        ("POST", f"{BASE}/password"): EVERY_USER,  # one's own, and the old one is asked for
        ("GET", f"{BASE}/oidc/login"): ANYONE,
        ("GET", f"{BASE}/oidc/callback"): ANYONE,
        # who is served, and who pays
        ("GET", f"{V1}/organisations"): EVERY_USER,
        ("POST", f"{V1}/organisations"): OPERATOR,
        ("GET", f"{V1}/organisations/{{organisation}}"): EVERY_USER,
        ("GET", f"{V1}/tenants"): EVERY_USER,
        ("POST", f"{V1}/tenants"): OPERATOR,
        ("GET", f"{V1}/tenants/{{tenant}}"): EVERY_USER,
        ("PATCH", f"{V1}/tenants/{{tenant}}"): OPERATOR,
        # keys
        ("GET", f"{V1}/keys"): EVERY_USER,
        ("GET", f"{V1}/keys/{{key}}"): EVERY_USER,
        ("GET", f"{V1}/tenants/{{tenant}}/keys"): EVERY_USER,
        ("POST", f"{V1}/tenants/{{tenant}}/keys"): OPERATOR_FRESH,
        ("PATCH", f"{V1}/keys/{{key}}"): OPERATOR_FRESH,
        ("POST", f"{V1}/keys/{{key}}/rotate"): OPERATOR_FRESH,
        # Closing one key only takes away, and a leak must not wait for a password.
        ("POST", f"{V1}/keys/{{key}}/revoke"): OPERATOR,
        ("GET", f"{V1}/tenants/{{tenant}}/revocation"): OPERATOR,
        ("POST", f"{V1}/tenants/{{tenant}}/revocation"): OPERATOR_FRESH,
        # what is promised, allowed and asked for it
        ("GET", f"{V1}/tiers"): EVERY_USER,
        ("POST", f"{V1}/tiers"): OPERATOR_FRESH,
        ("POST", f"{V1}/tiers/apply"): OPERATOR_FRESH,
        ("GET", f"{V1}/tiers/{{tier}}"): EVERY_USER,
        ("PATCH", f"{V1}/tiers/{{tier}}"): OPERATOR_FRESH,
        ("GET", f"{V1}/tiers/{{tier}}/versions"): EVERY_USER,
        ("GET", f"{V1}/prices"): EVERY_USER,
        ("GET", f"{V1}/limits"): EVERY_USER,
        ("GET", f"{V1}/limits/{{scope}}/{{target}}"): EVERY_USER,
        ("PATCH", f"{V1}/limits/{{scope}}/{{target}}"): OPERATOR,
        ("GET", f"{V1}/budgets/{{scope}}/{{target}}"): EVERY_USER,
        ("PATCH", f"{V1}/budgets/{{scope}}/{{target}}"): OPERATOR,
        # users
        ("GET", f"{V1}/users"): VIEWER,
        ("POST", f"{V1}/users"): OWNER_FRESH,
        ("GET", f"{V1}/users/{{user}}"): VIEWER,
        ("PATCH", f"{V1}/users/{{user}}"): OWNER_FRESH,
        ("POST", f"{V1}/users/{{user}}/password"): OWNER_FRESH,
        # what was kept of it
        ("GET", f"{BASE}/slo"): EVERY_USER,
        ("GET", f"{V1}/slo"): EVERY_USER,
        ("GET", f"{V1}/slo/report"): EVERY_USER,
        # what was done and used
        ("GET", f"{V1}/audit"): EVERY_USER,
        ("GET", f"{V1}/audit/export"): VIEWER,
        ("GET", f"{V1}/usage/export"): EVERY_USER,
    }
)


def may(role: Role, least: Role) -> bool:
    """True where `role` is `least` or above it."""
    return _ORDER.index(role) <= _ORDER.index(least)
