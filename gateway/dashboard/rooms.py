"""All admin pages in one list; what they show and who may see it is not known here."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.dashboard import login, overview, static


def page_routers() -> list[APIRouter]:
    """Return the routers of all pages."""
    return [
        login.router,
        static.router,
        overview.router,
    ]
