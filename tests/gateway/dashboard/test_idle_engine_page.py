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
    """Whatever was at the engine in its last step, and however long ago that was."""
    async with open_door(tmp_path) as door:
        for num_tokens in (1, 2, 20):
            answer = await door.post(CHAT, chat_body(max_tokens=num_tokens))
            assert answer.status_code == 200
            await door.idle()

            async def is_empty() -> bool:
                return "Nobody is at the engine" in await batch(door)

            await eventually(is_empty, "the page has taken a look since")
            assert "premium" not in await batch(door)
            assert "As the engine told it" not in await batch(door)
