"""Shutting down: new requests are refused, running answers finish or are told why they do not."""

from __future__ import annotations

import asyncio
from pathlib import Path

from door_kit import CHAT, Door, chat_body, eventually, open_door, sse


def start_drain(door: Door, timeout_s: float, hurry: asyncio.Event) -> asyncio.Task[int]:
    """Do what `tiergate serve` does on its first signal."""
    door.services.admission.draining = True
    return asyncio.create_task(door.services.live.drain(timeout_s, hurry))


async def test_running_answers_finish_and_new_ones_are_refused(tmp_path: Path) -> None:
    """Readiness falls first; a stream that is open goes on to its [DONE]."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(stream=True, ignore_eos=True, max_tokens=40)
        running = asyncio.create_task(door.post(CHAT, body))
        await eventually(lambda: len(door.services.live) == 1, "a stream runs")
        drain = start_drain(door, 30, asyncio.Event())
        ready = await door.http.get("/readyz")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["draining"])
        assert (await door.http.get("/livez")).status_code == 200
        refused = await door.post(CHAT, chat_body())
        assert refused.status_code == 503
        assert refused.headers["x-tiergate-reason"] == "draining"
        assert "retry-after" in refused.headers
        assert sse((await running).text)[-1] == "[DONE]"
        assert await drain == 0


async def test_what_runs_too_long_is_ended_with_an_error(tmp_path: Path) -> None:
    """After the drain time a stream ends with an error event, a plain answer with a 503."""
    async with open_door(tmp_path, options={"step_s": 0.05}) as door:
        body = chat_body(ignore_eos=True, max_tokens=900)
        streamed = asyncio.create_task(door.post(CHAT, body | {"stream": True}))
        plain = asyncio.create_task(door.post(CHAT, body))
        await eventually(lambda: len(door.services.live) == 2, "both run")
        await asyncio.sleep(0.2)
        assert await start_drain(door, 0.1, asyncio.Event()) == 2
        *_, last = sse((await streamed).text)
        assert last["error"]["code"] == "draining"
        assert (await plain).status_code == 503
        assert (await plain).headers["x-tiergate-reason"] == "draining"
        await door.idle()


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """Being told to hurry ends the running answers at once, still with a proper error."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(ignore_eos=True, max_tokens=900, stream=True)
        running = asyncio.create_task(door.post(CHAT, body))
        await eventually(lambda: len(door.services.live) == 1, "a stream runs")
        hurry = asyncio.Event()
        drain = start_drain(door, 3600, hurry)
        hurry.set()
        assert await drain == 1
        assert "[DONE]" not in (await running).text


async def test_nothing_running_is_nothing_to_wait_for(door: Door) -> None:
    """An idle gateway drains at once."""
    async with asyncio.timeout(5):
        assert await start_drain(door, 3600, asyncio.Event()) == 0
