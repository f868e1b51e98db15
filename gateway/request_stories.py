"""Finds the story of a request and the list of the latest, here and at the other workers.

A story asks the engine what it decided, which it says between two steps; where it does not, the
door's part is told without it. A request's door is the worker that it came to; the engine is
everybody's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from gateway.request_records import DoorRecord
from gateway.request_view import request_fields, summary_fields

if TYPE_CHECKING:
    from gateway.services import Services

MOST_CHOICES = 16  # of one answer are asked for; of others, ask by the choice's own id
MOST_ID = 200  # characters

# The questions to other workers.
REQUESTS, REQUEST, OPEN = "requests", "request", "open"

# Those under way that fit a tenant's id and a tier: how many, and the latest of them.
UnderWay = tuple[int, list[dict[str, Any]]]


async def newest_requests(services: Services, limit: int) -> list[dict[str, Any]]:
    """Return the latest requests of all workers, the newest first."""
    rows = own_requests(services, limit)
    for answer in (await services.peers.ask(REQUESTS, str(limit))).values():
        rows += orjson.loads(answer)
    rows.sort(key=lambda row: str(row["arrival"]), reverse=True)
    return rows[:limit]


def own_requests(services: Services, limit: int) -> list[dict[str, Any]]:
    """Return the latest requests that came to this worker."""
    newest = services.journal.newest()
    return [summary_fields(record) for record, _ in zip(newest, range(limit), strict=False)]


async def open_requests(
    services: Services, tenant_id: str | None, tier: str, limit: int
) -> UnderWay:
    """Return how many requests are under way at all workers, and the latest of them."""
    if len(tier) > MOST_ID:
        return 0, []
    num, rows = own_open(services, tenant_id, tier, limit)
    question = orjson.dumps([tenant_id, tier, limit]).decode()
    for answer in (await services.peers.ask(OPEN, question)).values():
        num_more, more = orjson.loads(answer)
        num, rows = num + num_more, rows + more
    rows.sort(key=lambda row: str(row["arrival"]), reverse=True)
    return num, rows[:limit]


def own_open(services: Services, tenant_id: str | None, tier: str, limit: int) -> UnderWay:
    """Return those that came to this worker; no tenant or tier given means all."""
    found = [
        record
        for record in services.journal.newest()
        if record.ended_ns is None
        and tenant_id in (None, record.tenant_id)
        and tier in ("", record.tier_served)
    ]
    return len(found), [summary_fields(record) for record in found[:limit]]


async def find_story(services: Services, request_id: str) -> dict[str, Any] | None:
    """Return the story of a request, whichever worker it came to; None where nobody knows it."""
    if len(request_id) <= MOST_ID:
        story = await own_story(services, request_id)
        if story is not None:
            return story
        for answer in (await services.peers.ask(REQUEST, request_id)).values():
            if (story := orjson.loads(answer)) is not None:
                return dict(story)
    found, error = await _ask(services, [request_id])
    return request_fields(None, found, error) if any(found.values()) else None


async def own_story(services: Services, request_id: str) -> dict[str, Any] | None:
    """Return the story of a request that came to this worker."""
    door = services.journal.find(request_id)
    if door is None:
        return None
    if door.admitted_ns is None:
        return request_fields(door, {}, "")  # no engine has heard of it
    found, error = await _ask(services, _choices(door, request_id))
    return request_fields(door, found, error)


def _choices(door: DoorRecord, name: str) -> list[str]:
    """Return the engine requests meant: one choice where it was named, else the first ones."""
    ids = [choice.id for choice in door.choices]
    return [name] if name in ids else ids[:MOST_CHOICES]


async def _ask(services: Services, names: list[str]) -> tuple[dict[str, RequestRecord | None], str]:
    """Return what the engine knows of these, and why it was not heard where it was not."""
    explain = services.host.engine.explain
    answers = await asyncio.gather(*map(explain, names), return_exceptions=True)
    found: dict[str, RequestRecord | None] = {}
    error = ""
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, EngineUnavailable):
            found[name], error = None, str(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[name] = answer
    return found, error
