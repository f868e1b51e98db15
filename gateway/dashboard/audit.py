"""Page of the audit: who changed what, from where, before and after; nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.admin.reading import moment_of, query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.asked import asked_tenant
from gateway.dashboard.forms import Form
from gateway.dashboard.frame import page
from gateway.dashboard.route import PageRoute
from gateway.errors import bad_value
from tenants.values import AuditRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ON_PAGE = 50
FILTERS = ("tenant", "actor", "action", "since", "until")
MOST_TEXT = 500
# Suggestions for the filter; others are found as well.
ACTIONS = (
    "audit.export",
    "budgets.set",
    "key.change",
    "key.create",
    "key.revoke",
    "key.rotate",
    "limits.set",
    "organisation.create",
    "session.create",
    "session.end",
    "session.refuse",
    "slo.export",
    "tenant.change",
    "tenant.create",
    "tenant.disable",
    "tenant.enable",
    "tier.change",
    "tier.create",
    "usage.export",
    "user.create",
    "user.disable",
    "user.enable",
    "user.password",
    "user.role",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `differences` are (field, before, after) as text, None for what was not there."""

    record: AuditRecord
    tenant: str
    differences: list[tuple[str, str | None, str | None]]


@router.get("/admin/audit")
async def list_audit(request: Request) -> Response:
    """List entries, the latest first; filters hold together."""
    query = query_of(request, *FILTERS, "before")
    repository, mine = desk_of(request).repository, caller_of(request).tenant_id
    asked = {name: query[name].strip() for name in FILTERS if query.get(name, "").strip()}
    owner = await asked_tenant(request, asked)
    if isinstance(owner, Response):
        return owner
    found, onward = await repository.search_audit(
        tenant=None if owner is None else owner.id,
        actor=asked.get("actor"),
        action=asked.get("action"),
        since=moment_of(asked, "since"),
        until=moment_of(asked, "until"),
        before=_number(query.get("before", "")),
        limit=ON_PAGE,
    )
    if mine is not None:  # from where the operators work is not the tenant's business
        found = [replace(record, address="") for record in found]
    tenants = await repository.tenants_by_id({r.tenant_id for r in found if r.tenant_id})
    names = {tenant_id: tenant.name for tenant_id, tenant in tenants.items()}
    return page(
        request,
        "audit/audit.html",
        entries=[
            Entry(record, names.get(record.tenant_id or "", ""), differences(record))
            for record in found
        ],
        form=Form(asked),
        query=asked,
        onward=onward,
        is_later=bool(query.get("before")),
        actions=ACTIONS,
    )


def _number(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise bad_value("before", "'before' must be the number of an entry.")
    return int(text)


def differences(record: AuditRecord) -> list[tuple[str, str | None, str | None]]:
    """Return the fields that differ between before and after, in their order."""
    before, after = record.before or {}, record.after or {}
    return [
        (name, _text(before, name), _text(after, name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _text(values: dict[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
