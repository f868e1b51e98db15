"""Several real workers for a test: processes, one engine, one ledger, one Redis; all at one port.

Only the executor is made up (talking_executor.py). The parent runs in the test's own event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from door_kit import CHAT, HERE, chat_body, eventually, make_keys
from tiny_tokenizer import write_tokenizer

from engine.core.clock import utc_now
from engine.serving.client import EngineInfo
from engine.serving.config import EngineConfig
from gateway.ledger import ledger
from gateway.server import listen
from gateway.settings import Settings
from gateway.workers.parent import WorkersRun
from migrations import runner
from tenants.database import Database
from tenants.keys import generate_admin_token
from tenants.slo import SloRecord
from tenants.slo_store import read_records
from tenants.usage import list_usage
from tenants.values import UsageRecord

DEADLINE_S = 60.0  # only a test that fails ever waits this long


@dataclass(frozen=True, slots=True)
class House:
    """Running workers and the means to talk to them."""

    url: str
    run: WorkersRun
    settings: Settings
    keys: dict[str, str]
    admin_token: str
    gate: Path
    serving: asyncio.Task[None]

    def client(self) -> httpx.AsyncClient:
        """Return a client that makes a connection for each request: any worker may get it."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self.url, timeout=DEADLINE_S, limits=limits)

    def auth(self, tier: str = "premium") -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tier]}"}

    def admin(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.admin_token}"}

    async def post(self, body: dict[str, Any] | None = None, tier: str = "premium") -> Any:
        async with self.client() as http:
            return await http.post(CHAT, json=body or chat_body(), headers=self.auth(tier))

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with self.client() as http:
            return await http.get(path, headers=self.admin() | headers)

    @property
    def pids(self) -> list[int]:
        assert self.run.pool is not None
        return self.run.pool.pids

    @property
    def engine_pid(self) -> int:
        assert self.run.host is not None
        assert self.run.host.info is not None
        return self.run.host.info.pid

    async def rows(self) -> list[UsageRecord]:
        """Return all usage rows in the ledger."""
        database = await Database.open(self.settings.database_url)
        try:
            return await list_usage(database, limit=100_000)
        finally:
            await database.close()

    async def judged(self) -> list[SloRecord]:
        """Return all records of promises in the ledger, the oldest first."""
        database, now = await Database.open(self.settings.database_url), utc_now()
        span = {"since": now - timedelta(hours=1), "until": now + timedelta(hours=1)}
        try:
            return [record async for record in read_records(database, **span)]
        finally:
            await database.close()

    async def usage(self, at_least: int) -> list[UsageRecord]:
        """Return the usage rows once there are so many."""
        rows: list[UsageRecord] = []

        async def enough() -> bool:
            rows[:] = await self.rows()
            return len(rows) >= at_least

        await eventually(enough, f"{at_least} usage rows")
        return rows

    async def engine(self) -> dict[str, Any]:
        """Return the engine's state, as any worker sees it."""
        return dict((await self.get("/admin/api/engine")).json())

    async def idle(self) -> dict[str, Any]:
        """Wait until the engine holds nothing; return its last state."""
        state: dict[str, Any] = {}

        async def is_idle() -> bool:
            state.update(await self.engine())
            now = state["snapshot"]
            return (
                now is not None
                and now["waiting"] + now["running"] + now["parked"] == 0
                and now["free_blocks"] == now["num_blocks"]
            )

        await eventually(is_idle, "the engine holds nothing")
        return state


def engine_of(folder: Path, engine: dict[str, Any], options: dict[str, Any]) -> EngineConfig:
    """Return the config of the talking engine."""
    values = {
        "model": str(write_tokenizer(folder / "model")),
        "policy": "fcfs",
        "executor": "talking_executor:make",
    }
    pairs = tuple((name, str(value)) for name, value in options.items())
    return EngineConfig(**(values | engine), import_paths=(HERE,), nice=0, executor_options=pairs)


@asynccontextmanager
async def open_house(
    folder: Path,
    redis_url: str,
    *,
    workers: int = 2,
    settings: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> AsyncIterator[House]:
    """Run workers for the length of a block; all is drained, and must end well, afterwards."""
    gate = folder / "gate"
    gate.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "data_dir": folder / "data",
        "redis_url": redis_url,
        "workers": workers,
        "usage_flush_s": 0.05,
        "key_poll_s": 0.1,
        "drain_timeout_s": 5,
        "log_level": "warning",
    }
    chosen = Settings(**(values | (settings or {})))
    chosen.data_dir.mkdir(exist_ok=True)
    if chosen.database_url.startswith("postgresql"):
        await runner.upgrade(chosen.database_url)
    async with ledger(chosen, lambda _line: None) as opened:
        keys = await make_keys(opened)
    token = generate_admin_token()
    config = engine_of(folder, engine or {}, {"gate": str(gate)} | (options or {}))
    started = asyncio.Event()

    def on_started(_info: EngineInfo | None) -> None:
        started.set()

    with listen("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        run = WorkersRun(chosen, config, token, bound, lambda _stage, _fraction: None)
        serving = asyncio.create_task(run.run(on_started=on_started))
        waiting = asyncio.create_task(started.wait())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            yield House(url, run, chosen, keys, token, gate, serving)
        finally:
            waiting.cancel()
            (gate / "closed").unlink(missing_ok=True)
            if not serving.done():
                run.stop()
            async with asyncio.timeout(DEADLINE_S):
                await serving
