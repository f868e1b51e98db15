"""The admin pages at several workers: whichever is asked shows the requests and doors of all."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from door_kit import eventually
from redis_kit import RedisServer
from workers_kit import House, open_house

WORKERS, REQUESTS = 2, 12


async def first_points(house: House, http: Any) -> dict[str, Any]:
    """Return the first event of a page's stream."""
    text = ""
    async with http.stream("GET", "/admin/live/overview", headers=house.admin()) as answer:
        assert answer.status_code == 200
        async for part in answer.aiter_text():
            text += part
            if "\n\n" in text:
                break
    points: dict[str, Any] = json.loads(text.partition("data: ")[2].partition("\n")[0])
    return points


async def test_every_worker_draws_the_requests_of_all(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Each request is one dot, no matter whose door it came to, and none is two."""
    async with open_house(tmp_path, redis_server.url, workers=WORKERS) as house:
        answers = await asyncio.gather(*(house.post() for _ in range(REQUESTS)))
        assert {answer.status_code for answer in answers} == {200}
        for _ in range(4):  # on connections of their own: either worker may be asked
            async with house.client() as http:
                counts: list[int] = []

                async def all_there(client: Any = http, seen: list[int] = counts) -> bool:
                    seen.append(len((await first_points(house, client))["dots"]))
                    return seen[-1] == REQUESTS

                await eventually(all_there, "all dots are there")
                assert max(counts) == REQUESTS
        async with house.client() as http:
            page = (await http.get("/admin/engine", headers=house.admin())).text
        assert [f'<th scope="row">{n}</th>' in page for n in range(WORKERS)] == [True] * WORKERS


async def test_what_is_under_way_anywhere_is_listed_by_every_worker(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """All of them, with their number; the filter goes with the question."""
    async with open_house(tmp_path, redis_server.url, workers=WORKERS) as house:
        (house.gate / "closed").touch()
        waits = [asyncio.create_task(house.post()) for _ in range(REQUESTS)]
        waits.append(asyncio.create_task(house.post(tier="free")))

        async def doors() -> list[int]:
            return [one["waiting"] for one in (await house.engine())["workers"]]

        async def all_in() -> bool:
            return sum(await doors()) == REQUESTS + 1

        try:
            await eventually(all_in, "all requests were let in")
            assert all(await doors()), "both workers have some"
            for _ in range(4):
                for query, num in (("", REQUESTS + 1), ("?tenant=premium-tenant", REQUESTS)):
                    page = (await house.get(f"/admin/requests{query}")).text
                    listed = page.partition('id="open"')[2].partition("</section>")[0]
                    assert listed.count('<tr><th scope="row">') == num
        finally:
            (house.gate / "closed").unlink()
        assert {answer.status_code for answer in await asyncio.gather(*waits)} == {200}
