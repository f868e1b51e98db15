"""The admin API at several workers: a login at one is one at all, and so is its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from door_kit import eventually
from redis_kit import RedisServer
from workers_kit import House, open_house

from gateway.admin.roles import V1

PASSWORD = "a long enough password"
TRIES = 8  # on connections of their own: no worker is left out


async def statuses(
    house: House, path: str, headers: dict[str, str], method: str = "GET"
) -> set[int]:
    """Return what a path answers on many connections at once, so that every worker is asked."""
    async with house.client() as http:
        answers = await asyncio.gather(
            *(http.request(method, path, headers=headers) for _ in range(TRIES))
        )
    return {answer.status_code for answer in answers}


async def made(house: House, path: str, body: dict[str, object]) -> httpx.Response:
    async with house.client() as http:
        return await http.post(f"{V1}/{path}", json=body, headers=house.admin())


async def test_a_login_is_one_at_every_worker_and_ends_at_every_one(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """What one worker has let in all know, and whom one has shut out none lets in."""
    async with open_house(tmp_path, redis_server.url, workers=3) as house:
        user = {"name": "ann", "role": "operator", "password": PASSWORD}
        assert (await made(house, "users", user)).status_code == 201
        async with house.client() as http:
            login = {"user": "ann", "password": PASSWORD}
            entered = await http.post("/admin/api/login", json=login)
        cookie = {"cookie": entered.headers["set-cookie"].partition(";")[0]}
        assert await statuses(house, f"{V1}/tenants", cookie) == {200}
        own = cookie | {"sec-fetch-site": "same-origin"}
        async with house.client() as http:
            assert (await http.post("/admin/api/logout", headers=own)).status_code == 200
        assert await statuses(house, f"{V1}/tenants", cookie) == {401}


async def test_a_key_made_and_closed_at_one_worker_is_so_at_all(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Also a tier's change: whichever worker is asked, the new one serves."""
    async with open_house(tmp_path, redis_server.url, workers=3) as house:
        listed = (await house.get(f"{V1}/tenants")).json()["data"]
        tenant = listed[0]["name"]
        key = (await made(house, f"tenants/{tenant}/keys", {})).json()
        bearer = {"authorization": f"Bearer {key['key']}"}
        assert await statuses(house, "/v1/models", bearer) == {200}
        assert (await made(house, f"keys/{key['id']}/revoke", {})).status_code == 200

        async def is_closed() -> bool:
            return await statuses(house, "/v1/models", bearer) == {401}

        await eventually(is_closed, "every worker refuses the key")
