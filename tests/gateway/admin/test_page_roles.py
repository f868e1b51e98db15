"""Pages by role: none without a row, none that allows more than the API, none of others' things."""

from __future__ import annotations

import re
from typing import Any

import pytest
from admin_kit import TOKEN, Office
from fastapi import FastAPI
from test_admin_roles import all_routes

from gateway.admin.roles import ACCESS, Access, may
from gateway.dashboard.management_roles import MANAGEMENT
from gateway.dashboard.roles import PAGES
from gateway.dashboard.rooms import page_routers
from gateway.dashboard.route import PageRoute
from tenants.values import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLES = list(Role)
ROWS = sorted(MANAGEMENT.items(), key=lambda row: row[0])
FORM = {"content-type": "application/x-www-form-urlencoded"}
PARTS = {
    "{tenant}": "free-tenant",
    "{organisation}": "default",
    "{tier}": "free",
    "{user}": "viewer",
    "{scope}": "tenant",
    "{target}": "free-tenant",
    "{key}": "0" * 32,
}


def filled(path: str, **parts: str) -> str:
    for part, value in PARTS.items():
        path = path.replace(part, parts.get(part[1:-1], value))
    return path


async def send(office: Office, method: str, path: str, who: str, body: str = "") -> Any:
    client = office.people[who]
    return await client.request(
        method, path, content=body if method == "POST" else None, headers=FORM
    )


async def test_every_page_has_a_row_and_every_row_a_page(office: Office) -> None:
    """Of the router itself: what is served is in the table, and what is in the table is served."""
    found = {
        (method, re.sub(r":\w+}", "}", route.path))
        for router in page_routers()
        for route in all_routes(router.routes)
        for method in route.methods
    }
    assert found == set(PAGES)
    app: FastAPI = office.door.server.config.app  # type: ignore[assignment]
    served = [r for r in all_routes(app.routes) if r.path.startswith("/admin")]
    pages = [r for r in served if not r.path.startswith("/admin/api")]
    assert len(pages) >= len(MANAGEMENT)
    assert all(isinstance(route, PageRoute) for route in pages)


async def test_no_page_asks_less_than_the_api() -> None:
    """A form that changes anything asks the role, and the recent login, of a row of the API."""
    of_api = set(ACCESS.values())
    for (method, path), access in MANAGEMENT.items():
        assert access in of_api, path
        assert access.role is not None, path
        if method == "POST":
            least = Role.OWNER if path.startswith("/admin/users") else Role.OPERATOR
            if path != "/admin/password":  # one's own
                assert access.role in (Role.OWNER, least), path


@pytest.mark.parametrize(
    ("route", "access"), ROWS, ids=lambda v: "" if isinstance(v, Access) else str(v)
)
async def test_no_role_below_opens_a_page(
    office: Office, route: tuple[str, str], access: Access
) -> None:
    """Every page by every role: refused below the least role, and not refused from it on."""
    method, path = route
    stranger = await send(office, method, filled(path), "nobody")
    assert (stranger.status_code, stranger.headers["location"][:17]) == (303, "/admin/login?next")
    assert access.role is not None
    for role in (*ROLES, TOKEN):
        # One's own password: a wrong form is sent, so that nobody's login ends.
        answer = await send(office, method, filled(path), role)
        rank = Role.OWNER if role == TOKEN else Role(role)
        if may(rank, access.role):
            assert answer.status_code not in (401, 403), (route, role, answer.text)
        else:
            assert answer.status_code == 403, (route, role)
            assert answer.headers["x-tiergate-fault"] == "role_not_allowed"
        assert answer.status_code < 500, (route, role, answer.text)
        assert answer.headers["cache-control"] == "no-store"
        assert "unsafe" not in answer.headers["content-security-policy"]


async def test_a_form_of_another_site_changes_nothing(office: Office) -> None:
    """Whatever the form, with the cookie of an owner."""
    for (method, path), _ in ROWS:
        if method != "POST":
            continue
        for told in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
            client = office.people["owner"]
            sent = client.build_request(method, office.door.url + filled(path), headers=FORM | told)
            if "origin" in told:
                del sent.headers["sec-fetch-site"]
            answer = await client.send(sent)
            assert answer.status_code == 403, path
            assert answer.headers["x-tiergate-fault"] == "cross_site_request"


async def test_a_tenants_viewer_finds_nothing_of_others(office: Office) -> None:
    """Every page it may open, with its own names and foreign ones: 404, and no foreign word."""
    body = {"name": "zz-payer"}
    payer = await office.post("organisations", body)
    other = await office.post(
        "tenants", {"name": "zz-other", "tier": "free", "organisation": "zz-payer"}
    )
    key = await office.post("tenants/zz-other/keys", {"name": "zz-key"})
    await office.patch("limits/tenant/zz-other", {"limits": {"tokens_per_day": 1}})
    words = {"zz-", payer["id"], other["id"], key["id"], key["display"]}
    foreign = {
        "tenant": other["id"],
        "organisation": payer["id"],
        "tier": "free",
        "key": key["id"],
        "target": other["id"],
    }
    own = {"tenant": "premium-tenant", "target": "premium-tenant", "tier": "premium"}
    opened = 0
    for (method, path), access in ROWS:
        if method != "GET" or access.role is not Role.TENANT_VIEWER:
            continue
        mine = await send(office, method, filled(path, **own), "tenant-viewer")
        assert mine.status_code == 200 or "{key}" in path, (path, mine.text)
        theirs = await send(office, method, filled(path, **foreign), "tenant-viewer")
        if "{" in path:
            assert theirs.status_code == 404, path
        for answer in (mine, theirs):
            # The address itself is on the page, so that colours can be changed there.
            text = answer.text.replace(filled(path, **foreign), "")
            found = [word for word in words if word in text]
            assert not found, (path, found)
        opened += mine.status_code == 200
    assert opened >= 10
    for path in (
        "/admin/keys?tenant=",
        "/admin/usage?tenant=",
        "/admin/slo?tenant=",
        "/admin/audit?tenant=",
    ):
        theirs = await send(office, "GET", path + "zz-other", "tenant-viewer")
        nobodys = await send(office, "GET", path + "zz-other-gone", "tenant-viewer")
        assert theirs.status_code == nobodys.status_code == 404, path


async def test_who_may_not_is_drawn_no_button(office: Office) -> None:
    """On every page that a viewer may open there is no way to a page that it may not."""
    for (method, path), access in ROWS:
        if method != "GET" or access.role not in (Role.VIEWER, Role.TENANT_VIEWER):
            continue
        for who in ("viewer", "tenant-viewer"):
            own = {"tenant": "premium-tenant", "target": "premium-tenant", "tier": "premium"}
            answer = await send(office, "GET", filled(path, **own), who)
            if answer.status_code != 200:
                continue
            for link in re.findall(r'(?:href|action)="(/admin[^"?#]*)', answer.text):
                if link.startswith(("/admin/api", "/admin/static")):
                    continue
                method_of = "POST" if link in ("/admin/logout", "/admin/theme") else "GET"
                allowed = [
                    a
                    for (m, p), a in PAGES.items()
                    if m == method_of and re.fullmatch(re.sub(r"{\w+}", "[^/]+", p), link)
                ]
                assert allowed, (path, link)
                assert any(a.role is None or may(Role(who), a.role) for a in allowed), (path, link)
