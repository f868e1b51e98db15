"""What the serving tests share: configs, orders, readers, and waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import scripted_executor as scripted

from engine.core.clock import MonotonicClock
from engine.core.request import RequestOrder
from engine.core.stats import TokenEvent
from engine.serving.client import TokenStream
from engine.serving.config import EngineConfig
from engine.serving.inprocess import InProcessEngine
from engine.serving.process import EngineProcess

DEADLINE_S = 30.0  # generous: only a test that fails ever waits this long
EXECUTOR = "scripted_executor:make"
HERE = str(Path(__file__).parent)

Client = EngineProcess | InProcessEngine
ClientMaker = Callable[[EngineConfig], Client]
ProcessMaker = Callable[..., EngineProcess]


def config_of(*, options: dict[str, object] | None = None, **fields: object) -> EngineConfig:
    """A config of the scripted executor; `options` are its own, `fields` those of EngineConfig."""
    pairs = tuple((name, str(value)) for name, value in (options or {}).items())
    settings = {"model": "scripted", "executor": EXECUTOR, "import_paths": (HERE,), "nice": 0}
    return EngineConfig(**(settings | {"executor_options": pairs} | fields))  # type: ignore[arg-type]


def order_of(
    request_id: str, *, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 8, **fields: object
) -> RequestOrder:
    now_ns = MonotonicClock().now_ns()
    return RequestOrder(request_id, prompt, scripted.greedy(max_tokens), now_ns, **fields)  # type: ignore[arg-type]


async def read(stream: TokenStream) -> list[TokenEvent]:
    """Read a stream to its end."""
    events: list[TokenEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        while new := await stream.next_events():
            events += new
    return events


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` if it never does."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - files and processes set no asyncio.Event
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


class Gate:
    """Holds the scripted executor in the middle of a step; see its docstring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def close(self) -> None:
        (self.folder / "closed").touch()

    def open(self) -> None:
        (self.folder / "closed").unlink(missing_ok=True)

    async def step_waits(self) -> None:
        await eventually((self.folder / "waiting").exists, "a step waits at the gate")
