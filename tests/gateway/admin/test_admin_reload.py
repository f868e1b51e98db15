"""Tiers change under a running gateway: what runs keeps its promise, what comes has the new one."""

from __future__ import annotations

import asyncio

from admin_kit import Office
from door_kit import CHAT, chat_body, eventually

from gateway.admin.roles import V1


async def test_what_runs_keeps_its_tier_and_what_comes_gets_the_new_one(
    small_office: Office,
) -> None:
    """One answer is under way while its tier gets another version: each is billed by its own."""
    door = small_office.door
    door.close_gate()
    running = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=3), "free"))
    await eventually(lambda: door.services.admission.waiting == 1, "it was admitted")
    change = {"ttft_ms": 2500, "price_output_nano": 7, "max_output_tokens": 2}
    await small_office.post("tiers/apply", {"tiers": {"free": change}}, expect=200)

    def is_followed() -> bool:
        return any(t.name == "free" and t.version == 2 for t in door.services.tiers.current)

    await eventually(is_followed, "the running gateway has read it")
    later = asyncio.create_task(door.post(CHAT, chat_body(), "free"))
    await eventually(lambda: door.services.admission.waiting == 2, "another was admitted")
    door.open_gate()
    answers = [await running, await later]
    assert [answer.status_code for answer in answers] == [200, 200]
    rows = [(await door.usage_of(answer.json()["id"]))[0] for answer in answers]
    assert [(row.tier_version, row.output_tokens) for row in rows] == [(1, 3), (2, 2)]
    assert [row.cost_nano for row in rows] == [0, 2 * 7]


async def test_a_set_that_cannot_be_leaves_the_last_good_one(small_office: Office) -> None:
    """The gateway goes on by what it had, and says so to whoever asks."""
    door = small_office.door
    before = door.services.tiers.current
    bad = {"tiers": {"free": {"ttft_ms": 1500}, "premium": {"tbt_ms": 10, "pace_ms": 10}}}
    refused = await small_office.ask("POST", "tiers/apply", bad)
    assert refused.status_code == 400
    assert "pace_ms must be" in refused.json()["error"]["message"]
    version = await door.ledger.repository.keys_version()
    await asyncio.sleep(3 * door.services.settings.key_poll_s)
    assert await door.ledger.repository.keys_version() == version
    assert door.services.tiers.current == before
    listed = await small_office.ask("GET", f"{V1}/tiers")
    assert [tier["version"] for tier in listed.json()["data"]] == [1, 1]


async def test_a_tier_that_is_new_serves_its_tenants_at_once(small_office: Office) -> None:
    """Added, given to a tenant, and served by its name in answers and metrics."""
    door = small_office.door
    batch = {"name": "batch", "rank": 3, "ttft_ms": 60000, "tbt_ms": 2000}
    await small_office.post("tiers", batch)
    await small_office.post("tenants", {"name": "patient", "tier": "batch"})
    key = (await small_office.post("tenants/patient/keys", {}))["key"]
    headers = {"authorization": f"Bearer {key}"}
    answer = await door.http.post(CHAT, json=chat_body(max_tokens=2), headers=headers)
    assert (answer.status_code, answer.headers["x-tiergate-tier"]) == (200, "batch")
    assert answer.json()["service_tier"] == "flex"
    assert 'tiergate_tier="batch"' in (await door.http.get("/metrics")).text
