"""What was done and what was used: the audit page by page, and both as files; nothing is changed.

A file of usage is what `tiergate usage export` writes, so `tiergate usage verify` can check it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.documented import ERRORS, documented
from gateway.admin.export import ExportResponse
from gateway.admin.pages import PAGE_QUERY, bad_cursor, page, shown
from gateway.admin.reading import moment_of, query_of
from gateway.admin.roles import V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import bad_value
from gateway.routes.admin_tenants import visible_tenant
from tenants.database import Database
from tenants.repository import Change, Repository
from tenants.usage_export import WRITERS, Span, export_usage
from tenants.values import AuditRecord

router = APIRouter(route_class=AdminRoute, responses=ERRORS)

AUDIT_FILTERS = ("tenant", "actor", "action", "since", "until")
SPAN = ("tenant", "since", "until")
LONGEST = timedelta(days=400)
MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}


@router.get(f"{V1}/audit", openapi_extra=documented(None, *PAGE_QUERY, *AUDIT_FILTERS))
async def list_audit(request: Request) -> Response:
    """List who changed what, the latest first; filters hold together."""
    repository = desk_of(request).repository
    query, mine = query_of(request, *PAGE_QUERY, *AUDIT_FILTERS), caller_of(request).tenant_id
    tenant = await _tenant_of(request, query)
    since, until = moment_of(query, "since"), moment_of(query, "until")

    async def read(cursor: list[str], limit: int) -> list[AuditRecord]:
        found = await repository.list_audit(
            tenant=tenant,
            actor=query.get("actor"),
            action=query.get("action"),
            since=since,
            until=until,
            before=_number(cursor),
            limit=limit,
        )
        # From where the operators work is not the tenant's business.
        return [replace(entry, address="") for entry in found] if mine is not None else found

    return await page(query, read, lambda record: [str(record.number)])


def _number(cursor: list[str]) -> int | None:
    if not cursor:
        return None
    if not (cursor[0].isascii() and cursor[0].isdigit() and len(cursor[0]) <= 18):
        raise bad_cursor()
    return int(cursor[0])


@router.get(
    f"{V1}/audit/export",
    openapi_extra=documented(None, *SPAN),
    responses={200: {"description": "JSON lines", "content": {"application/jsonl": {}}}},
)
async def export_audit(request: Request) -> Response:
    """Send the audit as JSON lines, the oldest first."""
    desk = desk_of(request)
    query = query_of(request, *SPAN)
    tenant = await _tenant_of(request, query)
    since, until = moment_of(query, "since"), moment_of(query, "until")
    await _note(request, "audit.export", tenant, query)
    lines = _audit_lines(desk.repository, {"tenant": tenant, "since": since, "until": until})
    return ExportResponse(lines, desk.exports, MEDIA_TYPES["jsonl"], "audit.jsonl")


async def _audit_lines(repository: Repository, span: dict[str, Any]) -> AsyncGenerator[str]:
    async for record in repository.read_audit(**span):
        yield orjson.dumps(shown(record)).decode() + "\n"


@router.get(
    f"{V1}/usage/export",
    openapi_extra=documented(None, *SPAN, "format"),
    responses={200: {"description": "lines", "content": {"application/jsonl": {}, "text/csv": {}}}},
)
async def export(request: Request) -> Response:
    """Send what was used as CSV or JSON lines: a line for each request, then the sums."""
    desk = desk_of(request)
    query = query_of(request, *SPAN, "format")
    form = query.get("format", "csv")
    if form not in WRITERS:
        raise bad_value("format", f"'format' must be one of: {', '.join(WRITERS)}.")
    tenant = await _tenant_of(request, query)
    until = moment_of(query, "until") or utc_now()
    since = moment_of(query, "since") or until - LONGEST
    if not timedelta(0) <= until - since <= LONGEST:
        raise bad_value("since", f"'since' must be at most {LONGEST.days} days before 'until'.")
    await _note(request, "usage.export", tenant, query)
    lines = _usage_lines(desk.ledger.database, Span(until, since, tenant), form)
    return ExportResponse(lines, desk.exports, MEDIA_TYPES[form], f"usage.{form}")


async def _usage_lines(database: Database, span: Span, form: str) -> AsyncGenerator[str]:
    header, as_text = WRITERS[form]
    yield header()
    async for line in export_usage(database, span):
        yield as_text(line)


async def _tenant_of(request: Request, query: dict[str, str]) -> str | None:
    """Return the id of the tenant asked for; a tenant's viewer never gets more than its own."""
    asked, mine = query.get("tenant"), caller_of(request).tenant_id
    if asked is None:
        return mine
    return (await visible_tenant(request, asked)).id


async def _note(request: Request, action: str, tenant: str | None, query: dict[str, str]) -> None:
    """Write down that someone took all of this away, before the first line of it leaves."""
    change = Change(action, "export", action, after=dict(query), tenant_id=tenant)
    await desk_of(request).repository.write_event(caller_of(request).actor, utc_now(), change)
