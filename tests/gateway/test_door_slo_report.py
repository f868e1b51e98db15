"""A report of what a gateway really served is right by its checker, and kind to the ledger."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body
from test_door_admission import Queue, busy_door
from test_door_disconnects import leave_during
from test_door_slo import records

from gateway.slo_report_page import FORMS, report_file
from tenants.slo_report import Report, ReportSpan
from tenants.slo_verify import Verified, verify_report
from tenants.slo_verify_ledger import LedgerCheck
from tenants.values import Scope


async def report(door: Door, tenant: str, file: Path, form: str) -> Verified:
    """Write a report of the last hour and check it against the ledger and alone."""
    now = datetime.now(UTC)
    minute = now.replace(second=0, microsecond=0)
    whose = (await door.ledger.repository.get_tenant(tenant)).id
    span = ReportSpan(whose, minute - timedelta(hours=1), minute + timedelta(minutes=1))
    made = Report(door.ledger.database, span)
    text = "".join([part async for part in report_file(made, form)])
    await asyncio.to_thread(file.write_bytes, text.encode())
    alone = await verify_report(file)
    checked = await verify_report(file, LedgerCheck(door.ledger.database, now))
    assert alone.chain == checked.chain
    return checked


async def test_all_that_a_gateway_serves_and_refuses_is_right(tmp_path: Path) -> None:
    """Whole, streamed, several choices and prompts, eased, of no tokens, left, limited, nonsense,
    turned away, and served in another tier and by another version of it."""
    settings = {"max_queue": 6}
    async with open_door(tmp_path, settings=settings, options={"step_s": 0.002}) as door:
        repository = door.ledger.repository
        eased = {"x-tiergate-patience": "2"}
        bodies: list[tuple[str, Any, dict[str, str]]] = [
            (CHAT, chat_body(max_tokens=5), {}),
            (CHAT, chat_body(stream=True, max_tokens=5), {}),
            (CHAT, chat_body(n=3, max_tokens=4), {}),
            (CHAT, chat_body(max_tokens=0), {}),
            (CHAT, chat_body(stream=True, max_tokens=3), eased),
            (CHAT, chat_body(max_tokens=3), {"x-slo-ttft-ms": "1"}),
            (CHAT, chat_body(max_tokens=3), {"x-slo-tpot-ms": "5000"}),
            (TEXT, text_body(["a", "bbb" * 40, "cc"], max_tokens=2, n=2), {}),
            (TEXT, text_body("Say", max_tokens=2), eased),
        ]
        for path, body, headers in bodies:
            assert (await door.post(path, body, **headers)).status_code == 200
        assert (await door.post(CHAT, b"{")).status_code == 400
        queue = Queue(door)
        refused = await queue.fill("premium")
        assert refused is not None
        assert refused.status_code == 503
        await queue.drain()
        await leave_during(door, chat_body(stream=True, ignore_eos=True, max_tokens=900), held=1)
        await repository.change_tier("premium", {"ttft_ms": "300"})
        await eventually(lambda: 2 in {t.version for t in door.services.tiers.current}, "changed")
        assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
        limits = {"requests_per_minute": 1}
        now = datetime.now(UTC)
        await repository.set_limits(Scope.TENANT, "free-tenant", limits, now)
        for status in (200, 429):
            assert (await door.post(CHAT, chat_body(max_tokens=1), "free")).status_code == status
        found = await records(door, len(bodies) + len(queue.tasks) + 6)
        assert len({record.outcome for record in found}) >= 5
        await door.usage(len(bodies))
        for form in FORMS:
            checked = await report(door, "premium-tenant", tmp_path / f"r.{form}", form)
            free = await report(door, "free-tenant", tmp_path / f"f.{form}", form)
            assert (checked.requests, free.requests) == (len(found) - 2, 2)
            assert checked.unrecorded == free.unrecorded == 0


async def test_who_was_served_in_a_lower_tier_is_judged_by_that(tmp_path: Path) -> None:
    """By that tier's promise, and the report tells how many were."""
    premium = {"max_queue": "2", "on_overload": "downgrade"}
    async with busy_door(tmp_path, "off", premium=premium, free={"max_queue": "2"}) as door:
        queue = Queue(door)
        assert await queue.fill("premium") is not None
        await queue.drain()
        found = await records(door, 5)
        assert sorted((r.tier_asked, r.tier) for r in found if r.output_tokens) == [
            *([("premium", "free")] * 2),
            *([("premium", "premium")] * 2),
        ]
        checked = await report(door, "premium-tenant", tmp_path / "r.html", "html")
        assert {tier.tier: tier.offered for tier in checked.tiers} == {"premium": 3, "free": 2}
        page = await asyncio.to_thread((tmp_path / "r.html").read_text)
        assert "were served, and judged, as" in page
