"""Which role each management page needs: what the API asks of the same deed, by its very row.

So a page can never allow what the API refuses. The pages of forms ask what sending them asks: who
needs a recent login is told before anything is typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.admin.roles import ACCESS, BASE, V1, VIEWER, Access

_TENANT = f"{V1}/tenants/{{tenant}}"
_KEY = f"{V1}/keys/{{key}}"
_TIER = f"{V1}/tiers/{{tier}}"
_USER = f"{V1}/users/{{user}}"
# Page (method and path below /admin) -> the row of the API that it is one with.
_SAME: Mapping[tuple[str, str], tuple[str, str]] = {
    # tenants and who pays
    ("GET", "/tenants"): ("GET", f"{V1}/tenants"),
    ("GET", "/tenants/new"): ("POST", f"{V1}/tenants"),
    ("POST", "/tenants/new"): ("POST", f"{V1}/tenants"),
    ("GET", "/tenants/{tenant}"): ("GET", _TENANT),
    ("GET", "/tenants/{tenant}/change"): ("PATCH", _TENANT),
    ("POST", "/tenants/{tenant}/change"): ("PATCH", _TENANT),
    ("GET", "/tenants/{tenant}/state"): ("PATCH", _TENANT),
    ("POST", "/tenants/{tenant}/state"): ("PATCH", _TENANT),
    ("GET", "/organisations"): ("GET", f"{V1}/organisations"),
    ("GET", "/organisations/new"): ("POST", f"{V1}/organisations"),
    ("POST", "/organisations/new"): ("POST", f"{V1}/organisations"),
    ("GET", "/organisations/{organisation}"): ("GET", f"{V1}/organisations/{{organisation}}"),
    # limits and budgets
    ("GET", "/limits/{scope}/{target}"): ("GET", f"{V1}/limits/{{scope}}/{{target}}"),
    ("POST", "/limits/{scope}/{target}"): ("PATCH", f"{V1}/limits/{{scope}}/{{target}}"),
    ("POST", "/budgets/{scope}/{target}"): ("PATCH", f"{V1}/budgets/{{scope}}/{{target}}"),
    # keys
    ("GET", "/keys"): ("GET", f"{V1}/keys"),
    ("GET", "/tenants/{tenant}/keys/new"): ("POST", f"{_TENANT}/keys"),
    ("POST", "/tenants/{tenant}/keys/new"): ("POST", f"{_TENANT}/keys"),
    ("GET", "/keys/{key}"): ("GET", _KEY),
    ("GET", "/keys/{key}/change"): ("PATCH", _KEY),
    ("POST", "/keys/{key}/change"): ("PATCH", _KEY),
    ("GET", "/keys/{key}/rotate"): ("POST", f"{_KEY}/rotate"),
    ("POST", "/keys/{key}/rotate"): ("POST", f"{_KEY}/rotate"),
    ("GET", "/keys/{key}/revoke"): ("POST", f"{_KEY}/revoke"),
    ("POST", "/keys/{key}/revoke"): ("POST", f"{_KEY}/revoke"),
    ("GET", "/tenants/{tenant}/revocation"): ("POST", f"{_TENANT}/revocation"),
    ("POST", "/tenants/{tenant}/revocation"): ("POST", f"{_TENANT}/revocation"),
    # tiers
    ("GET", "/tiers"): ("GET", f"{V1}/tiers"),
    ("GET", "/tiers/new"): ("POST", f"{V1}/tiers"),
    ("POST", "/tiers/new"): ("POST", f"{V1}/tiers"),
    ("GET", "/tiers/{tier}"): ("GET", _TIER),
    ("GET", "/tiers/{tier}/change"): ("PATCH", _TIER),
    ("POST", "/tiers/{tier}/change"): ("PATCH", _TIER),
    # what was used and done
    ("GET", "/slo"): ("GET", f"{V1}/slo"),
    ("GET", "/usage"): ("GET", f"{V1}/usage/export"),
    ("GET", "/audit"): ("GET", f"{V1}/audit"),
    # users
    ("GET", "/users"): ("GET", f"{V1}/users"),
    ("GET", "/users/new"): ("POST", f"{V1}/users"),
    ("POST", "/users/new"): ("POST", f"{V1}/users"),
    ("GET", "/users/{user}"): ("GET", _USER),
    ("GET", "/users/{user}/change"): ("PATCH", _USER),
    ("POST", "/users/{user}/change"): ("PATCH", _USER),
    ("GET", "/users/{user}/state"): ("PATCH", _USER),
    ("POST", "/users/{user}/state"): ("PATCH", _USER),
    ("GET", "/users/{user}/password"): ("POST", f"{_USER}/password"),
    ("POST", "/users/{user}/password"): ("POST", f"{_USER}/password"),
    ("GET", "/password"): ("POST", f"{BASE}/password"),
    ("POST", "/password"): ("POST", f"{BASE}/password"),
}

MANAGEMENT: Mapping[tuple[str, str], Access] = MappingProxyType(
    {(method, f"/admin{path}"): ACCESS[row] for (method, path), row in _SAME.items()}
    | {
        # What becomes of others' requests is nothing for a tenant's viewer.
        ("GET", "/admin/tiers/{tier}/preview"): VIEWER,
        ("GET", "/admin/settings"): VIEWER,
    }
)
