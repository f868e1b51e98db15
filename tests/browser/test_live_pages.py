"""Overview, engine and requests in a real browser: live, by keyboard, without scripts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from browser_kit import OWN, PASSWORD, SCHEMES, WIDTHS, Site, Tab, open_tab
from playwright.async_api import Browser, Route

from gateway.dashboard.live import MOST_OF_ONE

pytestmark = pytest.mark.asyncio(loop_scope="session")

IS_LIVE = "document.getElementById('live-state').dataset.state === 'live'"
IS_LOST = "document.getElementById('live-state').dataset.state === 'lost'"
BREAK = "document.getElementById('live')._htmx.sse.reader.cancel()"  # the connection ends


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
async def test_every_page_is_in_order(
    site: Site, browser: Browser, scheme: str, width: int
) -> None:
    """axe-core finds nothing, nothing is too wide, the browser complains of nothing."""
    answer = await asyncio.to_thread(site.ask)
    async with open_tab(browser, site, "viewer", scheme=scheme, width=width) as tab:
        for path, name in (
            ("/admin", "overview"),
            ("/admin/requests", "requests"),
            ("/admin/requests?tier=free&missed=true", "requests-filtered"),
            (f"/admin/requests/{answer['id']}", "story"),
            ("/admin/engine", "engine"),
        ):
            await tab.go(path)
            if name in ("overview", "engine"):
                await tab.until(IS_LIVE, "the page is live")
                await tab.page.wait_for_timeout(1500)
            await tab.fits()
            await tab.axe()
            await tab.shot(f"{name}-{scheme}-{width}")


async def number(tab: Tab, name: str) -> float:
    """Return a number of the overview by what it is called."""
    found = await tab.page.inner_text(f".stat:has(dt:text-is('{name}')) .big")
    return float(re.sub(r"[^0-9.]", "", found) or 0)


async def test_numbers_and_charts_change_by_themselves(site: Site, browser: Browser) -> None:
    """The clock of the page goes on, dots are drawn, and a request shows in the charts' tables."""
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin")
        await tab.until(IS_LIVE, "the page is live")
        before = await tab.page.inner_text(".top-line time")
        await asyncio.to_thread(site.ask)
        await tab.until(
            f"document.querySelector('.top-line time').textContent !== {before!r}", "time goes on"
        )
        assert await tab.page.locator(".plot canvas").count() == 5
        drawn = """() => [...document.querySelectorAll(".plot canvas")].map(canvas => {
            const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return all.data.some((value, i) => i % 4 === 3 && value > 0);
        })"""
        assert await tab.page.evaluate(drawn) == [True] * 5
        await tab.page.click("figure[data-chart=ttft] summary")
        cells = "[...document.querySelectorAll('figure[data-chart=ttft] td')]"
        await tab.until(f"{cells}.some(cell => +cell.textContent)", "requests are in the table")
        await tab.page.wait_for_timeout(2500)
        assert await tab.page.is_visible("figure[data-chart=ttft] table"), "it stays open"


async def test_live_numbers_can_be_held_by_keyboard(site: Site, browser: Browser) -> None:
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin")
        await tab.until(IS_LIVE, "the page is live")
        await tab.page.keyboard.press("p")
        assert await tab.text("#live-state") == "Paused"
        await tab.page.wait_for_timeout(300)
        held = await tab.page.inner_text(".top-line time")
        await tab.page.wait_for_timeout(2500)
        assert await tab.page.inner_text(".top-line time") == held
        await tab.page.keyboard.press("p")
        await tab.until(
            f"document.querySelector('.top-line time').textContent !== {held!r}", "it goes on"
        )


async def test_a_newcomer_is_at_the_timeline_in_three_clicks(site: Site, browser: Browser) -> None:
    """From the address that `serve` prints: the token is pasted, then button, link, link."""
    answer = await asyncio.to_thread(site.ask, "What is a KV cache?")
    async with open_tab(browser, site, "") as tab:
        await tab.go("/admin")
        await tab.page.fill("#secret", site.token)
        await tab.page.click("button.primary")
        await tab.page.click("nav >> text=Requests")
        await tab.page.click(f"a:text-is('{answer['id']}')")
        drawn = await tab.page.locator("svg.timeline rect[class^=b-]").evaluate_all(
            "bars => bars.map(bar => bar.getAttribute('class'))"
        )
        assert {"b-door", "b-queued", "b-prefill", "b-decode", "b-answer"} <= set(drawn)
        text = await tab.text()
        assert "the engine took it" in text
        assert "first text handed to the client" in text
        assert await tab.page.locator(".timeline .m-due, .timeline .beyond").count() >= 1
        assert await tab.page.locator(".timeline .m-first, .timeline .m-late").count() >= 1
        await tab.page.click("summary")
        assert "decode steps" in await tab.text("details")
        assert "the first token" in await tab.text("details")


async def test_requests_are_filtered_and_paged(site: Site, browser: Browser) -> None:
    for _ in range(3):
        await asyncio.to_thread(site.ask, "Hi", "free", max_tokens=1)
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin/requests")
        await tab.page.select_option("#tier", "free")
        await tab.page.click("text=Show")
        assert "tier=free" in tab.page.url
        rows = "section[aria-labelledby=over] tbody tr"
        tiers = await tab.page.locator(f"{rows} td:nth-child(4)").all_inner_texts()
        assert tiers
        assert {tier.split()[0] for tier in tiers} == {"free"}
        tab.expected = {400}
        await tab.page.fill("#tenant", "nobody-of-this-name")
        await tab.page.click("text=Show")
        assert "no tenant of that name" in await tab.text("#tenant-error")
        assert await tab.page.input_value("#tenant") == "nobody-of-this-name"
        assert await tab.page.input_value("#tier") == "free"
        await tab.axe()


async def test_a_request_is_found_by_its_id_from_the_keyboard(site: Site, browser: Browser) -> None:
    answer = await asyncio.to_thread(site.ask)
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin/requests")
        await tab.page.keyboard.press("/")
        await tab.page.keyboard.type(answer["id"])
        async with tab.page.expect_navigation():
            await tab.page.keyboard.press("Enter")
        assert tab.page.url == f"{site.url}/admin/requests/{answer['id']}"


async def test_a_tenants_viewer_sees_its_own_requests_and_no_engine(
    site: Site, browser: Browser
) -> None:
    """Foreign requests are as unknown as none; its own have no other tenant's names in them."""
    theirs = await asyncio.to_thread(site.ask, "Hi", "free")
    ours = await asyncio.to_thread(site.ask, "Hi", "premium")
    async with open_tab(browser, site, "tenant-viewer") as tab:
        await tab.go("/admin")
        assert "/admin/requests" in tab.page.url
        assert await tab.page.locator("nav >> text=Engine").count() == 0
        tiers = await tab.page.locator("tbody td:nth-child(4)").all_inner_texts()
        assert set(tiers) <= {"premium"}
        await tab.go(f"/admin/requests/{ours['id']}")
        await tab.axe()
        assert "Its story" not in await tab.text()
        tab.expected = {403, 404}
        await tab.go(f"/admin/requests/{theirs['id']}")
        assert "There is no request of that id." in await tab.text()
        for path in ("/admin/engine", "/admin/live/overview"):
            await tab.go(path)
            assert "Your role may not do this." in await tab.text()


async def test_live_pages_without_scripts_show_the_same_numbers(
    site: Site, browser: Browser
) -> None:
    async with open_tab(browser, site, "viewer", scripts=False) as tab:
        for path in ("/admin", "/admin/engine"):
            await tab.go(path)
            assert "Ready to serve" in await tab.text()
            assert await tab.page.is_visible("text=Renew")


async def test_a_login_that_has_ended_ends_the_live_page(site: Site, browser: Browser) -> None:
    """The stream is refused at its next turn, and the page goes to the login and says where to."""
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin")
        await tab.until(IS_LIVE, "the page is live")
        tab.expected = {401}
        await tab.context.clear_cookies()
        # As after a break of the connection: the page asks again.
        await tab.page.evaluate(BREAK)
        await tab.page.wait_for_url("**/admin/login?next=/admin")
        assert "Your login has ended." in await tab.text(".note")


async def test_a_page_that_was_held_goes_on_as_it_stands_and_not_as_if_it_were_live(
    site: Site, browser: Browser
) -> None:
    """The connection is lost while the page is held: going on says so, and then finds it again."""

    async def away(route: Route) -> None:
        await route.fulfill(status=503)

    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin")
        await tab.until(IS_LIVE, "the page is live")
        await tab.page.keyboard.press("p")
        tab.expected = {503}
        await tab.page.route("**/admin/live/**", away)
        async with tab.page.expect_response("**/admin/live/**"):
            await tab.page.evaluate(BREAK)
        await tab.page.wait_for_timeout(300)
        assert await tab.text("#live-state") == "Paused"
        await tab.page.keyboard.press("p")
        assert await tab.text("#live-state") == "No connection, trying again"
        await tab.page.unroute("**/admin/live/**")
        await tab.until(IS_LIVE, "it is live again")


@asynccontextmanager
async def streams(site: Site, user: str, num: int) -> AsyncIterator[None]:
    """Hold live streams of a user open for the length of a block."""
    async with AsyncExitStack() as held:
        http = await held.enter_async_context(httpx.AsyncClient(base_url=site.url))
        form = {"user": user, "secret": PASSWORD}
        await http.post("/admin/login", data=form, headers=OWN)
        for _ in range(num):
            answer = await held.enter_async_context(http.stream("GET", "/admin/live/overview"))
            assert answer.status_code == 200
        yield


async def test_a_page_that_got_no_stream_says_why_and_tries_again(
    site: Site, browser: Browser
) -> None:
    async with open_tab(browser, site, "operator") as tab:
        tab.expected = {429}
        async with streams(site, "operator", MOST_OF_ONE):
            await tab.go("/admin")
            await tab.until(IS_LOST, "the page says that it has no stream")
            assert await tab.text("#live-state") == "Too many live pages are open, trying again"
            await tab.axe()
            await tab.shot("no-stream")
        await tab.until(IS_LIVE, "it is live after all")


async def test_a_page_whose_first_connection_fails_says_so_and_tries_again(
    site: Site, browser: Browser
) -> None:
    async def away(route: Route) -> None:
        await route.fulfill(status=502)

    async with open_tab(browser, site, "viewer") as tab:
        tab.expected = {502}
        await tab.page.route("**/admin/live/**", away)
        await tab.go("/admin/engine")
        await tab.until(IS_LOST, "the page says that it has no stream")
        assert await tab.text("#live-state") == "No connection, trying again"
        await tab.page.unroute("**/admin/live/**")
        await tab.until(IS_LIVE, "it is live after all")


async def test_a_tier_has_one_colour_on_every_page(site: Site, browser: Browser) -> None:
    """That of the overview, also where a chart has it alone."""
    swatch = "one => [one.closest('th').innerText.trim(), getComputedStyle(one).backgroundColor]"
    marker = """one => [one.innerText.trim(),
        getComputedStyle(one.querySelector(".u-marker")).borderTopColor]"""
    async with open_tab(browser, site, "viewer") as tab:
        await tab.go("/admin")
        found = tab.page.locator("section[aria-labelledby=promises] .swatch")
        colours = dict(await found.evaluate_all(f"all => all.map({swatch})"))
        assert set(colours) == {"premium", "free"}
        assert len(set(colours.values())) == 2
        for path in ("/admin/slo", "/admin/slo?tier=free", "/admin/usage"):
            await tab.go(path)
            await tab.until("document.querySelector('.u-legend .u-marker')", "the chart is drawn")
            lines = tab.page.locator(".u-legend .u-series:not(:first-child) th")
            seen = dict(await lines.evaluate_all(f"all => all.map({marker})"))
            assert seen == {name: colours[name] for name in seen}, path
            assert "free" in seen, path
