"""Who may do what: no route without a row, no role above its own, no tenant beyond its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin_kit import TOKEN, Office, code_of
from door_kit import open_door
from fastapi import FastAPI

from engine.serving.config import EngineConfig
from engine.serving.inprocess import InProcessEngine
from gateway.admin.roles import ACCESS, V1, may
from gateway.admin.route import AdminRoute
from gateway.app import create_app
from gateway.dashboard.roles import PAGES
from gateway.dashboard.route import PageRoute
from tenants.values import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = sorted(ACCESS.items(), key=lambda row: row[0])
ROLES = list(Role)
PARTS = {
    "{tenant}": "free-tenant",
    "{organisation}": "default",
    "{tier}": "free",
    "{user}": "viewer",
    "{scope}": "tenant",
    "{target}": "free-tenant",
    "{key}": "0" * 32,
    "{request_id}": "none",
}


def all_routes(routes: Any) -> Iterator[Any]:
    """Walk through routers within routers."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from all_routes(inner.routes)


def filled(path: str) -> str:
    for part, value in PARTS.items():
        path = path.replace(part, value)
    return path


async def test_every_admin_route_has_a_row_and_every_row_a_route(office: Office) -> None:
    """Of the application as it is served, whatever router a route came by; each behind the gate.

    Pages have a table of their own, and tests of their own.
    """
    app: FastAPI = office.door.server.config.app  # type: ignore[assignment]
    found = set()
    for route in all_routes(app.routes):
        if route.path.startswith("/admin"):
            assert isinstance(route, AdminRoute), route.path
            if isinstance(route, PageRoute):
                continue
            found |= {(method, route.path) for method in route.methods}
    assert found == set(ACCESS)
    listed = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path.startswith("/admin")
    }
    assert listed == set(ACCESS)


@pytest.mark.parametrize(("route", "access"), ROWS, ids=lambda v: "" if v in ACCESS else str(v))
async def test_no_role_below_gets_through(
    office: Office, route: tuple[str, str], access: Any
) -> None:
    """Every route by every role: refused below the least role, and never refused from it on."""
    method, path = route
    if access.role is None:
        return
    stranger = await office.ask(method, filled(path), {}, who="nobody")
    assert (stranger.status_code, code_of(stranger)) == (401, "invalid_api_key")
    for role in ROLES:
        if path.endswith(("/logout", "/password")) and may(role, access.role):
            continue  # would end the login of the others' tests
        response = await office.ask(method, filled(path), None, who=role.value)
        if may(role, access.role):
            assert response.status_code not in (401, 403), (route, role, response.text)
        else:
            assert (response.status_code, code_of(response)) == (403, "role_not_allowed")
        assert response.status_code < 500, response.text


async def test_a_tenants_viewer_sees_its_own_and_nothing_else(office: Office) -> None:
    """Foreign ids are unknown, lists hold its own only, whatever filter is asked for."""
    me = "tenant-viewer"
    await office.post("organisations", {"name": "foreign"})
    other = await office.post(
        "tenants", {"name": "other", "tier": "free", "organisation": "foreign"}
    )
    theirs = await office.post("tenants/other/keys", {"limits": {"requests_per_day": 1}})
    ours = await office.post("tenants/premium-tenant/keys", {"limits": {"requests_per_day": 2}})
    await office.patch("limits/tenant/other", {"limits": {"tokens_per_day": 1}})
    await office.patch("limits/organisation/foreign", {"limits": {"tokens_per_day": 1}})
    await office.patch("limits/tenant/premium-tenant", {"limits": {"tokens_per_day": 2}})
    mine = await office.get("tenants/premium-tenant", who=me)

    assert (await office.get("tenants", who=me))["data"] == [mine]
    assert [o["name"] for o in (await office.get("organisations", who=me))["data"]] == ["default"]
    assert [t["name"] for t in (await office.get("tiers", who=me))["data"]] == ["premium"]
    assert [p["tier"] for p in (await office.get("prices", who=me))["data"]] == ["premium"]
    keys = await office.everything("keys", who=me)
    assert ours["id"] in {key["id"] for key in keys}
    assert {key["tenant_id"] for key in keys} == {mine["id"]}
    limits = await office.everything("limits", who=me, limit=1)
    assert {f["target_id"] for f in limits} == {mine["id"], ours["id"]}
    entries = await office.everything("audit", who=me, limit=50)
    assert entries
    assert {entry["tenant_id"] for entry in entries} == {mine["id"]}
    assert {entry["address"] for entry in entries} == {""}, "where operators sit is theirs"
    for path in (
        "tenants/other",
        f"tenants/{other['id']}",
        "tenants/other/keys",
        f"keys/{theirs['id']}",
        "organisations/foreign",
        "tenants?organisation=foreign",
        "tiers/free",
        "tiers/free/versions",
        "limits/tenant/other",
        "limits/organisation/foreign",
        f"limits/key/{theirs['id']}",
        "budgets/tenant/other",
        "audit?tenant=other",
        "usage/export?since=2026-01-01&tenant=other",
    ):
        foreign = await office.ask("GET", path, who=me)
        missing = await office.ask("GET", path.replace("other", "gone"), who=me)
        assert foreign.status_code == 404, path
        if "gone" in missing.request.url.path or "gone" in str(missing.request.url):
            assert foreign.content == missing.content, "a foreign thing looks like one not there"
    export = await office.ask("GET", "usage/export?since=2026-11-01&format=jsonl", who=me)
    assert mine["id"] in export.text.splitlines()[0]


async def test_nothing_foreign_is_on_any_page_of_a_tenants_viewer(office: Office) -> None:
    """Every route that such a user may use, with its own names and with foreign ones."""
    body = {"name": "zz-foreign-payer"}
    payer = await office.post("organisations", body)
    body = {"name": "zz-foreign", "tier": "free", "organisation": "zz-foreign-payer"}
    other = await office.post("tenants", body)
    key = await office.post("tenants/zz-foreign/keys", {"name": "zz-key"})
    await office.patch("limits/tenant/zz-foreign", {"limits": {"tokens_per_day": 1}})
    words = {"zz-", payer["id"], other["id"], key["id"], key["last4"] + '"'}
    foreign = {
        "{tenant}": other["id"],
        "{organisation}": payer["id"],
        "{tier}": "free",
        "{key}": key["id"],
        "{scope}": "tenant",
        "{target}": other["id"],
    }
    own = PARTS | {"{tenant}": "premium-tenant", "{target}": "premium-tenant", "{tier}": "premium"}
    tried = 0
    for (method, route), access in ROWS:
        if method != "GET" or access.role is not Role.TENANT_VIEWER:
            continue
        for parts in (own, foreign):
            path = route
            for part, value in parts.items():
                path = path.replace(part, value)
            answer = await office.ask("GET", path, who="tenant-viewer")
            found = [word for word in words if word in answer.text]
            assert not found, (path, found)
            tried += 1
    assert tried > 30


async def test_a_key_of_the_api_opens_no_admin_route(office: Office) -> None:
    """Nor does a token that is almost right, in any of its forms."""
    wrong = [
        f"Bearer {office.door.keys['premium']}",
        f"Bearer {office.door.admin_token[:-1]}",
        "Bearer x",
        "Basic !!!",
        f"Token {office.door.admin_token}",
    ]
    async with httpx.AsyncClient(base_url=office.door.url) as client:
        for header in wrong:
            answer = await client.get(f"{V1}/tenants", headers={"authorization": header})
            assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"].startswith("Basic ")


async def test_without_an_admin_secret_there_is_no_admin_route(tmp_path: Path) -> None:
    """Not even one that refuses: every path below /admin is unknown, and logins too."""
    async with open_door(tmp_path) as door:
        app = create_app(
            door.services.settings,
            InProcessEngine(EngineConfig(model="none", policy="fcfs")),
            door.ledger,
            door.services.tiers.current,
            admin_token=None,
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            for method, path in (*ACCESS, *PAGES):
                answer = await client.request(method, filled(path), json={})
                assert (answer.status_code, code_of(answer)) == (404, "not_found"), path


async def test_every_method_that_is_not_there_is_refused(office: Office) -> None:
    for method, path in (("DELETE", "tenants/free-tenant"), ("PUT", "tiers"), ("DELETE", "audit")):
        answer = await office.ask(method, path, who=TOKEN)
        assert (answer.status_code, code_of(answer)) == (405, "method_not_allowed")
