"""An engine that owes work and says nothing: how long that is counted, and what the pages say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
from door_kit import CHAT, chat_body, eventually, open_door

from engine.core.clock import NS_PER_S
from engine.core.stats import Snapshot
from gateway.engine_watch import EngineWatch

IDLE = Snapshot(1, 0, 0, 0, 0, 0, 60, 100)
BUSY = replace(IDLE, running=1)


def silent_s(watch: EngineWatch, snapshot: Snapshot, at_s: float) -> float:
    return watch.silent_ns(snapshot, int(at_s * NS_PER_S)) / NS_PER_S


def looked(watch: EngineWatch, snapshot: Snapshot, at_s: float, *, owes: bool = False) -> float:
    watch.look(snapshot, int(at_s * NS_PER_S), owes=owes)
    return silent_s(watch, snapshot, at_s)


def test_an_engine_that_owes_nothing_is_not_silent_however_old_its_word() -> None:
    watch = EngineWatch()
    assert looked(watch, IDLE, 500.0) == 0
    assert watch.silent_ns(None, 0) == 0


def test_silence_begins_when_work_is_owed_and_ends_with_a_word() -> None:
    """Whoever waits at the door counts from then on, not from the engine's last word before."""
    watch = EngineWatch()
    looked(watch, IDLE, 100.0)
    assert looked(watch, IDLE, 200.0, owes=True) == 0
    assert looked(watch, IDLE, 204.0, owes=True) == 4
    heard = replace(BUSY, at_ns=205 * NS_PER_S)
    assert looked(watch, heard, 206.0) == 1
    assert silent_s(watch, heard, 215.0) == 10, "streams that run are owed their next token"
    assert looked(watch, replace(IDLE, at_ns=216 * NS_PER_S), 300.0) == 0


async def test_pages_say_that_the_engine_is_silent_while_somebody_waits(tmp_path: Path) -> None:
    """The page does not call it ready; who waits is counted; and it is over with the next word."""
    async with open_door(tmp_path) as door:

        async def page(path: str) -> str:
            login = httpx.BasicAuth("x", door.admin_token)
            return (await door.http.get(path, auth=login)).text

        await eventually(lambda: door.services.watch.history(), "a first look")
        assert "Ready to serve" in await page("/admin")
        door.close_gate()
        waits = [asyncio.create_task(door.post(CHAT, chat_body(max_tokens=2))) for _ in range(2)]
        try:

            async def is_said() -> bool:
                return "The engine has been silent for" in await page("/admin")

            await eventually(is_said, "the silence is told")
            for path in ("/admin", "/admin/engine"):
                text = await page(path)
                assert "Not answering: the engine is silent" in text
                assert "Ready to serve" not in text
                assert "there is nothing to do" not in text
            assert "2 requests wait for a first token" in await page("/admin")
            (one, _) = [record.id for record in door.services.journal.newest()]
            text = await page(f"/admin/requests/{one}")
            assert "under way for" in text
            assert "first token overdue by" in text
            assert "the first token was due" in text
            assert "The engine was not heard" in text
        finally:
            door.open_gate()
        assert {answer.status_code for answer in await asyncio.gather(*waits)} == {200}
        await door.idle()

        async def is_well() -> bool:
            return "Ready to serve" in await page("/admin")

        await eventually(is_well, "it is well again")
