"""Which role each admin page needs, in one table; a page that is not in it is refused to everybody.

The API's table is `gateway.admin.roles`. A page may need a recent login (`*_FRESH`): whoever has
none is asked for the password and comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.admin.roles import ANYONE, EVERY_USER, VIEWER, Access
from gateway.dashboard.management_roles import MANAGEMENT

PAGES: Mapping[tuple[str, str], Access] = MappingProxyType(
    {
        # the frame
        ("GET", "/admin/login"): ANYONE,
        ("POST", "/admin/login"): ANYONE,
        ("POST", "/admin/logout"): EVERY_USER,
        ("POST", "/admin/theme"): EVERY_USER,
        ("GET", "/admin/static/{name}"): ANYONE,
        # what goes on
        ("GET", "/admin"): EVERY_USER,
        ("GET", "/admin/live/{page}"): VIEWER,
        ("GET", "/admin/requests"): EVERY_USER,
        ("GET", "/admin/requests/{request_id}"): EVERY_USER,
        ("GET", "/admin/engine"): VIEWER,
    }
    | dict(MANAGEMENT)
)
