"""Two people at one form in a real browser, and the way back to a form from an OIDC provider."""

from __future__ import annotations

import pytest
from browser_kit import WIDTHS, Site, log_in, open_tab
from playwright.async_api import Browser, Route

from gateway.routes.admin_oidc import _BACK, _BACK_HEADERS

pytestmark = pytest.mark.asyncio(loop_scope="session")


def new_tenant(site: Site, name: str) -> str:
    """Return the id of a tenant that no other test knows."""
    with site.admin() as client:
        answer = client.post("/admin/api/v1/tenants", json={"name": name, "tier": "free"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


@pytest.mark.parametrize("width", WIDTHS)
async def test_who_was_slower_sees_what_the_other_has_set(
    site: Site, browser: Browser, width: int
) -> None:
    """On a page that is fit to be seen; saving once more sets what stands there."""
    path = f"/admin/limits/tenant/{new_tenant(site, f'shared-{width}')}"
    api = path.replace("/admin/", "/admin/api/v1/")
    async with open_tab(browser, site, "operator", width=width) as tab:
        tab.expected.add(412)
        await tab.go(path)
        with site.admin() as client:
            for name, amount in (("requests_per_minute", 10), ("tokens_per_day", 900)):
                answer = client.patch(api, json={"limits": {name: amount}})
                assert answer.status_code == 200, answer.text
        await tab.page.fill("#requests_per_minute", "20")
        save = "main form button.primary >> nth=0"
        await tab.page.click(save)
        assert "nothing is saved yet" in await tab.text(".note")
        assert "Changed meanwhile to 10: saving sets it" in await tab.text()
        assert await tab.page.input_value("#requests_per_minute") == "20"
        assert await tab.page.input_value("#tokens_per_day") == "900"
        await tab.fits()
        await tab.axe()
        await tab.shot(f"changed-meanwhile-{width}")
        await tab.page.click(save)
        assert "The limits are set" in await tab.text(".note")
    with site.admin() as client:
        limits = client.get(api).json()["data"][0]["limits"]
    assert (limits["requests_per_minute"], limits["tokens_per_day"]) == (20, 900)


async def test_what_was_typed_outlives_a_way_by_the_provider(site: Site, browser: Browser) -> None:
    """The page that ends a login by OIDC leads back to the form, and what was typed is there."""
    path = "/admin/tenants/new"

    async def come_back(route: Route) -> None:
        body = _BACK.format(onward=path)
        await route.fulfill(content_type="text/html", headers=_BACK_HEADERS, body=body)

    async with open_tab(browser, site, "operator") as tab:
        await tab.go(path)
        await tab.page.fill("#name", "typed-before")
        await tab.context.clear_cookies()
        await tab.page.click("main form button.primary")
        assert "Nothing is saved yet" in await tab.text(".note")
        await log_in(tab.context, site, "operator")
        await tab.page.route("**/admin/api/oidc/callback*", come_back)
        await tab.page.goto(f"{site.url}/admin/api/oidc/callback?code=x")
        await tab.page.wait_for_url(f"**{path}")
        await tab.page.wait_for_selector(".note.info")
        assert "What you had typed is here again" in await tab.text(".note.info")
        assert await tab.page.input_value("#name") == "typed-before"
