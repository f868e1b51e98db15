"""All admin pages in one list; what they show and who may see it is not known here."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.dashboard import (
    audit,
    engine,
    keys,
    limits,
    live,
    login,
    overview,
    requests,
    settings,
    slo,
    static,
    story,
    tenants,
    tiers,
    usage,
    users,
)


def page_routers() -> list[APIRouter]:
    """Return the routers of all pages."""
    return [
        login.router,
        static.router,
        overview.router,
        live.router,
        requests.router,
        story.router,
        engine.router,
        tenants.router,
        keys.router,
        limits.router,
        tiers.router,
        slo.router,
        usage.router,
        audit.router,
        settings.router,
        users.router,
    ]
