"""`/admin/requests/{id}`: one request's life, drawn, told and as a table; of old ones its record.

A tenant's viewer sees its own requests, and of those what the door knows: the engine's part names
other tenants' requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import NS_PER_MS, utc_now
from gateway.admin.reading import name, query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.asked import NOT_FOUND
from gateway.dashboard.forms import Form
from gateway.dashboard.frame import page
from gateway.dashboard.requests import tenant_names
from gateway.dashboard.route import PageRoute
from gateway.dashboard.timeline import BARS, Bar, Lane, Mark, Timeline, of_lanes, timeline
from gateway.request_stories import find_story
from gateway.services import Services
from tenants.errors import LedgerError
from tenants.slo import SloRecord
from tenants.slo_store import find_record

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/admin/requests/{request_id}")
async def one_request(request: Request, request_id: str) -> Response:
    """Show one request, by the id of its answer or the `x-request-id` it had."""
    query_of(request)
    services: Services = request.app.state.services
    mine = caller_of(request).tenant_id
    story = await find_story(services, name(request_id))
    record = await _record(services, request_id if story is None else str(story["id"]))
    tenant_id = _tenant_id(story, record)
    if (story is None and record is None) or (mine is not None and tenant_id != mine):
        form = Form({"id": request_id})
        form.wrong("id", "There is no request of that id.")
        return page(request, "unknown_request.html", status=NOT_FOUND, form=form)
    if mine is not None and story is not None:
        story = {**story, "engine": {}, "engine_error": None, "story": []}
    door = None if story is None else story["door"]
    age_ms = _age_ms(door)
    names = await tenant_names(desk_of(request).repository, {tenant_id} - {""})
    return page(
        request,
        "story.html",
        story=story,
        door=door,
        age_ms=age_ms,
        overdue_ms=_overdue_ms(door, age_ms),
        engines={} if story is None else {k: v for k, v in story["engine"].items() if v},
        record=record,
        tenant=names.get(tenant_id),
        drawn=_drawn(story, record, age_ms, prefers_record=mine is not None),
        bar_words=BARS,
        shown_id=request_id if story is None else str(story["id"]),
    )


async def _record(services: Services, request_id: str) -> SloRecord | None:
    """Return what was written down of it, None where nothing was, or the ledger is away."""
    try:
        return await find_record(services.ledger.database, request_id)
    except LedgerError:
        return None


def _tenant_id(story: Mapping[str, Any] | None, record: SloRecord | None) -> str:
    if story is not None and story["door"] is not None:
        return str(story["door"]["tenant"])
    return "" if record is None else record.tenant_id


def _age_ms(door: Mapping[str, Any] | None) -> float | None:
    """Return for how long it has been under way; None where it is over."""
    if door is None or door["ended_ms"] is not None:
        return None
    age = utc_now() - datetime.fromisoformat(door["arrival"])
    return max(0.0, age.total_seconds() * 1000)


def _overdue_ms(door: Mapping[str, Any] | None, age_ms: float | None) -> float | None:
    """Return by how much the first token that is longest overdue is that by now."""
    if door is None or age_ms is None:
        return None
    dues = [choice["due_ms"] for choice in door["choices"] if choice["ttft_ms"] is None]
    return age_ms - min(dues) if dues and age_ms > min(dues) else None


def _drawn(
    story: Mapping[str, Any] | None,
    record: SloRecord | None,
    age_ms: float | None,
    *,
    prefers_record: bool,
) -> Timeline | None:
    if prefers_record and record is not None:
        return _from_record(record)
    if story is not None and (story["door"] is not None or any(story["engine"].values())):
        return timeline(story, age_ms)
    return None if record is None else _from_record(record)


def _from_record(record: SloRecord) -> Timeline:
    """Return what a record alone allows: how long it was queued, and its tokens."""
    queued = (record.queue_ns or 0) / NS_PER_MS
    total, due = record.total_ns / NS_PER_MS, record.ttft_due_ns / NS_PER_MS
    bars = [Bar("queued", 0.0, queued)] if record.queue_ns is not None else []
    marks, tokens = [], []
    if record.ttft_ns is not None:
        first = record.ttft_ns / NS_PER_MS
        is_late = record.ttft_ns > record.ttft_due_ns
        marks.append(Mark("late" if is_late else "first", first, "the first token"))
        if record.queue_ns is not None:
            bars.append(Bar("prefill", queued, first))
        tokens.append(Bar("answer", first, total, f"{record.output_tokens} tokens"))
    over = Mark("end", total, f"over: {record.outcome.value}")
    promised = Mark("due", due, "the first token was due")
    return of_lanes(
        [
            Lane("Engine", tuple(bars), (over,)),
            Lane("Client", tuple(tokens), tuple(marks)),
            Lane("Due", (), (promised,)),
        ]
    )
