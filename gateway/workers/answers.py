"""What one worker answers the others, and what is made of the answers of all; no socket here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from engine.core.clock import NS_PER_MS
from gateway.dashboard.points import newest_dots
from gateway.request_stories import (
    OPEN,
    REQUEST,
    REQUESTS,
    own_open,
    own_requests,
    own_story,
)
from gateway.workers.metrics import merge
from gateway.workers.peers import Answerer

if TYPE_CHECKING:
    from gateway.services import Services

METRICS, DOOR, DOTS = "metrics", "door", "dots"


def answerers(services: Services) -> Mapping[str, Answerer]:
    """Return what this worker answers, by the name of the question."""

    async def metrics(_: str) -> bytes:
        return await asyncio.to_thread(services.telemetry.expose)

    async def requests(limit: str) -> bytes:
        return orjson.dumps(own_requests(services, int(limit)))

    async def under_way(question: str) -> bytes:
        return orjson.dumps(own_open(services, *orjson.loads(question)))

    async def request(request_id: str) -> bytes:
        return orjson.dumps(await own_story(services, request_id))

    async def door(_: str) -> bytes:
        return orjson.dumps(door_fields(services))

    async def dots(seen: str) -> bytes:
        return orjson.dumps(own_dots(services, int(seen)))

    return {
        METRICS: metrics,
        REQUESTS: requests,
        REQUEST: request,
        OPEN: under_way,
        DOOR: door,
        DOTS: dots,
    }


async def all_metrics(services: Services) -> bytes:
    """Return the metrics of all workers in Prometheus' text form."""
    place = services.peers.place
    own = asyncio.to_thread(services.telemetry.expose)
    if place.count == 1:
        return await own
    mine, others = await asyncio.gather(own, services.peers.ask(METRICS))
    texts = {index: text.decode() for index, text in {place.index: mine, **others}.items()}
    return (await asyncio.to_thread(merge, texts, place.index)).encode()


async def all_doors(services: Services) -> list[dict[str, Any]]:
    """Return the counts of every worker that answers, in the order of their numbers."""
    doors = [door_fields(services)]
    doors += [orjson.loads(answer) for answer in (await services.peers.ask(DOOR)).values()]
    return sorted(doors, key=lambda door: int(door["worker"]))


def own_dots(services: Services, seen: int) -> dict[str, Any]:
    """Return the dots of this worker's requests behind the first `seen`, and how many there were.

    Who has seen more than there were has seen a worker that is gone.
    """
    slo = services.slo
    new = slo.num_ended - seen if seen <= slo.num_ended else slo.num_ended
    return {"seen": slo.num_ended, "dots": newest_dots(slo.latest, new)}


def door_fields(services: Services) -> dict[str, Any]:
    """Return this worker's counts, and for how long the engine has owed it a word."""
    admission, snapshot = services.admission, services.host.engine.snapshot
    silent_ns = services.watch.silent_ns(snapshot, services.clock.now_ns())
    return {
        "worker": services.peers.place.index,
        "open_answers": len(services.live),
        "waiting": admission.waiting,
        "waiting_by_tier": admission.waiting_by_tier(),
        "waiting_prompt_tokens": admission.waiting_prompt_tokens,
        "max_queue": admission.max_queue,
        "draining": admission.draining,
        "engine_silent_ms": silent_ns // NS_PER_MS,
        "usage_buffered": services.meter.state.buffered,
    }
