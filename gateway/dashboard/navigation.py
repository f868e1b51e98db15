"""The pages that the navigation names, in its order; who may see which is in `roles`."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.admin.roles import may
from gateway.dashboard.roles import PAGES
from tenants.values import Role

HOME = "/admin"


@dataclass(frozen=True, slots=True)
class Entry:
    """One page: `key` goes there after `g`; `only_all` pages show everybody's numbers."""

    path: str
    title: str
    icon: str
    key: str
    only_all: bool = False


ENTRIES = (
    Entry(HOME, "Overview", "pulse", "o", only_all=True),
    Entry("/admin/requests", "Requests", "list", "r"),
    Entry("/admin/slo", "SLO", "target", "s"),
    Entry("/admin/tenants", "Tenants", "people", "t"),
    Entry("/admin/keys", "Keys", "key", "k"),
    Entry("/admin/tiers", "Tiers", "layers", "i"),
    Entry("/admin/usage", "Usage", "chart", "u"),
    Entry("/admin/engine", "Engine", "engine", "e"),
    Entry("/admin/audit", "Audit", "book", "a"),
    Entry("/admin/settings", "Settings", "gear", ","),
)


def entries_for(role: Role) -> list[Entry]:
    """Return what this role may open, in order."""
    found = []
    for entry in ENTRIES:
        access = PAGES.get(("GET", entry.path))
        if access is None or access.role is None or not may(role, access.role):
            continue
        if entry.only_all and role is Role.TENANT_VIEWER:
            continue
        found.append(entry)
    return found


def active(path: str) -> str:
    """Return the entry that a path belongs to, by its own path."""
    inside = [e.path for e in ENTRIES if path == e.path or path.startswith(e.path + "/")]
    return max(inside, key=len, default=HOME)
