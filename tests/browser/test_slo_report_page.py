"""A report's page in a real browser: readable by all, in both schemes, narrow, wide, on paper."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import slo_ledger_kit as kit
from browser_kit import AXE, RULES, SCHEMES, WIDTHS
from playwright.async_api import Browser

from migrations import runner
from tenants.database import Database
from tenants.pepper import make_pepper
from tenants.repository import Repository

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def pages(folder: Path) -> list[Path]:
    """Write the report of a tenant with every kind of request, and of one without any."""
    url = f"sqlite:///{folder / 'ledger.db'}"
    await runner.upgrade(url)
    database = await Database.open(url)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    slos = kit.Slos(database, Repository(database, make_pepper(b"x")), now)
    await slos.open("acme", "idle")
    await slos.fill(1500, days=29, names=("acme",), every=9)
    found = []
    for name in ("acme", "idle"):
        file = await slos.report(folder, "html", slos.span(name, 30))
        found.append(Path(shutil.move(file, folder / f"{name}.html")))
    await database.close()
    return found


async def test_a_report_is_readable_everywhere(browser: Browser, tmp_path: Path) -> None:
    """No violation of WCAG 2.2 AA, nothing wider than the window, no fault, no request."""
    for file in await pages(tmp_path):
        for scheme in SCHEMES:
            for width in WIDTHS:
                context = await browser.new_context(
                    color_scheme="dark" if scheme == "dark" else "light",
                    viewport={"width": width, "height": 900},
                )
                page = await context.new_page()
                said: list[str] = []
                asked: list[str] = []
                page.on("console", lambda m: said.append(m.text))  # noqa: B023
                page.on("pageerror", lambda e: said.append(str(e)))  # noqa: B023
                page.on("request", lambda r: asked.append(r.url))  # noqa: B023
                await page.goto(file.as_uri())
                inner = await page.evaluate("document.documentElement.scrollWidth")
                assert inner <= width
                await page.evaluate(AXE.read_text())
                run = "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})"
                found = (await page.evaluate(run, RULES))["violations"]
                assert [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found] == []
                assert said == []
                assert asked == [file.as_uri()]
                await context.close()


async def test_a_report_can_be_printed(browser: Browser, tmp_path: Path) -> None:
    """Some pages of paper; in dark rooms too, paper is white."""
    file, _ = await pages(tmp_path)
    context = await browser.new_context(color_scheme="dark")
    page = await context.new_page()
    await page.goto(file.as_uri())
    await page.emulate_media(media="print")
    colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    paper = await page.pdf(format="A4", print_background=True)
    assert paper.startswith(b"%PDF-")
    assert 3 <= paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") <= 12
    await context.close()
