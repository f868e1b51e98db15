"""What a flood costs the neighbour: one tenant asks all the time, another of its tier now and then.

Both are in the tier `free`. The flood comes from many closed-loop clients, far more than the engine
has seats; the neighbour sends one short request after the other. Reported is how long it waits for
its first token: alone, beside the flood, and beside a flood whose tenant is limited to half of the
seats. The engine sleeps through its steps, so the machine's speed does not matter much.
Run: python -m benchmarks.isolation
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.scheduling.points import machine
from benchmarks.sse_client import Connection
from engine.core.clock import utc_now
from gateway.ledger import Ledger, ledger
from gateway.settings import Settings
from tenants.values import Scope

RESULT = Path(__file__).parent / "results" / "isolation.json"
STEP_MS, SEATS, CLIENTS = 20.0, 8, 60
POLICIES = ("fcfs", "hybrid")
FLOOD = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
LITTLE = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
QUESTION = [{"role": "user", "content": "Say a few words about queues."}]
FEW = 3  # requests beside a flood: each may take long
GIVE_UP_S = 40.0
AGAIN_S = 0.2
FOLLOW_S = 1.5  # until the gateway goes by what was changed in the ledger


async def flood(target: Target, tenant: str, told: Counter[int], is_over: asyncio.Event) -> None:
    """Ask, read, ask again."""
    connection = Connection(target, tenant)
    await connection.open()
    while not is_over.is_set():
        seen = await connection.ask(FLOOD | {"messages": QUESTION})
        told[seen.status] += 1
        if seen.status != 200:
            await asyncio.sleep(AGAIN_S)
    await connection.close()


async def little(target: Target, requests: int) -> list[float]:
    """Return the neighbour's times to the first token, in ms; infinite where it gave up."""
    waits: list[float] = []
    for _ in range(requests):
        connection = Connection(target, "neighbour")
        await connection.open()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                seen = await connection.ask(LITTLE | {"messages": QUESTION})
        except TimeoutError:
            waits.append(math.inf)
        else:
            assert seen.status == 200, seen
            assert seen.done, seen
            waits.append((seen.tokens_ns[0] - seen.sent_ns) / 1e6)
        await connection.close()
        await asyncio.sleep(0.05)
    return waits


def quantiles(waits: list[float]) -> dict[str, Any]:
    """Milliseconds, and how often the neighbour gave up."""
    served = sorted(wait for wait in waits if wait < math.inf)
    found: dict[str, Any] = {"requests": len(waits), "given_up": len(waits) - len(served)}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("max", 1.0)):
        place = min(int(share * len(served)), len(served) - 1)
        found[f"{name}_ms"] = round(served[place]) if served else None
    return found


async def beside_a_flood(target: Target, requests: int) -> dict[str, Any]:
    told, is_over = Counter[int](), asyncio.Event()
    floods = [asyncio.create_task(flood(target, "flood", told, is_over)) for _ in range(CLIENTS)]
    await asyncio.sleep(3)  # the flood has filled the engine
    waits = await little(target, requests)
    is_over.set()
    await asyncio.gather(*floods)
    return {"neighbour_ttft": quantiles(waits), "flood": {str(k): n for k, n in told.items()}}


async def play(target: Target, opened: Ledger, requests: int) -> dict[str, Any]:
    """Measure one policy."""
    keys: dict[str, str] = {}
    for name in ("flood", "neighbour"):
        tenant = await opened.repository.create_tenant(name, "free", utc_now())
        keys[name] = (await opened.repository.create_key(tenant.id, utc_now())).plaintext
    target.keys.update(keys)
    rows = {"alone": {"neighbour_ttft": quantiles(await little(target, requests))}}
    rows["beside a flood"] = await beside_a_flood(target, FEW)
    limits = {"concurrent_requests": SEATS // 2}
    await opened.repository.set_limits(Scope.TENANT, "flood", limits, utc_now())
    await asyncio.sleep(FOLLOW_S)
    rows[f"the flood limited to {SEATS // 2} seats"] = await beside_a_flood(target, requests)
    return rows


async def measure(policy: str, requests: int) -> dict[str, Any]:
    engine = {"policy": policy, "max_batch_requests": SEATS}
    if policy != "fcfs":
        engine["latency_profile"] = "builtin-cpu"
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        flags = ["--step-ms", str(STEP_MS), "--engine", json.dumps(engine)]
        target = stack.enter_context(gateway_process(folder, *flags))
        settings = Settings(data_dir=folder)
        async with ledger(settings, lambda _line: None) as opened:
            rows = await play(target, opened, requests)
    for case, row in rows.items():
        print(f"{policy:8} {case:32} {row}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    busy = os.getloadavg()
    rows = {policy: uvloop.run(measure(policy, args.requests)) for policy in args.policies}
    if args.dry_run:
        return
    before = json.loads(RESULT.read_text())["policies"] if RESULT.exists() else {}
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine() | {"load_average": [round(load, 1) for load in busy]},
        "step_ms": STEP_MS,
        "seats": SEATS,
        "flood_clients": CLIENTS,
        "policies": before | rows,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
