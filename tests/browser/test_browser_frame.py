"""The pages' frame in a real browser: logging in and out, colours, keys, faults, no scripts."""

from __future__ import annotations

import pytest
from browser_kit import PASSWORD, SCHEMES, TOKEN, WIDTHS, Site, open_tab
from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_login_by_keyboard_alone_and_out_again(site: Site, browser: Browser) -> None:
    """From a page that needs a login to that page, with nothing but a keyboard; then out."""
    async with open_tab(browser, site, "") as tab:
        await tab.go("/admin/engine")
        assert tab.page.url.endswith("/admin/login?next=/admin/engine")
        keyboard = tab.page.keyboard
        await tab.page.focus("#user")
        await keyboard.type("viewer")
        await keyboard.press("Tab")
        await keyboard.type(PASSWORD)
        async with tab.page.expect_navigation():
            await keyboard.press("Enter")
        assert tab.page.url == site.url + "/admin/engine"
        await tab.page.focus("text=Log out")
        async with tab.page.expect_navigation():
            await keyboard.press("Enter")
        assert "You are logged out." in await tab.text()
        await tab.go("/admin")
        assert "/admin/login" in tab.page.url


async def test_a_wrong_password_says_so_and_keeps_what_was_typed(
    site: Site, browser: Browser
) -> None:
    async with open_tab(browser, site, "") as tab:
        tab.expected = {401, 400}
        await tab.go("/admin/login")
        await tab.page.fill("#user", "viewer")
        await tab.page.fill("#secret", "not the password")
        await tab.page.click("button.primary")
        assert "User and password do not fit." in await tab.text("#form-error")
        assert await tab.page.input_value("#user") == "viewer"
        assert await tab.page.input_value("#secret") == ""
        await tab.axe()


async def test_the_admin_token_opens_the_pages_and_logs_out(site: Site, browser: Browser) -> None:
    """The token of the banner, pasted; its cookie is out of reach of scripts."""
    async with open_tab(browser, site, "") as tab:
        await tab.go("/admin")
        await tab.page.fill("#secret", site.token)
        await tab.page.click("button.primary")
        await tab.page.wait_for_url(f"{site.url}/admin")
        assert "admin token" in await tab.text(".who")
        assert await tab.page.evaluate("document.cookie") == ""
        cookies = await tab.context.cookies()
        assert all(c["httpOnly"] and c["sameSite"] == "Strict" for c in cookies)
        assert site.token not in str(cookies)
        await tab.page.click("text=Log out")
        await tab.go("/admin")
        assert "/admin/login" in tab.page.url


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_login_and_fault_pages(
    site: Site, browser: Browser, scheme: str, width: int
) -> None:
    async with open_tab(browser, site, "", scheme=scheme, width=width) as tab:
        await tab.go("/admin/login")
        await tab.fits()
        await tab.axe()
        await tab.shot(f"login-{scheme}-{width}")
    async with open_tab(browser, site, "viewer", scheme=scheme, width=width) as tab:
        tab.expected = {404}
        await tab.go("/admin/requests/none")
        await tab.fits()
        await tab.axe()
        await tab.shot(f"fault-{scheme}-{width}")


async def test_colours_can_be_chosen_against_the_system(site: Site, browser: Browser) -> None:
    """The choice holds on the next page, and on the login page after it."""
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    async with open_tab(browser, site, "viewer", scheme="light") as tab:
        await tab.go("/admin")
        before = await tab.page.evaluate(paper)
        await tab.page.click("button[value=dark]")
        dark = await tab.page.evaluate(paper)
        assert dark != before
        await tab.axe()
        await tab.go("/admin/engine")
        assert await tab.page.evaluate(paper) == dark
        await tab.page.click("button[value=auto]")
        assert await tab.page.evaluate(paper) == before


async def test_single_keys_go_to_pages_and_can_be_switched_off(
    site: Site, browser: Browser
) -> None:
    async with open_tab(browser, site, "viewer") as tab:
        keyboard = tab.page.keyboard
        await tab.go("/admin")
        await keyboard.press("?")
        assert await tab.page.is_visible("#help")
        await tab.axe()
        await tab.shot("help")
        await keyboard.press("Escape")
        assert not await tab.page.is_visible("#help")
        async with tab.page.expect_navigation():
            await keyboard.type("gr")
        assert tab.page.url.endswith("/admin/requests")
        await keyboard.press("/")
        assert await tab.page.evaluate("document.activeElement.matches('[data-search]')")
        await tab.page.focus("main")
        await keyboard.press("?")
        await tab.page.uncheck("#shortcuts")
        await keyboard.press("Escape")
        await tab.page.focus("main")
        await keyboard.press("?")
        assert not await tab.page.is_visible("#help")


async def test_the_skip_link_is_the_first_stop(site: Site, browser: Browser) -> None:
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin")
        await tab.page.keyboard.press("Tab")
        assert await tab.page.evaluate("document.activeElement.className") == "skip"
        await tab.page.keyboard.press("Enter")
        assert await tab.page.evaluate("document.activeElement.id") == "main"


async def test_pages_work_without_scripts(site: Site, browser: Browser) -> None:
    """Log in by the form, look at a page, change the colours, log out: no script runs."""
    async with open_tab(browser, site, "", scripts=False) as tab:
        await tab.go("/admin")
        await tab.page.fill("#secret", site.token)
        await tab.page.click("button.primary")
        await tab.go("/admin/requests")
        assert "Requests" in await tab.text("h1")
        await tab.page.click("button[value=dark]")
        await tab.page.click("text=Log out")
        assert "/admin/login" in tab.page.url


async def test_the_token_needs_to_be_shown_again_where_a_login_must_be_recent(
    site: Site, browser: Browser
) -> None:
    """A browser that has the token's cookie is asked again only when the proof is old."""
    async with open_tab(browser, site, TOKEN) as tab:
        await tab.go("/admin/login?next=/admin/requests&again=true")
        assert tab.page.url == site.url + "/admin/requests", "this one is recent"
