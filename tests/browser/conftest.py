"""One gateway under traffic and one browser for all browser tests of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("browser_kit")

from browser_kit import (  # noqa: E402
    CHROMIUM_FLAGS,
    Site,
    chromium,
    need_browser,
    running_site,
    traffic,
)
from playwright.async_api import Browser, async_playwright  # noqa: E402


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The gateway, with both demo tenants at work."""
    need_browser()
    with running_site(tmp_path_factory.mktemp("site")) as opened, traffic(opened):
        yield opened


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser; every test has contexts of its own in it."""
    need_browser()
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield opened
        await opened.close()
