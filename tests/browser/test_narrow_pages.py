"""What a narrow screen must not lose: the ends of keys, and the hint that a drawing goes on."""

from __future__ import annotations

import asyncio

import pytest
from browser_kit import SCHEMES, Site, open_tab
from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="session")

NARROW = 390


async def test_keys_are_whole_where_they_are_told_apart(site: Site, browser: Browser) -> None:
    async with open_tab(browser, site, "viewer", width=NARROW) as tab:
        await tab.go("/admin/keys")
        keys = tab.page.locator("tbody th a.mono")
        assert await keys.count() >= 2
        cut = (
            "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
        )
        assert await keys.evaluate_all(cut) == []
        await tab.fits()
        await tab.shot("keys-narrow")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_drawing_that_goes_on_has_a_shadow_at_that_edge(
    site: Site, browser: Browser, scheme: str
) -> None:
    """Darker at the right edge while there is more, at the left one after scrolling."""
    answer = await asyncio.to_thread(site.ask)
    async with open_tab(browser, site, "viewer", width=NARROW, scheme=scheme) as tab:
        await tab.go(f"/admin/requests/{answer['id']}")
        drawn = tab.page.locator(".scroll.drawn").last
        await drawn.scroll_into_view_if_needed()

        async def edges() -> tuple[int, int]:
            """Return how light the lower corners are, where nothing is drawn."""
            box = await drawn.bounding_box()
            assert box is not None
            lights = []
            for x in (box["x"] + 1, box["x"] + box["width"] - 2):
                spot = {"x": x, "y": box["y"] + box["height"] - 4, "width": 1, "height": 2}
                picture = await tab.page.screenshot(clip=spot)  # type: ignore[arg-type]
                lights.append(await tab.page.evaluate(LIGHT, list(picture)))
            return lights[0], lights[1]

        left, right = await edges()
        assert right < left, "there is more at the right"
        await tab.shot(f"timeline-narrow-{scheme}")
        await drawn.evaluate("one => { one.scrollLeft = one.scrollWidth; }")
        left, right = await edges()
        assert left < right, "there is more at the left"
        await tab.page.set_viewport_size({"width": 1440, "height": 900})
        left, right = await edges()
        assert left == right, "all of it is there"


LIGHT = """async (bytes) => {
    const picture = await createImageBitmap(new Blob([new Uint8Array(bytes)], {type: "image/png"}));
    const canvas = new OffscreenCanvas(1, 1);
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
    return red + green + blue;
}"""
