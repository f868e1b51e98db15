"""A whole gateway for tests: the real application, server, ledger and engine core, on a free port.

Only the executor is made up (talking_executor.py). The engine runs in a thread, or in its own
process where a test kills it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from tiny_tokenizer import write_tokenizer

from engine.core.clock import utc_now
from engine.serving.config import EngineConfig
from engine.serving.inprocess import InProcessEngine
from engine.serving.process import EngineProcess
from gateway.app import create_app
from gateway.ledger import Ledger, ledger
from gateway.server import Server, listen, server_config
from gateway.services import Services
from gateway.settings import Settings
from tenants.keys import generate_admin_token
from tenants.usage import list_usage
from tenants.values import UsageRecord

DEADLINE_S = 30.0  # only a test that fails ever waits this long
HERE = str(Path(__file__).parent)
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Door:
    """A running gateway and the means to talk to it."""

    url: str
    services: Services
    ledger: Ledger
    server: Server
    keys: dict[str, str]
    admin_token: str
    http: httpx.AsyncClient
    gate: Path

    def openai(self, tier: str = "premium", **options: Any) -> AsyncOpenAI:
        """Return the official client, with retries off unless asked for."""
        options = {"max_retries": 0, "timeout": DEADLINE_S} | options
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.keys[tier], **options)

    def auth(self, tier: str = "premium") -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tier]}"}

    async def post(self, path: str, body: Any, tier: str = "premium", **more: Any) -> Any:
        """Send a request; `body` is JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = self.auth(tier) | {"content-type": "application/json"} | more
        return await self.http.post(path, content=content, headers=headers)

    def close_gate(self) -> None:
        """Hold the engine before its next step."""
        (self.gate / "closed").touch()

    def open_gate(self) -> None:
        """Let it go on."""
        (self.gate / "closed").unlink(missing_ok=True)

    async def usage(self, at_least: int = 1) -> list[UsageRecord]:
        """Return the usage rows once there are so many."""
        rows: list[UsageRecord] = []

        async def enough() -> bool:
            rows[:] = await list_usage(self.ledger.database, limit=1000)
            return len(rows) >= at_least

        await eventually(enough, f"{at_least} usage rows")
        return rows

    async def usage_of(self, answer_id: str, num_rows: int = 1) -> list[UsageRecord]:
        """Return the usage rows of one answer once there are so many."""
        rows: list[UsageRecord] = []

        async def enough() -> bool:
            everything = await list_usage(self.ledger.database, limit=1000)
            rows[:] = [row for row in everything if row.request_id.startswith(answer_id)]
            return len(rows) >= num_rows

        await eventually(enough, f"{num_rows} usage rows of {answer_id}")
        return rows

    async def idle(self) -> None:
        """Wait until no request holds anything anywhere."""

        def nothing_held() -> bool:
            now = self.services.host.engine.snapshot
            return (
                len(self.services.live) == 0
                and self.services.admission.waiting == 0
                and self.services.admission.waiting_prompt_tokens == 0
                and now is not None
                and now.waiting + now.running + now.parked == 0
                and now.free_blocks == now.num_blocks
            )

        await eventually(nothing_held, "nothing is held")


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait until `condition` (plain or async) holds; fail with `what` if it never does."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                held = condition()
                if asyncio.iscoroutine(held):
                    held = await held
                if held:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


def chat_body(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    """A chat request that is answered with the alphabet unless told otherwise."""
    messages = [{"role": "user", "content": text}]
    return {"model": "talker", "messages": messages, "temperature": 0} | fields


def text_body(prompt: Any = "Say:", **fields: Any) -> dict[str, Any]:
    """A completion request, likewise."""
    return {"model": "talker", "prompt": prompt, "temperature": 0} | fields


def sse(text: str) -> list[Any]:
    """Return the events of a stream: JSON values, and "[DONE]"."""
    events: list[Any] = []
    for block in text.split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            data = block.removeprefix("data: ")
            assert "\n" not in data
            events.append(data if data == "[DONE]" else json.loads(data))
    return events


async def make_keys(opened: Ledger) -> dict[str, str]:
    """Make a tenant with a key in each seeded tier."""
    keys = {}
    for tier in ("premium", "free"):
        tenant = await opened.repository.create_tenant(f"{tier}-tenant", tier, utc_now())
        keys[tier] = (await opened.repository.create_key(tenant.id, utc_now())).plaintext
    return keys


@asynccontextmanager
async def open_door(
    folder: Path,
    *,
    process: bool = False,
    settings: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    stall_s: float = 10.0,
) -> AsyncIterator[Door]:
    """Run a gateway for the length of a block."""
    gate = folder / "gate"
    gate.mkdir(exist_ok=True)
    values: dict[str, Any] = {"data_dir": folder / "data", "port": 0, "usage_flush_s": 0.02}
    chosen = Settings(**(values | {"key_poll_s": 0.1} | (settings or {})))
    chosen.data_dir.mkdir(exist_ok=True)
    pairs = {"gate": str(gate)} | (options or {})
    config = EngineConfig(
        **(
            {
                "model": str(write_tokenizer(folder / "model")),
                "policy": "fcfs",
                "executor": "talking_executor:make",
            }
            | (engine or {})
        ),
        import_paths=(HERE,),
        nice=0,
        executor_options=tuple((name, str(value)) for name, value in pairs.items()),
    )
    bound = listen("127.0.0.1", 0)
    async with ledger(chosen, lambda _line: None) as opened:
        keys = await make_keys(opened)
        token = generate_admin_token()
        client = EngineProcess(config) if process else InProcessEngine(config)
        tiers = await opened.repository.list_tiers()
        app = create_app(chosen, client, opened, tiers, admin_token=token, stall_s=stall_s)
        server = Server(server_config(app), lambda _count: None)
        server.loop = asyncio.get_running_loop()
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as http:
            services: Services = app.state.services
            await eventually(services.host.started.is_set, "the engine is ready")
            door = Door(url, services, opened, server, keys, token, http, gate)
            try:
                yield door
            finally:
                door.open_gate()
                server.should_exit = True
        await serving
