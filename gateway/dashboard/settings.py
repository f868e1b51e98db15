"""Page of what this gateway runs with, secrets masked: nothing can be changed here.

Settings come from flags and the environment, so a page could only pretend to change them.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Request
from pydantic import SecretStr
from starlette.responses import Response

from gateway.admin.reading import query_of
from gateway.admin.route import desk_of
from gateway.dashboard.frame import page
from gateway.dashboard.route import PageRoute
from gateway.readiness import all_checks
from gateway.services import Services
from gateway.settings import ENV_PREFIX, Settings
from tenants.database import display_name, parse_url

router = APIRouter(route_class=PageRoute, include_in_schema=False)

PACKAGES = (
    "tiergate",
    "torch",
    "transformers",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "redis",
    "opentelemetry-sdk",
)
MASK = "set, not shown"
KINDS = {"ok": "good", "degraded": "warn", "failed": "bad"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it may be shown."""

    name: str
    value: str
    is_default: bool
    about: str

    @property
    def variable(self) -> str:
        """What it is called in the environment."""
        return f"{ENV_PREFIX}{self.name.upper()}"


@router.get("/admin/settings")
async def show_settings(request: Request) -> Response:
    """Show readiness, versions, and every setting as it is in force."""
    query_of(request)
    services: Services = request.app.state.services
    ledger = desk_of(request).ledger
    return page(
        request,
        "settings/settings.html",
        checks=[(check, KINDS[check.state.value]) for check in all_checks(services)],
        settings=shown_settings(services.settings),
        versions=versions(),
        database=ledger.database,
        revision=ledger.revision,
        info=services.host.engine.info,
        place=services.peers.place,
    )


def shown_settings(settings: Settings) -> list[Setting]:
    """Return all settings in their order; secrets, and passwords in addresses, are masked."""
    return [
        Setting(
            name,
            _shown(name, getattr(settings, name)),
            name not in settings.model_fields_set,
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, SecretStr):
        return MASK
    if name == "database_url":
        return display_name(parse_url(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if str(value) else "empty"


def versions() -> list[tuple[str, str]]:
    """Return what runs here; a package that is not installed is left out."""
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
