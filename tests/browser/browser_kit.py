"""What browser tests share: a real gateway with its engine under traffic, and a browser's tabs.

The gateway is `tiergate serve --demo` with the built-in model in a child process, traffic comes
from another (web_traffic.py). A `Tab` collects whatever a browser complains of (its console, the
content security policy, requests that fail) and has no pardon: `open_tab` fails at its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
VENDOR = ROOT / "dashboards" / "admin" / "static" / "vendor"
# Where screenshots go, for whoever wants to look at the pages; none are taken without it.
SHOTS = os.environ.get("TIERGATE_TEST_SHOTS", "")
DEADLINE_S = 60.0  # only a test that fails ever waits this long
START_LIMIT_S = 240.0
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]
SCHEMES = ("light", "dark")
WIDTHS = (360, 1440)
PASSWORD = "a long enough password"
ROLES = ("owner", "operator", "viewer", "tenant-viewer")
TOKEN = "token"
OWN = {"sec-fetch-site": "same-origin"}
# Of the token nothing is remembered between two contexts, and of a user only the cookie.
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
# A violation becomes an error in the console even where the browser only reports it.
_WATCH_POLICY = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


def chromium() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def need_browser() -> None:
    """Skip, or fail in CI, where the browser or the pages' scripts are not installed."""
    missing = []
    if chromium() is None:
        missing.append("Chromium (tests/install-services)")
    if not AXE.exists():
        missing.append("axe-core (npm ci in tests/node)")
    if not (VENDOR / "htmx.min.js").exists():
        missing.append("the pages' scripts (make assets)")
    if missing:
        assert not os.environ.get("CI"), f"CI must have {', '.join(missing)}"
        pytest.skip(f"not installed: {', '.join(missing)}")


@dataclass(frozen=True, slots=True)
class Site:
    """A running gateway with users of every role, named like it, all with `PASSWORD`."""

    url: str
    token: str
    keys: dict[str, str]

    def admin(self) -> httpx.Client:
        """Return a client with the admin token."""
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S)

    def api(self, tier: str = "premium") -> httpx.Client:
        """Return a client with a demo tenant's key."""
        headers = {"authorization": f"Bearer {self.keys[tier]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S)

    def ask(self, text: str = "What is TTFT?", tier: str = "premium", **more: Any) -> Any:
        """Send a chat request and return the answer."""
        body = {"model": "builtin", "messages": [{"role": "user", "content": text}]} | more
        with self.api(tier) as client:
            answer = client.post("/v1/chat/completions", json={"max_tokens": 16} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERGATE_")}
    return kept | {"OMP_NUM_THREADS": "1"}


@contextmanager
def running_site(folder: Path, *flags: str) -> Iterator[Site]:
    """Run a gateway for the length of a block."""
    import time

    ready_file, log = folder / "ready.json", folder / "log.txt"
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--demo", "--threads", "1"]
    more = ["--port", "0", "--data-dir", str(folder / "data"), "--ready-file", str(ready_file)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *more, *flags], cwd=ROOT, env=_environment(), stdout=out, stderr=out
        )
    try:
        end = time.monotonic() + START_LIMIT_S
        while not ready_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        ready = json.loads(ready_file.read_text())
        site = Site(ready["url"], ready["admin_token"], ready["keys"])
        _make_users(site)
        yield site
    finally:
        process.kill()
        process.wait()


def _make_users(site: Site) -> None:
    with site.admin() as client:
        tenants = client.get("/admin/api/v1/tenants").json()["data"]
        for role in ROLES:
            body = {"name": role, "role": role, "password": PASSWORD}
            if role == "tenant-viewer":
                body["tenant"] = next(t["name"] for t in tenants if t["tier"] == "premium")
            answer = client.post("/admin/api/v1/users", json=body)
            assert answer.status_code == 201, answer.text


@contextmanager
def traffic(site: Site, *, per_s: float = 4.0) -> Iterator[None]:
    """Let requests of both demo tenants come in for the length of a block."""
    command = [sys.executable, str(Path(__file__).with_name("web_traffic.py"))]
    process = subprocess.Popen(
        [*command, site.url, json.dumps(site.keys), str(per_s)], env=_environment()
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass
class Tab:
    """A page in a browser, and all that the browser has complained of."""

    page: Page
    site: Site
    context: BrowserContext
    faults: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)  # statuses of errors that a test provokes

    async def go(self, path: str) -> None:
        """Open a page of the gateway."""
        await self.page.goto(self.site.url + path, wait_until="load")

    async def text(self, selector: str = "main") -> str:
        """Return what is to be read there, with spaces as they are shown."""
        return " ".join((await self.page.inner_text(selector)).split())

    async def axe(self) -> None:
        """Assert that axe-core finds no violation of WCAG 2.2 AA."""
        await self.page.evaluate(AXE.read_text())
        run = "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})"
        found = await self.page.evaluate(run, RULES)
        said = [
            f"{one['id']} ({one['help']}): "
            + "; ".join(f"{n['html'][:160]} {n['failureSummary'][:200]}" for n in one["nodes"][:3])
            for one in found["violations"]
        ]
        assert said == [], "\n".join([self.page.url, *said])
        assert found["testEngine"]["name"] == "axe-core"

    async def fits(self) -> None:
        """Assert that nothing is wider than the window but what scrolls by itself."""
        inner, outer = await self.page.evaluate(
            "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        wide = """() => [...document.querySelectorAll("body *")].filter(e =>
            e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, nav"))
            .map(e => e.outerHTML.slice(0, 120)).slice(0, 5)"""
        assert inner <= outer, (self.page.url, inner, outer, await self.page.evaluate(wide))

    async def shot(self, name: str) -> None:
        """Keep a picture of the whole page, where somebody wants pictures."""
        if SHOTS:
            await self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)

    async def until(self, condition: str, what: str) -> None:
        """Wait until an expression of JavaScript holds on the page."""
        # Not wait_for_function: it is made of eval, which the pages' policy forbids.
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await self.page.evaluate(condition):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never happened: {what} ({self.page.url})") from None

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        said = message.text
        is_expected = any(f"status {of}{n}" in said for n in self.expected for of in ("", "of "))
        if not is_expected:
            self.faults.append(f"console: {message.text}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.faults.append(f"{response.status}: {response.url}")

    def _on_failed(self, request: Request) -> None:
        # What a page was still fetching when the browser left it: streams above all.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"failed: {request.url} {request.failure}")

    def watch(self) -> None:
        """Hear what the browser complains of."""
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("response", self._on_response)
        self.page.on("requestfailed", self._on_failed)


@asynccontextmanager
async def open_tab(
    browser: Browser,
    site: Site,
    who: str = "owner",
    *,
    scheme: str = "light",
    width: int = 1440,
    scripts: bool = True,
) -> AsyncIterator[Tab]:
    """Open a tab as a user of this role (or `TOKEN`, or "" for nobody), in a browser of its own.

    At its end nothing may have been complained of.
    """
    context = await browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 900},
        java_script_enabled=scripts,
        locale="en-GB",
    )
    try:
        await log_in(context, site, who)
        await context.add_init_script(_WATCH_POLICY)
        page = await context.new_page()
        page.set_default_timeout(DEADLINE_S * 1000)
        tab = Tab(page, site, context)
        tab.watch()
        yield tab
        await asyncio.sleep(0)  # events that have come already are heard
        assert tab.faults == []
    finally:
        await context.close()


async def log_in(context: BrowserContext, site: Site, who: str) -> None:
    """Log a context in without the form, which has its own test."""
    if not who:
        return
    form = {"user": who, "secret": PASSWORD} if who != TOKEN else {"secret": site.token}
    answer = await context.request.post(
        f"{site.url}/admin/login", form=form, headers=OWN, max_redirects=0
    )
    assert answer.status == 303, await answer.text()


async def walk(browser: Browser, site: Site, path: str, name: str, who: str = "owner") -> None:
    """Look at one page in both schemes and both widths: axe, overflow, complaints, a picture."""
    for scheme in SCHEMES:
        for width in WIDTHS:
            async with open_tab(browser, site, who, scheme=scheme, width=width) as tab:
                await tab.go(path)
                await tab.page.wait_for_timeout(1200)  # what is live has come at least once
                await tab.fits()
                await tab.axe()
                await tab.shot(f"{name}-{scheme}-{width}")
