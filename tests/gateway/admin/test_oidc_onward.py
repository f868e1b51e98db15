"""After a login by OIDC people are back where they were, and never at another site."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from test_admin_oidc import BEGIN, House, open_house

from engine.core.clock import utc_now
from gateway.admin.oidc_flow import MOST_CHARACTERS, new_flow, opened, sealed
from gateway.admin.onward import MOST_NEXT

STAFF = {"sub": "s", "groups": ["staff"]}


@pytest.fixture
async def staffed(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        house.provider.user = STAFF
        yield house


async def onward(house: House, begin: str) -> str:
    """Log in; returns where the page at the end sends the browser."""
    async with house.browser() as browser:
        done = await house.log_in(browser, begin)
    assert done.status_code == 200, done.text
    [refresh] = re.findall(r'http-equiv="refresh" content="0;url=([^"]*)"', done.text)
    [link] = re.findall(r'href="([^"]*)"', done.text)
    assert refresh == link
    return html.unescape(refresh)


async def test_a_login_by_the_provider_leads_where_one_wanted_to_go(staffed: House) -> None:
    """The login page's link names it, and the page at the end goes there."""
    async with staffed.browser() as browser:
        away = await browser.get("/admin/audit?actor=ann&action=x.y")
        shown = await browser.get(away.headers["location"])
        [link] = re.findall(rf'href="({BEGIN}[^"]*)"', shown.text)
    assert await onward(staffed, html.unescape(link)) == "/admin/audit?actor=ann&action=x.y"
    long = "/admin/audit?actor=" + "a" * 500
    assert await onward(staffed, f"{BEGIN}?next={quote(long)}") == long
    async with staffed.browser() as browser:
        assert (await browser.get(f"/admin/login?next={quote(long)}")).status_code == 200
    assert await onward(staffed, BEGIN) == "/admin"


async def test_who_confirms_it_is_them_comes_back_to_the_form(staffed: House) -> None:
    """An old login at a form that needs a new one: to the provider, for a new proof, and back."""
    staffed.provider.user = {"sub": "b", "groups": ["bosses"]}
    desk: Any = staffed.office.door.server.config.app.state.admin  # type: ignore[union-attr]
    async with staffed.browser() as browser:
        assert (await staffed.log_in(browser)).status_code == 200
        desk.recent = desk.recent * 0
        away = await browser.get("/admin/users/new")
        shown = await browser.get(away.headers["location"])
        [link] = re.findall(rf'href="({BEGIN}[^"]*)"', shown.text)
        done = await staffed.log_in(browser, html.unescape(link))
    assert 'content="0;url=/admin/users/new"' in done.text
    assert staffed.provider.authorizations[-1]["prompt"] == "login"


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example",
        "//evil.example",
        "/admin//evil.example",
        "/admin/login",
        "/v1/models",
        '/admin"><script>',
        "javascript:alert(1)",
        "/admin\\evil",
        "/admin;url=//evil.example",
    ],
)
async def test_nobody_is_led_to_another_site(staffed: House, wanted: str) -> None:
    assert await onward(staffed, f"{BEGIN}?next={quote(wanted, safe='')}") == "/admin"


def test_the_longest_way_fits_into_the_cookie() -> None:
    now, secret = utc_now(), b"s" * 32
    flow = new_flow(now, "/admin/" + "x" * (MOST_NEXT - len("/admin/")))
    value = sealed(flow, secret)
    assert len(value) <= MOST_CHARACTERS
    assert opened(value, secret, flow.state, now) == flow
