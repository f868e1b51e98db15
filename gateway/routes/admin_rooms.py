"""All rooms of the admin API and its pages in one list; what they do and who may, others know."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.dashboard.rooms import page_routers
from gateway.routes import (
    admin,
    admin_keys,
    admin_limits,
    admin_login,
    admin_oidc,
    admin_records,
    admin_slo,
    admin_tenants,
    admin_tiers,
    admin_users,
    requests,
)


def admin_routers() -> list[APIRouter]:
    """Return the routers of all admin routes, pages among them."""
    rooms = (admin, requests, admin_login, admin_tenants, admin_keys, admin_tiers)
    more = (admin_limits, admin_users, admin_records, admin_slo, admin_oidc)
    return [room.router for room in (*rooms, *more)] + page_routers()
