"""What the limiter costs: one reserve and settle in memory and on Redis, and how many a second.

A request here has a key, a tenant and an organisation, each with requests and tokens per minute,
concurrent requests and a monthly budget: 12 rules, checked and taken in one atomic step. Redis is
started for the run (Unix socket, nothing kept on disk), on the same machine; its PING in the same
run tells what the round trip alone takes. `alone`: one request at a time. `busy`: 64 at once in
each process. Durations are what a request waits for its verdict; settling is not waited for. CPU
times are of a whole request, reserve and settle: they say more than rates on a machine that others
use as well.
`door` is what limits in memory add to a request there, from asking whether it has any to its
headers and its settlement.
Run: python -m benchmarks.limits
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import uvloop

from engine.core.clock import MonotonicClock, utc_now
from engine.core.request import SamplingParams
from gateway.completion import Heading
from gateway.dialects.openai import ChatShape
from gateway.limit_desk import LimitDesk
from gateway.limits.limiter import Limiter
from gateway.limits.memory_store import MemoryStore
from gateway.limits.redis_store import RedisStore, connect
from gateway.limits.rules import Allowance
from gateway.limits.values import Ask, Grant, Spend
from gateway.plan import Plan
from gateway.principal import Principal, slo_of
from tenants.values import (
    Budget,
    KeyRecord,
    KeyWithTenant,
    Limits,
    Overload,
    Period,
    Scope,
    ScopeLimits,
    TenantRecord,
    TierRecord,
    Unit,
)

RESULT = Path(__file__).parent / "results" / "limits.json"
CLOCK = MonotonicClock()
BUSY = 64
PLENTY = 2**50
LIMITS = Limits(requests_per_minute=PLENTY, tokens_per_minute=PLENTY, concurrent_requests=PLENTY)
BUDGET = Budget(Period.MONTH, Unit.TOKENS, PLENTY, alert_percent=80)


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis of our own; yields its URL."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        sys.exit("no redis-server here: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/socket"
        flags = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        server = subprocess.Popen([binary, *flags], stdout=subprocess.DEVNULL)
        try:
            while not Path(socket).exists():
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait()


def allowances(number: int) -> tuple[Allowance, ...]:
    """Return the limits of one of many keys, of its tenant and of its organisation."""
    owners = (
        (Scope.KEY, f"k{number}"),
        (Scope.TENANT, f"t{number // 8}"),
        (Scope.ORGANISATION, f"o{number // 64}"),
    )
    return tuple(Allowance(ScopeLimits(s, target, LIMITS, (BUDGET,))) for s, target in owners)


async def ask_many(limiter: Limiter, name: str, requests: int) -> list[int]:
    """Ask, settle, ask again; returns how long each verdict took, in nanoseconds."""
    taken: list[int] = []
    number = zlib.crc32(name.encode()) % 256
    allowed = allowances(number)
    for serial in range(requests):
        asked = Ask(
            f"{name}-{os.getpid()}-{serial}", f"o{number // 64}", allowed, Spend(1, 900, 500)
        )
        began_ns = CLOCK.now_ns()
        verdict = await limiter.reserve(asked)
        taken.append(CLOCK.now_ns() - began_ns)
        assert isinstance(verdict, Grant)
        assert not verdict.is_local
        limiter.settle(asked.id, prompt_tokens=900, output_tokens=123)
    return taken


async def one_process(url: str, tasks: int, requests: int, name: str) -> dict[str, Any]:
    """Let `tasks` clients of one process ask `requests` times each."""
    store = RedisStore(connect(url, 10), timeout_s=10) if url else MemoryStore()
    limiter = Limiter(store, CLOCK)
    running = asyncio.create_task(limiter.run())
    await ask_many(limiter, f"{name}-warm", 50)
    began_ns, began_cpu_s = CLOCK.now_ns(), time.process_time()
    clients = [ask_many(limiter, f"{name}-{n}", requests) for n in range(tasks)]
    taken = [ns for part in await asyncio.gather(*clients) for ns in part]
    await limiter.flush(60)
    elapsed_ns, cpu_s = CLOCK.now_ns() - began_ns, time.process_time() - began_cpu_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {"taken": taken, "elapsed_ns": elapsed_ns, "cpu_s": cpu_s}


def quantiles(taken: list[int]) -> dict[str, float]:
    """Microseconds."""
    ordered = sorted(taken)
    return {
        f"{name}_us": round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 1)
        for name, share in (("p50", 0.50), ("p99", 0.99))
    }


def run_processes(url: str, processes: int, tasks: int, requests: int) -> dict[str, Any]:
    """Run several processes at once; returns quantiles of all, rate, and CPU time per request."""
    before_s = server_cpu_s(url) if url else 0.0
    command = [sys.executable, "-m", "benchmarks.limits", "--url", url]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"w{n}" for n in range(processes)]
        sizes = ["--tasks", str(tasks), "--requests", str(requests)]
        workers = [subprocess.Popen([*command, "--worker", str(file), *sizes]) for file in files]
        assert [worker.wait() for worker in workers] == [0] * processes
        results = [json.loads(file.read_text()) for file in files]
    taken = [ns for result in results for ns in result["taken"]]
    seconds = max(result["elapsed_ns"] for result in results) / 1e9
    worker_cpu_us = sum(result["cpu_s"] for result in results) / len(taken) * 1e6
    row: dict[str, Any] = {**quantiles(taken), "per_second": round(len(taken) / seconds)}
    row["worker_cpu_us"] = round(worker_cpu_us)
    if url:
        row["redis_cpu_us"] = round((server_cpu_s(url) - before_s) / len(taken) * 1e6)
    return row


def ping(url: str, times: int) -> dict[str, float]:
    taken = []
    with redis.Redis.from_url(url, protocol=2) as client:
        for _ in range(times):
            began_ns = CLOCK.now_ns()
            client.ping()
            taken.append(CLOCK.now_ns() - began_ns)
    return quantiles(taken)


def server_cpu_s(url: str) -> float:
    with redis.Redis.from_url(url, protocol=2) as client:
        cpu = client.info("cpu")
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def plan_of(limits: tuple[ScopeLimits, ...]) -> Plan:
    """Return a request of a key with these limits, as the door has it."""
    now = utc_now()
    tier = TierRecord("t", 0, 500, 250, 100, "gap", 0, 0.99, 1.0, None, None, Overload.QUEUE, 1)
    key = KeyRecord("k0", "t0", "", "tgk_live_", "x", None, now)
    found = KeyWithTenant(key, TenantRecord("t0", "t0", "t", now), tier, limits)
    return Plan(
        principal=Principal(found, "digest", "salt"),
        tier=tier,
        slo=slo_of(tier),
        shape=ChatShape(),
        heading=Heading("chatcmpl-0", 0, "m", "default", "fp"),
        prompts=((1,) * 900,),
        sampling=SamplingParams(max_tokens=500),
        stops=(),
        choices_per_prompt=1,
        arrival_ns=0,
        arrival=now,
    )


async def at_the_door(limits: tuple[ScopeLimits, ...], requests: int) -> float:
    """Return the CPU time, in us, of all that limits add to one request; headers included."""
    desk = LimitDesk(Limiter(MemoryStore(), CLOCK), lambda _plan: ())
    plan = plan_of(limits)
    plans = [
        dataclasses.replace(plan, heading=dataclasses.replace(plan.heading, id=f"c-{n}"))
        for n in range(requests)
    ]
    began_s = time.process_time()
    for one in plans:
        if allowances := desk.allowances(one):
            held = await desk.reserve(one, allowances)
            held.seal(is_served=True)
    return (time.process_time() - began_s) / requests * 1e6


def door_rows(requests: int) -> dict[str, Any]:
    """The door's own part: nothing set, a key with requests and tokens per minute, all 12."""
    minute = Limits(requests_per_minute=PLENTY, tokens_per_minute=PLENTY)
    cases = {
        "no limits": (),
        "2 limits": (ScopeLimits(Scope.KEY, "k0", minute),),
        "12 limits": tuple(allowance.source for allowance in allowances(0)),
    }
    return {
        f"door, {name}": {
            "cpu_us": round(
                min(asyncio.run(at_the_door(limits, requests)) for _ in range(5)),
                1 if limits else 3,
            )
        }
        for name, limits in cases.items()
    }


def measure(requests: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    rows.update(door_rows(requests))
    rows["memory, alone"] = run_processes("", 1, 1, requests * 4)
    rows["memory, busy"] = run_processes("", 1, BUSY, requests * 4 // BUSY)
    with redis_server() as url:
        rows["redis ping"] = ping(url, requests)
        rows["redis, alone"] = run_processes(url, 1, 1, requests)
        rows["redis, busy, 1 process"] = run_processes(url, 1, BUSY, requests * 2 // BUSY)
        rows["redis, busy, 4 processes"] = run_processes(url, 4, BUSY, requests * 2 // BUSY)
        with redis.Redis.from_url(url, protocol=2) as client:
            rows["redis, memory"] = {
                "bytes_per_closed_request": round(
                    client.info("memory")["used_memory"] / client.dbsize()
                )
            }
    for name, row in rows.items():
        print(f"{name:32} {row}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--only-door", action="store_true", help="measure and replace these rows")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        result = uvloop.run(one_process(args.url, args.tasks, args.requests, args.worker[-8:]))
        Path(args.worker).write_text(json.dumps(result))
        return
    busy = os.getloadavg()
    if args.only_door:
        rows = door_rows(args.requests)
        print(rows)
        report = json.loads(RESULT.read_text())
        report["rows"] |= rows
        if not args.dry_run:
            RESULT.write_text(json.dumps(report, indent=2) + "\n")
        return
    rows = measure(args.requests)
    if args.dry_run:
        return
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "load_average": [round(load, 1) for load in busy],
        },
        "rules_per_request": len(allowances(0)) * 4,
        "rows": rows,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
