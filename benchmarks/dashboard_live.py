"""Do the live charts hold 60 points a second without a task of the browser over 50 ms?

A gateway runs with its pages as ever. Its list of judged requests is filled with five minutes of
60 made-up ones a second (18,000 dots a chart, the most that a page shows), and goes on at that
rate; the engine sleeps. Debian's Chromium, headless, without a GPU, looks at the overview: five
charts, and HTML that is renewed every second. The browser itself says which of its tasks were
long (PerformanceObserver, `longtask`: 50 ms and more); frames are counted beside it.

`opening` is from the navigation until the page is live and drawn for the first time; `live` the
time after it. Run: python -m benchmarks.dashboard_live [--seconds 60] [--rate 60]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import uvloop
from playwright.async_api import async_playwright

from benchmarks.gateway_under_test import engine_config
from benchmarks.scheduling.points import machine
from engine.core.clock import NS_PER_MS, NS_PER_S, utc_now
from engine.serving.process import EngineProcess
from gateway.app import create_app
from gateway.dashboard.points import SPAN_S
from gateway.ledger import ledger
from gateway.server import Server, listen, server_config
from gateway.services import Services
from gateway.settings import Settings
from tenants.keys import generate_admin_token
from tenants.slo import Outcome, SloRecord

RESULT = Path(__file__).parent / "results" / "dashboard_live.json"
HERE = Path(__file__).parent
GOAL_MS = 50
TURN_S = 0.05
START_LIMIT_S = 120.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
WATCH = """
window.tasks = []; window.frames = 0;
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) window.tasks.push([one.startTime, one.duration]);
}).observe({type: "longtask", buffered: true});
const count = () => { window.frames += 1; requestAnimationFrame(count); };
requestAnimationFrame(count);
"""
IS_LIVE = """() => document.querySelectorAll(".plot canvas").length === 5
  && document.getElementById("live-state").dataset.state === "live" """


def made_up(number: int, chance: Random) -> SloRecord:
    """Return a request of either tier, some of them late."""
    tier, due_ms, tbt_ms = (("premium", 500, 100), ("free", 2000, 500))[number % 2]
    ttft_ns = int(due_ms * NS_PER_MS * chance.lognormvariate(-1.2, 0.7))
    needed = int(tbt_ms * NS_PER_MS * chance.lognormvariate(-1.0, 0.5))
    total_ns = ttft_ns + NS_PER_S
    return SloRecord(
        id=f"made-up-{number}", request_id="", tenant_id="", key_id="", model="", operation="chat",
        tier_asked=tier, tier=tier, tier_version=1, arrival=utc_now(),
        outcome=Outcome.COMPLETED, reason="", stream=True, prompt_tokens=20, output_tokens=20,
        total_ns=total_ns, queue_ns=0, ttft_ns=ttft_ns, ttft_due_ns=due_ms * NS_PER_MS, gaps=19,
        late_gaps=0, tbt_ns=tbt_ms * NS_PER_MS, tbt_mode="stream", needed_tbt_ns=needed, draw=0,
        met=ttft_ns <= due_ms * NS_PER_MS and needed <= tbt_ms * NS_PER_MS, ttft_met=True,
        tbt_met=True, available=True,
    )  # fmt: skip


def ended_at(record: SloRecord, seconds_ago: float) -> SloRecord:
    """Return the record as of a request that ended then."""
    took = timedelta(seconds=seconds_ago, microseconds=record.total_ns / 1000)
    return replace(record, arrival=utc_now() - took)


async def serve(folder: Path, rate: float) -> None:
    """Run the gateway, and let made-up requests end, until it is killed."""
    settings, token = Settings(data_dir=folder, port=0), generate_admin_token()
    bound = listen("127.0.0.1", 0)
    async with ledger(settings, lambda _line: None) as opened:
        engine = EngineProcess(engine_config("paced", 5.0))
        tiers = await opened.repository.list_tiers()
        app = create_app(settings, engine, opened, tiers, admin_token=token)
        services: Services = app.state.services
        server = Server(server_config(app), lambda _count: None)
        server.loop = asyncio.get_running_loop()
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await services.host.started.wait()
        chance, number = Random(7), 0
        for number in range(int(SPAN_S * rate)):
            ago = SPAN_S - number / rate
            services.slo.latest.append(ended_at(made_up(number, chance), ago))
            services.slo.num_ended += 1
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        (folder / "ready.json").write_text(json.dumps({"url": url, "token": token}))
        begun, first = time.monotonic(), number
        while not serving.done():
            await asyncio.sleep(TURN_S)
            while number - first < (time.monotonic() - begun) * rate:
                number += 1
                services.slo.latest.append(ended_at(made_up(number, chance), 0.0))
                services.slo.num_ended += 1


@contextlib.contextmanager
def running(folder: Path, rate: float) -> Iterator[dict[str, str]]:
    """Run it in a process of its own for the length of a block."""
    command = [sys.executable, "-m", "benchmarks.dashboard_live", "--serve", str(folder)]
    process = subprocess.Popen([*command, "--rate", str(rate)], cwd=HERE.parent)
    try:
        end = time.monotonic() + START_LIMIT_S
        while not (folder / "ready.json").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the gateway did not start")
            time.sleep(0.05)
        yield json.loads((folder / "ready.json").read_text())
    finally:
        process.kill()
        process.wait()


async def look(site: dict[str, str], seconds: float) -> dict[str, Any]:
    """Open the overview and watch it."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS
        )
        context = await browser.new_context(viewport={"width": 1440, "height": 1900})
        own = {"sec-fetch-site": "same-origin"}
        form = {"secret": site["token"]}
        await context.request.post(
            f"{site['url']}/admin/login", form=form, headers=own, max_redirects=0
        )
        await context.add_init_script(WATCH)
        page = await context.new_page()
        await page.goto(f"{site['url']}/admin")
        while not await page.evaluate(IS_LIVE):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.0)
        begun, frames = await page.evaluate("[performance.now(), window.frames]")
        await asyncio.sleep(seconds)
        ended, after, tasks = await page.evaluate("[performance.now(), frames, window.tasks]")
        dots = await page.inner_text("figure[data-chart=ttft] figcaption")
        assert "First tokens" in dots
        result = {
            "chromium": browser.version,
            "opening": told([took for at, took in tasks if at < begun]),
            "live": {
                "seconds": round((ended - begun) / 1000, 1),
                "frames_per_s": round((after - frames) / (ended - begun) * 1000, 1),
                **told([took for at, took in tasks if at >= begun]),
            },
        }
        await browser.close()
    return result


def told(tasks: list[float]) -> dict[str, Any]:
    """Return how many tasks were long, and the longest of them."""
    return {"long_tasks": len(tasks), "longest_ms": round(max(tasks, default=0.0))}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(asked.serve, asked.rate))
        return
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), asked.rate) as site:
        result = asyncio.run(look(site, asked.seconds))
    result = {
        "machine": machine(),
        "points_per_s": asked.rate,
        "dots_a_chart": int(asked.rate * SPAN_S),
        "goal_ms": GOAL_MS,
        **result,
    }
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
