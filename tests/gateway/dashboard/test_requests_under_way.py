"""What is under way is on the page of requests, however many others came since."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body

from gateway.dashboard.requests import MOST_OPEN

NEWER = 330


async def under_way(door: Door, query: str = "") -> str:
    """Return the part of the page that tells what is under way, empty where there is none."""
    login = httpx.BasicAuth("x", door.admin_token)
    text = (await door.http.get(f"/admin/requests{query}", auth=login)).text
    return text.partition('id="open"')[2].partition("</section>")[0]


async def held(door: Door, num: int, tier: str) -> list[asyncio.Task[Any]]:
    """Send requests that wait at the engine, whose gate is closed."""
    before = door.services.admission.waiting
    sent = [asyncio.create_task(door.post(CHAT, chat_body(), tier)) for _ in range(num)]
    await eventually(lambda: door.services.admission.waiting == before + num, "all are let in")
    return sent


async def one_held(door: Door) -> tuple[list[asyncio.Task[Any]], str]:
    """Close the engine's gate before the first request; return what waits, and its id."""
    door.close_gate()
    waits = await held(door, 1, "premium")
    (oldest,) = [record.id for record in door.services.journal.newest()]
    return waits, oldest


async def test_a_request_is_under_way_until_it_ends_however_many_come_after_it(
    tmp_path: Path,
) -> None:
    async with open_door(tmp_path) as door:
        waits, oldest = await one_held(door)
        try:
            for _ in range(NEWER):
                answer = await door.post(TEXT, text_body(max_tokens=0))  # needs no engine
                assert answer.status_code == 200
            assert len(door.services.journal) > NEWER
            assert oldest in await under_way(door)
        finally:
            door.open_gate()
        await asyncio.gather(*waits)
        await door.idle()
        assert oldest not in await under_way(door)


async def test_the_filter_comes_before_the_bound_and_the_page_says_how_many_there_are(
    tmp_path: Path,
) -> None:
    """The one of another tenant is behind more newer ones than are listed."""
    async with open_door(tmp_path) as door:
        waits, oldest = await one_held(door)
        waits += await held(door, MOST_OPEN + 5, "free")
        try:
            everything = await under_way(door)
            assert everything.count("<tr>") == MOST_OPEN + 1
            assert f"The latest {MOST_OPEN} of {MOST_OPEN + 6};" in everything
            assert oldest not in everything
            free = await under_way(door, "?tier=free")
            assert f"The latest {MOST_OPEN} of {MOST_OPEN + 5} that fit;" in free
            for query in ("?tier=premium", "?tenant=premium-tenant"):
                mine = await under_way(door, query)
                assert oldest in mine
                assert "<caption>" not in mine
            assert await under_way(door, f"?tier={'x' * 5000}") == ""
        finally:
            door.open_gate()
        await asyncio.gather(*waits)
