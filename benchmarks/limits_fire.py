"""Limits under fire: many streams at once on one key, several workers, one Redis, one ledger.

Each scene has an organisation, a tenant and a key of its own with one limit, and sends far more
than that allows, over a connection for each request, some of which hang up in the middle.
Afterwards nothing is taken from the gateway's word: what was served is read from the raw usage
rows, what was reserved and given back from the store.

    requests, tokens   within one minute exactly as many are let in as fit
    seats              never more at once in the store, looked at every millisecond, nor in the
                       engine, looked at all the time; and all of them are used
    budgets            in tokens and in money: never over; what is left is there to the token
    every scene        reserved = settled + released, and settled is what the ledger bills

The workers are those of `tiergate serve --workers N`: processes at one port and one engine, which
sleeps through its steps. Run: python -m benchmarks.limits_fire
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis
import uvloop
from sqlalchemy import text

from benchmarks.limits import redis_server
from benchmarks.scheduling.points import machine
from benchmarks.sse_client import CHAT
from benchmarks.workers_under_test import HOST, settings_of, workers_process
from engine.core.clock import MonotonicClock, utc_now
from gateway.ledger import Ledger, ledger
from gateway.limits.redis_store import RedisStore, connect
from gateway.limits.values import Sum, Totals
from tenants.keys import generate_admin_token
from tenants.values import Budget, Period, Scope, Unit

RESULT = Path(__file__).parent / "results" / "limits_fire.json"
CLOCK = MonotonicClock()
PROMPT_NANO, OUTPUT_NANO = 7, 31
PRICES = {"price_prompt_nano": "7", "price_cached_nano": "3", "price_output_nano": "31"}
FOLLOW_S = 2.0  # until every worker goes by what was changed in the ledger
SETTLE_S = 20.0
AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: at most so many tokens, or exactly as many; left after `leave` parts."""

    max_tokens: int
    all_of_them: bool = True
    leave: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What the client saw: the status, and the code of a refusal; status 0 where it hung up."""

    status: int
    code: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """Everything a scene needs."""

    port: int
    admin_token: str
    opened: Ledger
    redis_url: str
    streams: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One owner of limits and its key."""

    name: str
    organisation_id: str
    tenant_id: str
    key: str


async def send(field: Field, key: str, ask: Ask) -> Told:
    """Send one streamed request on a connection of its own and read it, or leave."""
    body: dict[str, Any] = {
        "model": "paced",
        "messages": [{"role": "user", "content": "Name a few colours."}],
        "max_tokens": ask.max_tokens,
        "ignore_eos": ask.all_of_them,
        "stream": True,
    }
    content = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(HOST, field.port)
    try:
        writer.write(head.encode() + content)
        raw = await reader.readuntil(b"\r\n\r\n")
        status = int(raw[9:12])
        if status == 200 and ask.leave is not None:
            for _ in range(ask.leave):
                await reader.readuntil(b"\n\n")
            writer.transport.abort()
            return Told(0)
        rest = await reader.read()
    except asyncio.IncompleteReadError:
        return Told(0)  # it was over before the client could leave
    finally:
        writer.close()
    if status == 200:
        assert b"data: [DONE]" in rest, rest[-300:]
        return Told(200)
    start = rest.index(b"{")
    return Told(status, json.loads(rest[start : rest.rindex(b"}") + 1])["error"]["code"])


async def storm(
    field: Field, scene: Scene, asks: Sequence[Ask], *, insist: bool = False
) -> list[Told]:
    """Send all, `streams` at a time; with `insist` each again and again until it is let in."""
    told: list[Told] = []
    waiting = iter(asks)

    async def client() -> None:
        for ask in waiting:
            while True:
                answer = await send(field, scene.key, ask)
                told.append(answer)
                if not insist or answer.status != 429:
                    break
                await asyncio.sleep(AGAIN_S)

    await asyncio.gather(*[client() for _ in range(field.streams)])
    return told


async def until_refused(
    field: Field, scene: Scene, draw: Callable[[], Ask], code: str
) -> list[Told]:
    """Send until every client has been refused for good three times in a row."""
    told: list[Told] = []

    async def client() -> None:
        refused = 0
        while refused < 3:
            answer = await send(field, scene.key, draw())
            told.append(answer)
            refused = refused + 1 if answer.code == code else 0

    await asyncio.gather(*[client() for _ in range(field.streams)])
    return told


async def make_scene(
    field: Field, name: str, limits: dict[str, int] | None = None, budget: Budget | None = None
) -> Scene:
    repository, now = field.opened.repository, utc_now()
    organisation = await repository.create_organisation(f"org-{name}", now)
    tenant = await repository.create_tenant(name, "premium", now, organisation=organisation.name)
    if limits:
        await repository.set_limits(Scope.TENANT, name, limits, now)
    if budget:
        await repository.set_budgets(Scope.TENANT, name, [budget], now)
    key = (await repository.create_key(tenant.id, now)).plaintext
    return Scene(name, organisation.id, tenant.id, key)


async def totals_of(field: Field, scene: Scene) -> Totals:
    """Return what the store has of a scene once nothing is open; waits for the last to be told."""
    store = RedisStore(connect(field.redis_url, 5), timeout_s=5)
    running = asyncio.create_task(store.run())
    try:
        async with asyncio.timeout(SETTLE_S):
            while True:
                sums = await store.totals(scene.organisation_id)
                if not sums.open.requests:
                    return sums
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Row:
    """What a usage row bills."""

    prompt_tokens: int
    output_tokens: int
    cost_nano: int


async def rows_of(field: Field, scene: Scene, requests: int) -> list[Row]:
    """Return the raw usage rows of a scene once there are so many."""
    query = text(
        "SELECT prompt_tokens, output_tokens, cost_nano FROM usage WHERE tenant_id = :tenant"
    )
    async with asyncio.timeout(SETTLE_S):
        while True:
            async with field.opened.database.read() as session:
                found = await session.execute(query, {"tenant": scene.tenant_id})
                rows = [Row(*row) for row in found]
            if len(rows) >= requests:
                return rows
            await asyncio.sleep(0.1)


def sum_of(rows: Sequence[Row]) -> Sum:
    tokens = sum(row.prompt_tokens + row.output_tokens for row in rows)
    return Sum(len(rows), tokens, sum(row.cost_nano for row in rows))


async def balance(field: Field, scene: Scene, told: Sequence[Told]) -> tuple[dict[str, Any], Sum]:
    """Check the law at a storm's end; return what is reported of it, and what was billed."""
    sums = await totals_of(field, scene)
    rows = await rows_of(field, scene, sums.settled.requests)
    billed = sum_of(rows)
    assert sums.reserved == sums.settled + sums.released, sums
    assert sums.settled == billed, (sums.settled, billed)
    assert sums.lapsed == Sum(), sums.lapsed
    served = sum(1 for one in told if one.status in (0, 200))
    assert served == billed.requests, (served, billed)
    statuses = Counter(f"{one.status} {one.code}".strip() for one in told)
    report = {
        "sent": len(told),
        "let_in": billed.requests,
        "left_midway": statuses.pop("0", 0),
        "told": dict(sorted(statuses.items())),
        "billed_tokens": billed.tokens,
        "billed_nano": billed.cost_nano,
        "reserved_tokens": sums.reserved.tokens,
        "released_tokens": sums.released.tokens,
        "balanced": True,
    }
    return report, billed


async def requests_scene(field: Field) -> dict[str, Any]:
    most = field.streams * 3 // 4
    scene = await make_scene(field, "requests", {"requests_per_minute": most})
    began_ns = CLOCK.now_ns()
    told = await storm(field, scene, [Ask(6)] * (field.streams * 3))
    assert (CLOCK.now_ns() - began_ns) / 1e9 < 59, "too slow to say anything"
    report, billed = await balance(field, scene, told)
    assert billed.requests == most, (billed, most)
    return {"limit": most, **report}


async def tokens_scene(field: Field) -> dict[str, Any]:
    probe = await make_scene(field, "probe", {"requests_per_minute": 100})
    await send(field, probe.key, Ask(10))
    (row,) = await rows_of(field, probe, 1)
    each, fit = row.prompt_tokens + 10, field.streams * 2 // 3
    scene = await make_scene(field, "tokens", {"tokens_per_minute": each * fit + each - 1})
    began_ns = CLOCK.now_ns()
    told = await storm(field, scene, [Ask(10)] * (field.streams * 3))
    assert (CLOCK.now_ns() - began_ns) / 1e9 < 59, "too slow to say anything"
    report, billed = await balance(field, scene, told)
    assert billed.requests == fit, (billed, fit)
    return {"limit": each * fit + each - 1, **report}


async def seats_scene(field: Field) -> dict[str, Any]:
    most = max(field.streams // 5, 1)
    scene = await make_scene(field, "seats", {"concurrent_requests": most})
    rng = random.Random(5)
    asks = [
        Ask(rng.randrange(5, 40), leave=rng.randrange(1, 5) if rng.random() < 0.2 else None)
        for _ in range(field.streams * 12)
    ]
    seats, engine = Counter[int](), Counter[int]()
    async with watched_seats(field, scene, seats), watched_engine(field, engine):
        told = await storm(field, scene, asks, insist=True)
    report, billed = await balance(field, scene, told)
    assert billed.requests == len(asks), billed
    assert max(seats) == most, seats
    assert max(engine) <= most, engine
    return {
        "limit": most,
        "most_in_store": max(seats),
        "looks_at_store": seats.total(),
        "most_in_engine": max(engine),
        "looks_at_engine": engine.total(),
        **report,
    }


@contextlib.asynccontextmanager
async def watched_seats(field: Field, scene: Scene, seen: Counter[int]) -> AsyncIterator[None]:
    """Look at the seats in the store about every millisecond; it changes by its script only."""
    key = f"tiergate:{{{scene.organisation_id}}}:con:tenant:{scene.tenant_id}"
    with redis.Redis.from_url(field.redis_url, protocol=2) as client:

        async def look() -> None:
            while True:
                seen[int(client.zcard(key))] += 1
                await asyncio.sleep(0.001)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


@contextlib.asynccontextmanager
async def watched_engine(field: Field, seen: Counter[int]) -> AsyncIterator[None]:
    """Ask again and again how many requests the engine holds, as it says between two steps."""
    auth = {"authorization": f"Bearer {field.admin_token}"}
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{field.port}", headers=auth) as http:

        async def look() -> None:
            while True:
                now = (await http.get("/admin/api/engine", timeout=30)).json()["snapshot"]
                if now is not None:
                    seen[now["waiting"] + now["running"] + now["parked"]] += 1
                await asyncio.sleep(0.01)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def budget_scene(field: Field, unit: Unit) -> dict[str, Any]:
    """Drain a budget by requests of all lengths, half of which end early or are left."""
    amount = field.streams * (120 if unit is Unit.TOKENS else 2500)
    budget = Budget(Period.MONTH, unit, amount)
    scene = await make_scene(field, f"budget-{unit.value}", budget=budget)
    rng = random.Random(7)

    def draw() -> Ask:
        leave = rng.randrange(1, 6) if rng.random() < 0.25 else None
        return Ask(rng.randrange(1, 60), rng.random() < 0.5, leave)

    told = await until_refused(field, scene, draw, "insufficient_quota")
    report, billed = await balance(field, scene, told)
    spent = billed.tokens if unit is Unit.TOKENS else billed.cost_nano
    assert spent <= amount, (spent, amount)
    # How exactly the store knows what is left: with a little more of it, one token too many is
    # refused, and what is left is granted.
    prompt = max(row.prompt_tokens for row in await rows_of(field, scene, 1))
    prices = (1, 1) if unit is Unit.TOKENS else (PROMPT_NANO, OUTPUT_NANO)
    more = -(amount - spent) % prices[1] + prompt * prices[0] + 50 * prices[1]
    wider = dataclasses.replace(budget, amount=amount + more)
    await field.opened.repository.set_budgets(Scope.TENANT, scene.name, [wider], utc_now())
    await asyncio.sleep(FOLLOW_S)
    fits, rest = divmod(amount + more - spent - prompt * prices[0], prices[1])
    assert rest == 0
    over = await send(field, scene.key, Ask(fits + 1))
    last = await send(field, scene.key, Ask(fits))
    assert (over.code, last.status) == ("insufficient_quota", 200), (over, last)
    none = await send(field, scene.key, Ask(1))
    assert none.code == "insufficient_quota", none
    await balance(field, scene, [*told, over, last, none])
    return {"limit": amount, "spent": spent, "last_tokens_granted": fits, **report}


async def play(field: Field) -> dict[str, Any]:
    await field.opened.repository.change_tier("premium", PRICES)
    await asyncio.sleep(FOLLOW_S)
    scenes: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        "requests per minute": lambda: requests_scene(field),
        "tokens per minute": lambda: tokens_scene(field),
        "concurrent requests": lambda: seats_scene(field),
        "budget in tokens": lambda: budget_scene(field, Unit.TOKENS),
        "budget in money": lambda: budget_scene(field, Unit.NANO),
    }
    results: dict[str, Any] = {}
    for name, scene in scenes.items():
        began_ns = CLOCK.now_ns()
        results[name] = await scene()
        results[name]["seconds"] = round((CLOCK.now_ns() - began_ns) / 1e9, 1)
        print(f"{name:20} {results[name]}")
    return results


async def measure(folder: Path, redis_url: str, workers: int, streams: int) -> dict[str, Any]:
    token = generate_admin_token()
    settings = settings_of(folder, redis_url, workers)
    async with (
        ledger(settings, lambda _line: None) as opened,
        workers_process(folder, redis_url, workers, token) as port,
    ):
        return await play(Field(port, token, opened, redis_url, streams))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    busy = os.getloadavg()
    with tempfile.TemporaryDirectory() as name, redis_server() as url:
        scenes = uvloop.run(measure(Path(name), url, args.workers, args.streams))
    if args.dry_run:
        return
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine() | {"load_average": [round(load, 1) for load in busy]},
        "workers": args.workers,
        "streams": args.streams,
        "scenes": scenes,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
