"""Server time of every admin page with a month of traffic in the ledger, on SQLite and Postgres.

The ledger holds `--records` judged requests with their usage rows, of `--tenants` tenants
(benchmarks/big_ledger.py). A real `tiergate serve` answers; every page of the dashboard's own table
that can be looked at is asked `--times` times, and lists also far down, by cursor and with filters.
Times are those of a client on the loopback device that has logged in, from the request to the last
byte. Goal: p95 of every page at most 150 ms.

Run: python -m benchmarks.page_speed [--records 1000000] [--databases sqlite,postgres]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.big_ledger import fill, make_tenants, month
from benchmarks.revocation import postgres_server
from benchmarks.scheduling.points import machine
from engine.core.clock import utc_now
from gateway.dashboard.rooms import page_routers
from gateway.ledger import ledger
from gateway.server import listen
from gateway.settings import Settings
from migrations import runner
from tenants.keys import generate_admin_token
from tenants.slo_store import newest_records
from tenants.values import Role

RESULT = Path(__file__).parent / "results" / "page_speed.json"
GOAL_MS = 150
START_LIMIT_S = 180
LEFT_OUT = re.compile(r"/admin/(live|static|login|logout|oidc)")
# Beside each page as it opens: what people turn it to.
TURNED = {
    "/admin/requests": ["?missed=true", "?tier=premium&outcome=failed", "?tenant={tenant}"],
    "/admin/slo": ["?tenant={tenant}&range=90d"],
    "/admin/tiers/{tier}/preview": ["?ttft_ms=300&tbt_ms=80"],
    "/admin/tenants": ["?q=customer-04"],
    "/admin/audit": ["?tenant={tenant}"],
    "/admin/usage": ["?tenant={tenant}"],
}


def pages(names: dict[str, str]) -> list[str]:
    """Return the path of every page that can be looked at, with names filled in."""
    found = []
    for router in page_routers():
        for route in router.routes:
            path = str(getattr(route, "path", ""))
            if "GET" not in getattr(route, "methods", ()) or LEFT_OUT.match(path):
                continue
            found += [path + turn for turn in ["", *TURNED.get(path, [])]]
    return sorted(re.sub(r"\{(\w+)(:\w+)?\}", lambda m: names[m[1]], path) for path in found)


@contextlib.contextmanager
def databases(kind: str, folder: Path) -> Iterator[str]:
    if kind == "postgres":
        with postgres_server() as url:
            yield url
    else:
        yield f"sqlite:///{folder / 'tiergate.db'}"


@contextlib.contextmanager
def gateway(settings: Settings, token: str) -> Iterator[str]:
    """Run `tiergate serve` on that ledger; yields its URL when it is ready."""
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    environment = os.environ | {
        "TIERGATE_ADMIN_TOKEN": token,
        "TIERGATE_DATABASE_URL": settings.database_url,
        "TIERGATE_DATA_DIR": str(settings.data_dir),
        "TIERGATE_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_LIMIT_S * 10):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        else:
            sys.exit("the gateway did not become ready")
        yield url
    finally:
        server.terminate()
        server.wait(60)


def measure(url: str, token: str, names: dict[str, str], times: int) -> dict[str, Any]:
    """Return the times of every page in ms; a page that is not answered with 200 ends the run."""
    rows: dict[str, Any] = {}
    headers = {"authorization": f"Bearer {token}", "accept": "text/html"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        for path in pages(names):
            took = []
            for _ in range(times + 1):
                began = time.perf_counter()
                answer = http.get(path)
                took.append(1000 * (time.perf_counter() - began))
                if answer.status_code != 200:
                    sys.exit(f"{path}: {answer.status_code}")
            took = sorted(took[1:])
            p95 = took[min(len(took) * 95 // 100, len(took) - 1)]
            rows[re.sub(r"[0-9a-f]{24,}", "...", path)] = {
                "p50_ms": round(statistics.median(took), 1),
                "p95_ms": round(p95, 1),
                "kib": round(len(answer.content) / 1024, 1),
            }
            print(f"{path:70.70} p50 {statistics.median(took):7.1f}  p95 {p95:7.1f} ms", flush=True)
    return rows


async def prepare(
    settings: Settings, num_records: int, num_tenants: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Fill the ledger; return what that took, and names of things in it."""
    await runner.upgrade(settings.database_url)
    now = utc_now()
    async with ledger(settings, lambda _line: None) as opened:
        tenants = await make_tenants(opened.repository, num_tenants, now)
        filled = await fill(opened.database, month(tenants, num_records, now))
        (record,) = (await newest_records(opened.database, limit=1)).records
        user = await opened.repository.create_user("viewer", Role.VIEWER, now)
    names = {
        "tenant": "customer-0040",
        "organisation": "default",
        "key": tenants[40][2],
        "tier": "premium",
        "scope": "tenant",
        "target": "customer-0040",
        "request_id": record.id,
        "user": user.id,
    }
    return filled, names


def run(kind: str, num_records: int, num_tenants: int, times: int) -> dict[str, Any]:
    """Fill a ledger of a kind, serve it, ask every page."""
    with tempfile.TemporaryDirectory() as name, databases(kind, Path(name)) as database_url:
        settings = Settings(data_dir=Path(name), database_url=database_url)
        filled, names = asyncio.run(prepare(settings, num_records, num_tenants))
        print(f"{kind}: {filled}", flush=True)
        token = generate_admin_token()
        with gateway(settings, token) as url:
            rows = measure(url, token, names, times)
    worst = max(rows.values(), key=lambda row: row["p95_ms"])
    return {"filled": filled, "worst_p95_ms": worst["p95_ms"], "pages": rows}


def main() -> None:
    """Run from the command line."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--records", type=int, default=1_000_000)
    flags.add_argument("--tenants", type=int, default=500)
    flags.add_argument("--times", type=int, default=40)
    flags.add_argument("--databases", default="sqlite,postgres")
    flags.add_argument("--dry-run", action="store_true", help="print, write no result")
    asked = flags.parse_args()
    found = {
        kind: run(kind, asked.records, asked.tenants, asked.times)
        for kind in asked.databases.split(",")
    }
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "machine": machine(),
        "records": asked.records,
        "tenants": asked.tenants,
        "goal_p95_ms": GOAL_MS,
        "databases": found,
    }
    if not asked.dry_run:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for kind, one in found.items():
        print(f"{kind}: the slowest page has a p95 of {one['worst_p95_ms']} ms; goal {GOAL_MS}")


if __name__ == "__main__":
    main()
