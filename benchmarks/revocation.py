"""How long a revoked key still works: for new requests on every worker, and for streams that run.

Each try makes a key, begins streams with it, and asks with it over several connections all the time
(every 10 ms each; they lie with all workers). Then the key is revoked in the ledger by another
process. `requests`: from the call that revokes until every connection was refused. `streams`: until
every stream was ended with the error. Both are of the slowest one of a try.

    postgres, told      the workers are told when the change is committed
    postgres, polling   nobody is told: written as the ledger writes it, but without NOTIFY
    sqlite, polling     one worker; SQLite tells nobody

The workers are those of `tiergate serve --workers N`, on a Postgres and a Redis started for the
run; the engine sleeps through its steps. Run: python -m benchmarks.revocation [--tries 100]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from sqlalchemy import text

from benchmarks.limits import redis_server
from benchmarks.scheduling.points import machine
from benchmarks.sse_client import CHAT
from benchmarks.workers_under_test import HOST, settings_of, workers_process
from engine.core.clock import MonotonicClock, utc_now
from gateway.ledger import Ledger, ledger
from migrations import runner
from tenants.keys import generate_admin_token
from tenants.models import UtcDateTime

RESULT = Path(__file__).parent / "results" / "revocation.json"
CLOCK = MonotonicClock()
GOAL_MS = 2000
CONNECTIONS, STREAMS = 8, 4
PAUSE_S = 0.01
MANY_TOKENS = 1500
TENANT = "revoked"

Revoke = Callable[[Ledger, str], Awaitable[None]]


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Run a Postgres of our own, durable as in earnest; yields its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        sys.exit("no Postgres here: apt-get install postgresql")
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        user = pwd.getpwnam("postgres")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="tg-pg-", dir="/tmp"))
    if who:
        os.chown(folder, who["user"], who["group"])
    flags = ["-D", folder / "data", "-U", "ledger", "-A", "trust", "-E", "UTF8", "--locale=C"]
    subprocess.run([found[-1], *flags], check=True, capture_output=True, cwd=folder, **who)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
    binary = found[-1].with_name("postgres")
    server = subprocess.Popen(
        [binary, "-D", folder / "data", *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **who,
    )
    try:
        while not list(folder.glob(".s.PGSQL.*")):
            time.sleep(0.1)
        time.sleep(0.5)
        yield f"postgresql://ledger@/postgres?host={folder}"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Try:
    """One try, in milliseconds from the call that revokes."""

    call_ms: float
    requests_ms: float
    streams_ms: float


class Asking:
    """One connection that asks with a key all the time, until it is refused."""

    def __init__(self) -> None:
        self.was_let_in = asyncio.Event()

    async def run(self, port: int, key: str) -> int:
        """Return when the first refusal was here (ns)."""
        reader, writer = await asyncio.open_connection(HOST, port)
        head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
        try:
            while True:
                writer.write(head.encode())
                raw = await reader.readuntil(b"\r\n\r\n")
                length = int(raw.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                status = int(raw[9:12])
                if status == 401:
                    return CLOCK.now_ns()
                assert status == 200, raw
                self.was_let_in.set()
                await asyncio.sleep(PAUSE_S)
        finally:
            writer.close()


class Stream:
    """One stream that runs until it is ended."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    async def run(self, port: int, key: str) -> int:
        """Return when the error was here that ended it (ns)."""
        body = {
            "model": "paced",
            "messages": [{"role": "user", "content": "Go on."}],
            "max_tokens": MANY_TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        content = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/"
            f"json\r\nauthorization: Bearer {key}\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(head.encode() + content)
            assert (await reader.readuntil(b"\r\n\r\n"))[9:12] == b"200"
            while True:
                event = await reader.readuntil(b"\n\n")
                if b'"error"' in event:
                    assert b"invalid_api_key" in event, event
                    return CLOCK.now_ns()
                assert b"[DONE]" not in event, "a stream ended before its key was revoked"
                self.has_begun.set()
        finally:
            writer.close()


async def revoke(opened: Ledger, key_id: str) -> None:
    await opened.repository.revoke_key(key_id, utc_now())


async def revoke_untold(opened: Ledger, key_id: str) -> None:
    """Write what `revoke_key` writes, without the notice."""
    close = text("UPDATE api_keys SET revoked_at = :now WHERE id = :id")
    now = UtcDateTime().process_bind_param(utc_now(), None)  # type: ignore[arg-type]
    async with opened.database.write() as session:
        await session.execute(close, {"now": now, "id": key_id})
        await session.execute(text("UPDATE counters SET value = value + 1 WHERE name = 'keys'"))


async def one_try(port: int, opened: Ledger, how: Revoke) -> Try:
    issued = await opened.repository.create_key(TENANT, utc_now())
    key, key_id = issued.plaintext, issued.record.id
    asking = [Asking() for _ in range(CONNECTIONS)]
    streams = [Stream() for _ in range(STREAMS)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        refused = [group.create_task(one.run(port, key)) for one in asking]
        ended = [group.create_task(one.run(port, key)) for one in streams]
        await asyncio.gather(
            *(one.was_let_in.wait() for one in asking), *(one.has_begun.wait() for one in streams)
        )
        # At any moment between two polls.
        await asyncio.sleep((issued.record.created_at.microsecond % 500_000) / 1e6)
        begin_ns = CLOCK.now_ns()
        await how(opened, key_id)
        call_ns = CLOCK.now_ns() - begin_ns
    slowest = [max(task.result() for task in tasks) - begin_ns for tasks in (refused, ended)]
    return Try(call_ns / 1e6, *(ns / 1e6 for ns in slowest))


@contextlib.asynccontextmanager
async def field(workers: int, redis_url: str, url: str | None) -> AsyncIterator[tuple[int, Ledger]]:
    """Run workers on a new ledger; yields their port and the ledger as another process has it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        more: dict[str, Any] = {} if url is None else {"database_url": url}
        settings = settings_of(folder, redis_url, workers, more)
        if url is not None:
            await runner.upgrade(url)
        async with ledger(settings, lambda _line: None) as opened:
            await opened.repository.create_tenant(TENANT, "premium", utc_now())
            token = generate_admin_token()
            async with workers_process(folder, redis_url, workers, token, more) as port:
                yield port, opened


def figures(tries: list[Try]) -> dict[str, Any]:
    def of(name: str) -> dict[str, float]:
        values = sorted(getattr(one, name) for one in tries)
        at = max(0, -(-99 * len(values) // 100) - 1)
        return {
            "p50_ms": round(statistics.median(values), 1),
            "p99_ms": round(values[at], 1),
            "max_ms": round(values[-1], 1),
        }

    named = {n: of(f"{n}_ms") for n in ("call", "requests", "streams")}
    slowest = max(max(one.requests_ms, one.streams_ms) for one in tries)
    return {"tries": len(tries), **named, "within_goal": slowest <= GOAL_MS}


async def measure(tries: int, workers: int, redis_url: str) -> dict[str, Any]:
    scenes: dict[str, Any] = {}
    with postgres_server() as url:
        async with field(workers, redis_url, url) as (port, opened):
            for name, how in (("told", revoke), ("polling", revoke_untold)):
                done = [await one_try(port, opened, how) for _ in range(tries)]
                scenes[f"postgres, {name}, {workers} workers"] = figures(done)
                print(f"postgres, {name}:", json.dumps(figures(done)))
    async with field(1, redis_url, None) as (port, opened):
        done = [await one_try(port, opened, revoke) for _ in range(tries)]
        scenes["sqlite, polling, 1 worker"] = figures(done)
        print("sqlite, polling:", json.dumps(figures(done)))
    return scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    busy = os.getloadavg()
    with redis_server() as url:
        scenes = uvloop.run(measure(args.tries, args.workers, url))
    if args.dry_run:
        return
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine() | {"load_average": [round(load, 1) for load in busy]},
        "goal_ms": GOAL_MS,
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "scenes": scenes,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
