"""A broken promise wakes somebody: gateway, Prometheus, rules, Alertmanager, webhook; all real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from door_kit import CHAT, Door, chat_body, eventually, open_door
from prometheus_kit import OPTIONS, ROOT, alertmanager, program, prometheus, wait_until, webhook

from gateway.slo_rules_text import rules_text

QUICK = {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h"}
PAGE = ("TiergateBurnFast", "premium")


def routes_to(url: str) -> dict[str, Any]:
    """Return the configuration that ships, hurried, with this receiver behind every way out."""
    shipped = (ROOT / "dashboards" / "alertmanager" / "alertmanager.yml").read_text()
    config: dict[str, Any] = yaml.safe_load(shipped)
    config["route"] |= QUICK
    for route in config["route"]["routes"]:
        route |= {key: QUICK[key] for key in ("group_wait", "group_interval")}
    hook = {"url": url, "send_resolved": True}
    config["receivers"] = [
        receiver | {"webhook_configs": [hook]} for receiver in config["receivers"]
    ]
    return config


async def late_answers(door: Door, count: int) -> None:
    """Have requests whose first token comes after it was due: the engine stands still meanwhile."""
    door.close_gate()
    asked = [
        asyncio.create_task(door.post(CHAT, chat_body(max_tokens=2), "premium"))
        for _ in range(count)
    ]
    await asyncio.sleep(0.8)  # the tier promises 500 ms
    door.open_gate()
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 200


async def good_answers(door: Door, count: int) -> None:
    for _ in range(count):
        answer = await door.post(CHAT, chat_body(max_tokens=2), "premium")
        assert answer.status_code == 200


async def counted(door: Door, number: int) -> None:
    """Wait until the door's own counter says so many."""
    line = 'tiergate_tier_slo_requests_total{tiergate_slo_objective="ttft",tiergate_tier="premium"}'

    async def enough() -> bool:
        text = (await door.http.get("/metrics")).text
        return any(
            row.startswith(line) and float(row.split()[-1]) >= number for row in text.splitlines()
        )

    await eventually(enough, f"{number} requests are counted")


@pytest.mark.slow
async def test_a_violation_pages_recovery_resolves_and_an_idle_tier_stays_silent(
    tmp_path: Path,
) -> None:
    """The tenant of tier `free` asks for nothing; nobody is told anything of it."""
    for needed in ("prometheus", "prometheus-alertmanager"):
        program(needed)
    async with open_door(tmp_path) as door:
        tiers = await door.ledger.repository.list_tiers()
        rules = rules_text(tiers, OPTIONS)
        target = door.url.removeprefix("http://")
        with (
            webhook() as (hook, url),
            alertmanager(tmp_path / "alertmanager", routes_to(url)) as manager,
            prometheus(tmp_path / "prometheus", target, rules, manager) as server,
        ):
            await good_answers(door, 5)
            await counted(door, 5)
            seen = 'sum(tiergate_tier_slo_requests_total{tiergate_slo_objective="ttft"})'
            await asyncio.to_thread(
                wait_until, lambda: server.number(seen) == 5, "Prometheus sees the good ones"
            )
            await asyncio.to_thread(
                wait_until,
                lambda: ("TiergateWatchdog", "") in hook.told("watchdog", "firing"),
                "the watchdog is heard",
            )
            assert hook.told("pager", "firing") == set()
            await late_answers(door, 15)
            await asyncio.to_thread(
                wait_until, lambda: PAGE in hook.told("pager", "firing"), "the page"
            )
            firing = await asyncio.to_thread(server.firing)
            assert ("TiergateBurnFast", "premium", "ttft") in firing
            assert not [alert for alert in firing if alert[1] == "free"]
            # Of 15 bad ones in 320 the share is below every factor of a page.
            await good_answers(door, 300)
            await asyncio.to_thread(
                wait_until, lambda: PAGE in hook.told("pager", "resolved"), "the page is over"
            )
            assert not [to for to, _, labels in hook.calls if labels.get("tiergate_tier") == "free"]
            assert await asyncio.to_thread(server.problems) == []


@pytest.mark.slow
async def test_a_tenant_that_gets_no_answers_pages_and_its_idle_neighbour_does_not(
    tmp_path: Path,
) -> None:
    """All of its requests fail, so it has no good ones that a share could be made of."""
    for needed in ("prometheus", "prometheus-alertmanager"):
        program(needed)
    async with open_door(
        tmp_path, settings={"stream_timeout_s": 0.3}, options={"step_s": 0.02}
    ) as door:
        tiers = await door.ledger.repository.list_tiers()
        rules = rules_text(tiers, OPTIONS).replace('for: "1m"', 'for: "1s"')
        target = door.url.removeprefix("http://")
        with (
            webhook() as (hook, url),
            alertmanager(tmp_path / "alertmanager", routes_to(url)) as manager,
            prometheus(tmp_path / "prometheus", target, rules, manager) as server,
        ):
            # Else all could be over before the gateway is looked at for the first time.
            await asyncio.to_thread(
                wait_until,
                lambda: server.query("tiergate_engine_up"),
                "Prometheus knows the gateway",
            )
            endless = chat_body(ignore_eos=True, max_tokens=900)
            asked = [asyncio.create_task(door.post(CHAT, endless, "premium")) for _ in range(12)]
            statuses = {answer.status_code for answer in await asyncio.gather(*asked)}
            assert statuses == {504}
            failing = ("TiergateTenantFailing", "premium")
            await asyncio.to_thread(
                wait_until, lambda: failing in hook.told("pager", "firing"), "the page"
            )
            found = await asyncio.to_thread(
                server.query, 'ALERTS{alertname="TiergateTenantFailing",alertstate="firing"}'
            )
            tenants = await door.ledger.repository.list_tenants()
            ids = {tenant.id for tenant in tenants if tenant.tier == "premium"}
            assert {sample["metric"]["tiergate_tenant_id"] for sample in found} == ids
            assert await asyncio.to_thread(server.problems) == []
