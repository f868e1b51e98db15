"""A client hangs up in every state a request can be in, through real HTTP, step by step.

The engine's executor is held before each step, so a state is reached by counting steps, and how
many steps it takes to give the blocks back is counted, not timed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door

from engine.core.stats import Snapshot

MOST_STEPS = 2


class Stage:
    """A door whose engine makes one step at a time, and clients that can hang up."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.clients: list[asyncio.Task[Any]] = []
        door.close_gate()

    @property
    def now(self) -> Snapshot:
        now = self.door.services.host.engine.snapshot
        assert now is not None
        return now

    async def ask(self, text: str, **fields: Any) -> None:
        """Send a request; return when the door has taken it."""
        before = len(self.door.services.live)
        body = chat_body(text, ignore_eos=True, temperature=1, **fields)
        self.clients.append(asyncio.create_task(self.door.post(CHAT, body)))
        await eventually(lambda: len(self.door.services.live) == before + 1, "it is taken")

    async def held(self) -> int:
        """Wait until a step is out and held; return its number."""
        found: list[int] = []

        def is_held() -> bool:
            with suppress(FileNotFoundError):
                found[:] = [int((self.door.gate / "held").read_text())]
                return self.now.step == found[0] - 1
            return False

        await eventually(is_held, "a step is held")
        return found[0]

    async def step(self, steps: int = 1) -> None:
        """Let so many steps be made; the next one is then out and held."""
        for _ in range(steps):
            number = await self.held()
            (self.door.gate / "step").touch()
            await eventually(lambda n=number: self.now.step >= n, "the step is over")
            await self.held()

    async def until(self, condition: Callable[[Snapshot], bool]) -> None:
        """Make steps until the engine's state is such."""
        for _ in range(60):
            await self.held()
            if condition(self.now):
                return
            await self.step()
        raise AssertionError(f"never reached: {self.now}")

    def hold_copies(self) -> None:
        (self.door.gate / "copying").touch()

    async def leave(self) -> int:
        """All hang up; let the engine go on, and return how many steps it took to free all.

        The step that is out when they leave is the first of them.
        """
        last_over = await self.held() - 1
        answers = list(self.door.services.live)
        assert answers
        for client in self.clients:
            client.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
        await eventually(lambda: all(a.client_left for a in answers), "the door knows it")
        (self.door.gate / "copying").unlink(missing_ok=True)
        self.door.open_gate()
        await self.door.idle()
        assert self.now.free_host_blocks == self.now.num_host_blocks
        return self.now.step - last_over


async def queued(stage: Stage) -> None:
    await stage.ask("a", max_tokens=500)
    await stage.step()
    await stage.ask("b", max_tokens=500)
    await stage.step(2)
    assert (stage.now.running, stage.now.waiting) == (1, 1)


async def mid_chunk(stage: Stage) -> None:
    await stage.ask("x" * 100, max_tokens=500)
    await stage.step(2)
    assert (stage.now.running, stage.now.output_tokens_total) == (1, 0)
    assert stage.now.computed_tokens_total > 0


async def decoding(stage: Stage) -> None:
    await stage.ask("x", max_tokens=500)
    await stage.until(lambda now: now.output_tokens_total == 4)


async def last_token(stage: Stage) -> None:
    await stage.ask("x", max_tokens=5)
    await stage.until(lambda now: now.output_tokens_total == 4)
    assert stage.now.running == 1


async def displaced(stage: Stage) -> None:
    """The first is demoted by what it used, and a newcomer of a better queue wants its blocks."""
    await stage.ask("x" * 100, max_tokens=150)
    await stage.until(lambda now: now.output_tokens_total == 6)
    stage.hold_copies()
    await stage.ask("y" * 150, max_tokens=150)
    await stage.until(lambda now: now.leaving == 1)


async def copying_out(stage: Stage) -> None:
    await displaced(stage)
    await stage.step()
    assert (stage.now.leaving, stage.now.parked) == (1, 1)


async def parked(stage: Stage) -> None:
    await displaced(stage)
    (stage.door.gate / "copying").unlink()
    await stage.until(lambda now: now.parked == 1 and not now.leaving and not now.returning)
    assert stage.now.free_host_blocks < stage.now.num_host_blocks


async def copying_in(stage: Stage) -> None:
    await parked(stage)
    stage.hold_copies()
    await stage.until(lambda now: now.returning == 1)


STATES = [queued, mid_chunk, decoding, last_token, copying_out, parked, copying_in]
SHAPES: dict[str, dict[str, Any]] = {
    "queued": {"max_batch_requests": 1},
    "mid_chunk": {"max_batch_tokens": 16},
}
SWAPPING = {"policy": "fastserve", "policy_options": (("starvation_s", 1e6),)}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("reach", STATES, ids=lambda reach: reach.__name__)
async def test_hanging_up_frees_every_block_within_two_steps(
    tmp_path: Path, reach: Callable[[Stage], Awaitable[None]], stream: bool
) -> None:
    """The step that was out, and one more: then nothing is held, on the device or the host."""
    name = reach.__name__
    swaps = name in ("copying_out", "parked", "copying_in")
    engine = {"prefix_caching": False} | (SWAPPING if swaps else SHAPES.get(name, {}))
    options = {"step_s": 0}
    if swaps:
        options |= {"num_blocks": 22, "host_blocks": 100, "elapsed_ns": 20_000_000}
    async with open_door(tmp_path, engine=engine, options=options) as door:
        stage = Stage(door)
        asked = stage.ask
        stage.ask = lambda text, **fields: asked(text, stream=stream, **fields)  # type: ignore[method-assign]
        try:
            await reach(stage)
            assert await stage.leave() <= MOST_STEPS
        finally:
            door.open_gate()
            (door.gate / "copying").unlink(missing_ok=True)
        # A loop hears of an abort between two steps: the one that was out made the last token.
        expected = "length" if reach is last_token else "cancelled"
        assert {row.finish_reason for row in await door.usage()} == {expected}
