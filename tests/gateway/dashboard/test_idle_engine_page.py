"""The engine's page while nobody runs: no table of it says that somebody does."""

from __future__ import annotations

from pathlib import Path

import httpx
from door_kit import CHAT, Door, chat_body, eventually, open_door


async def batch(door: Door) -> str:
    """Return the table of who computes."""
    login = httpx.BasicAuth("x", door.admin_token)
    text = (await door.http.get("/admin/engine", auth=login)).text
    return text.partition('id="batch"')[2].partition("</table>")[0]


async def test_the_batch_is_empty_once_nobody_runs(tmp_path: Path) -> None:
    """Though the load that the engine told last, which forecasts rest on, is of the last step."""
    async with open_door(tmp_path) as door:
        engine = door.services.host.engine
        # Loads are looked at a few times a second: long answers are seen while they run.
        for _ in range(20):
            assert (await door.post(CHAT, chat_body(max_tokens=20))).status_code == 200
            await door.idle()
            now = engine.snapshot
            if now is not None and now.load is not None and now.load.classes:
                break
        else:
            raise AssertionError("no load was told that has somebody in it")
        page: list[str] = []

        async def is_empty() -> bool:
            page[:] = [await batch(door)]
            return "Nobody is at the engine." in page[0]

        await eventually(is_empty, "the page has taken a look since")
        assert "premium" not in page[0]
        assert "As the engine told it" not in page[0]
