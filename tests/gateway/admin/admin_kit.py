"""What tests of the admin API share: a gateway with users of every role, and how each calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from door_kit import Door, open_door

from engine.core.clock import utc_now
from gateway.admin.roles import V1
from gateway.passwords import Passwords
from tenants.values import Role

PASSWORD = "a long enough password"
OWN = {"sec-fetch-site": "same-origin"}
TOKEN = "token"


@dataclass(frozen=True, slots=True)
class Office:
    """A running gateway, and a client for each role; `TOKEN` has the admin token."""

    door: Door
    people: dict[str, httpx.AsyncClient]

    async def ask(
        self, method: str, path: str, body: Any = None, *, who: str = TOKEN, **headers: str
    ) -> httpx.Response:
        """Call a route; a path that does not begin with / is below the version."""
        target = path if path.startswith("/") else f"{V1}/{path}"
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.people[who].request(method, target, json=body, headers=sent)

    async def get(self, path: str, *, who: str = TOKEN, expect: int = 200) -> Any:
        response = await self.ask("GET", path, who=who)
        assert response.status_code == expect, (path, response.status_code, response.text)
        return response.json()

    async def post(
        self, path: str, body: Any = None, *, who: str = TOKEN, expect: int = 201
    ) -> Any:
        response = await self.ask("POST", path, body, who=who)
        assert response.status_code == expect, (path, response.status_code, response.text)
        return response.json()

    async def patch(
        self, path: str, body: Any, *, who: str = TOKEN, expect: int = 200, **headers: str
    ) -> Any:
        response = await self.ask("PATCH", path, body, who=who, **headers)
        assert response.status_code == expect, (path, response.status_code, response.text)
        return response.json()

    async def everything(self, path: str, *, who: str = TOKEN, limit: int = 2) -> list[Any]:
        """Read a list page by page."""
        found: list[Any] = []
        joint = "&" if "?" in path else "?"
        cursor = ""
        while True:
            page = await self.get(f"{path}{joint}limit={limit}&cursor={cursor}", who=who)
            assert len(page["data"]) <= limit or "limits" in path
            found += page["data"]
            if not page["has_more"]:
                assert page["next_cursor"] is None
                return found
            cursor = page["next_cursor"]


async def log_in(client: httpx.AsyncClient, name: str, password: str = PASSWORD) -> httpx.Response:
    """Log in as a browser does."""
    body = {"user": name, "password": password}
    return await client.post("/admin/api/login", json=body, headers=OWN)


def code_of(response: httpx.Response) -> str:
    """Return an error's code, of the one shape that errors have."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["code"])


@asynccontextmanager
async def open_office(
    folder: Path, database_url: str | None = None, **settings: Any
) -> AsyncIterator[Office]:
    """Run a gateway with a user of every role, all of them logged in."""
    chosen = settings | ({} if database_url is None else {"database_url": database_url})
    async with open_door(folder, settings=chosen) as door, AsyncExitStack() as stack:
        repository, now = door.ledger.repository, utc_now()
        digest = await Passwords().digest(PASSWORD)
        for role in Role:
            whose = "premium-tenant" if role is Role.TENANT_VIEWER else None
            await repository.create_user(
                role.value, role, now, tenant=whose, password_digest=digest
            )
        people: dict[str, httpx.AsyncClient] = {}
        for name in (TOKEN, "nobody", *Role):
            client = httpx.AsyncClient(base_url=door.url, timeout=30, headers=OWN)
            people[str(name)] = await stack.enter_async_context(client)
            if name == TOKEN:
                client.headers["authorization"] = f"Bearer {door.admin_token}"
            elif name != "nobody":
                answer = await log_in(client, str(name))
                assert answer.status_code == 200, answer.text
        yield Office(door, people)
