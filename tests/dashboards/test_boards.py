"""Boards ask for what there is: every query runs against a Prometheus that scraped a gateway."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from door_kit import CHAT, Door, chat_body, eventually, open_door
from prometheus_kit import OPTIONS, ROOT, Prometheus, program, prometheus, wait_until

from dashboards.grafana.make_boards import BOARDS, texts
from gateway.forecast_gauges import LENGTH_GAUGES
from gateway.prometheus_text import prometheus_name
from gateway.slo_rules_health import FAILING
from gateway.slo_rules_text import rules_text

# What has no value before lengths have been learned from some hundred answers.
LEARNED_LATER = ("tiergate_lengths_order_accuracy", "tiergate_lengths_high_coverage")
RANGE = "1m"


def boards() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(BOARDS.glob("*.json"))}


def queries() -> Iterator[tuple[str, str]]:
    """Yield (board / panel, expression) for each query, and for the values of each variable."""
    for name, board in boards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{name} {panel['title']}", target["expr"]
        for variable in board["templating"]["list"]:
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["definition"]
            ).groups()  # type: ignore[union-attr]
            yield f"{name} ${variable['name']}", f'count by ({label}) ({metric}{{{label}!=""}})'


def asked(expression: str) -> str:
    """Return an expression as Grafana sends it with everything chosen."""
    for word, value in (("$__rate_interval", RANGE), ("$__range", RANGE)):
        expression = expression.replace(word, value)
    return re.sub(r"\$(job|tier|tenant)\b", ".*", expression)


def test_the_boards_that_ship_are_those_that_the_code_makes() -> None:
    found = {path.name: path.read_text() for path in BOARDS.glob("*.json")}
    assert found == texts(), "run `python -m dashboards.grafana.make_boards`"


def test_boards_are_whole_and_nothing_overlaps() -> None:
    uids = [board["uid"] for board in boards().values()]
    assert len(uids) == len(set(uids)) == 4
    source = yaml.safe_load(
        (ROOT / "dashboards/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"][0]["uid"]
    for board in boards().values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells
            if panel["type"] != "row":
                assert panel["datasource"]["uid"] == source
                assert panel["title"]
                assert panel["targets"]


async def traffic(door: Door) -> None:
    """Have everything happen that boards show: answers, streams, lateness, refusals, leavers."""
    for number in range(6):
        for tier in ("premium", "free"):
            body = chat_body(f"Hi {number}", max_tokens=6, stream=bool(number % 2))
            assert (await door.post(CHAT, body, tier)).status_code == 200
    door.close_gate()
    waiting = [
        asyncio.create_task(door.post(CHAT, chat_body(max_tokens=3), "premium")) for _ in range(11)
    ]
    await asyncio.sleep(0.7)
    door.open_gate()
    await asyncio.gather(*waiting)
    for _ in range(2):
        # A histogram's first value is no increase: there must be a scrape between them.
        await leave(door)
        await asyncio.sleep(1.2)


async def leave(door: Door) -> None:
    """Ask for a long answer and go after its first bytes."""
    body = chat_body(max_tokens=500, ignore_eos=True, stream=True)
    headers = door.auth("free")
    async with door.http.stream("POST", CHAT, json=body, headers=headers) as answer:
        async for _ in answer.aiter_bytes():
            break
    await eventually(lambda: len(door.services.live) == 0, "the leaver's seat is free")


async def seen_twice(server: Prometheus, door: Door) -> None:
    """Wait until Prometheus has scraped what the door counts, and the rules have been evaluated."""
    text = (await door.http.get("/metrics")).text
    told = re.search(r"tiergate_requests_total\{.*ok.*premium.*\} (\S+)", text)
    assert told is not None
    counted = 'sum(tiergate_requests_total{tiergate_outcome="ok",tiergate_tier="premium"})'
    await asyncio.to_thread(
        wait_until,
        lambda: (server.number(counted) or 0) >= float(told[1]),
        "the requests are scraped",
    )
    for expression in (
        "count(slo:current_burn_rate:ratio) == 8",
        # Slow groups are evaluated every two minutes, each at a moment of its own.
        "count(slo:sli_error:ratio_rate30d) == 8",
        "count(slo:period_error_budget_remaining:ratio) == 8",
        'count(ALERTS{alertname="TiergateWatchdog"}) == 1',
    ):
        await asyncio.to_thread(
            wait_until, lambda e=expression: server.query(e), expression, limit_s=150
        )


@pytest.mark.slow
async def test_every_query_of_every_board_returns_data(tmp_path: Path) -> None:
    """Names, labels and grammar at once; nothing of a board is empty for a gateway with traffic."""
    program("prometheus")
    async with open_door(tmp_path, options={"step_s": 0.002}) as door:
        tiers = await door.ledger.repository.list_tiers()
        # The slow groups at the pace of the others: what they compute is not changed by it.
        rules = rules_text(tiers, OPTIONS).replace('interval: "2m"', 'interval: "1s"')
        target = door.url.removeprefix("http://")
        with prometheus(tmp_path / "prometheus", target, rules) as server:
            await asyncio.to_thread(
                wait_until, lambda: server.query("tiergate_engine_up == 1"), "a first scrape"
            )
            await traffic(door)
            await seen_twice(server, door)
            empty, wrong = [], []
            for where, expression in queries():
                found = await asyncio.to_thread(server.query, asked(expression))
                values = [float(sample["value"][1]) for sample in found]
                if any(math.isfinite(value) for value in values):
                    continue
                if not any(metric in expression for metric in LEARNED_LATER):
                    (wrong if found else empty).append(f"{where}: {expression}")
            assert (empty, wrong) == ([], [])
            assert await asyncio.to_thread(server.problems) == []


def test_what_a_healthy_gateway_does_not_show_has_its_name_from_elsewhere() -> None:
    """The queries that may be empty, or that make up for it, name nothing that does not exist."""
    gauges = {prometheus_name(name) for name in LENGTH_GAUGES}
    assert set(LEARNED_LATER) <= gauges
    makes_up = [expression for _, expression in queries() if "or vector(0)" in expression]
    assert makes_up == [f"count({FAILING}) or vector(0)"]
