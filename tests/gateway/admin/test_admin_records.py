"""Files of usage and audit over HTTP: complete, checkable, bounded, and written down."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from admin_kit import Office, code_of
from door_kit import CHAT, chat_body

from tenants.usage_verify import verify_usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_AGO = "usage/export?since=2026-01-01"
ALL = "usage/export"


async def served(office: Office, tier: str, count: int) -> None:
    """Let a tenant use something, and wait until it is in the ledger."""
    before = len(await office.door.usage(0))
    for _ in range(count):
        assert (await office.door.post(CHAT, chat_body(max_tokens=2), tier)).status_code == 200
    await office.door.usage(before + count)


async def test_an_export_is_what_the_command_writes(office: Office, tmp_path: Path) -> None:
    """CSV and JSON lines hold the same chain, and `usage verify` finds every line right."""
    await served(office, "premium", 2)
    await served(office, "free", 1)
    until = (datetime.now(UTC) + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = f"{LONG_AGO}&until={until}"
    sheet = await office.ask("GET", path)
    assert sheet.headers["content-type"].startswith("text/csv")
    assert sheet.headers["content-disposition"] == 'attachment; filename="usage.csv"'
    assert sheet.headers["cache-control"] == "no-store"
    rows = list(csv.DictReader(io.StringIO(sheet.text)))
    lines = [
        json.loads(line)
        for line in (await office.ask("GET", f"{path}&format=jsonl")).text.splitlines()
    ]
    assert [row["chain"] for row in rows] == [line["chain"] for line in lines]
    assert (rows[0]["record"], rows[-1]["record"]) == ("export", "total")
    file = tmp_path / "usage.csv"
    file.write_bytes(sheet.content)
    checked = await verify_usage(office.door.ledger.database, file)
    assert checked.requests == int(rows[-1]["requests"]) >= 3


async def test_an_export_of_one_tenant_has_no_other(office: Office) -> None:
    """By an operator's filter, and for a tenant's viewer without one."""
    await served(office, "premium", 1)
    await served(office, "free", 1)
    mine = (await office.get("tenants/premium-tenant"))["id"]
    for who, path in (
        ("operator", f"{LONG_AGO}&tenant=premium-tenant&format=jsonl"),
        ("tenant-viewer", f"{ALL}?format=jsonl"),
        ("tenant-viewer", f"{LONG_AGO}&tenant=premium-tenant&format=jsonl"),
    ):
        text = (await office.ask("GET", path, who=who)).text
        lines = [json.loads(line) for line in text.splitlines()]
        used = [line for line in lines if line["record"] == "usage"]
        assert used
        assert {line["tenant_id"] for line in used} == {mine}
    found = (await office.get("audit?action=usage.export&limit=3"))["data"]
    assert [e["actor"] for e in found] == ["tenant-viewer", "tenant-viewer", "operator"]
    assert {e["tenant_id"] for e in found} == {mine}


async def test_an_audit_export_holds_all_entries_in_order(office: Office) -> None:
    for i in range(3):
        await office.post("organisations", {"name": f"exported-{i}"})
    answer = await office.ask("GET", "audit/export")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    numbers = [line["number"] for line in lines]
    assert numbers == sorted(set(numbers))
    assert lines[-1]["action"] == "audit.export", "that it was taken away is in it"
    assert {line["number"] for line in lines} >= {
        e["number"] for e in await office.everything("audit", limit=200)
    }


@pytest.mark.parametrize(
    "path",
    [
        "usage/export?since=2024-01-01&until=2026-01-01",
        "usage/export?since=2026-02-01&until=2026-01-01",
        "usage/export?since=soon",
        "usage/export?since=2026-01-01&format=xml",
        "usage/export?since=2026-01-01&colour=red",
        "audit/export?since=9999-12-31T23:59:59-12:00",
    ],
)
async def test_an_export_that_cannot_be_is_refused_before_anything_is_sent(
    office: Office, path: str
) -> None:
    refused = await office.ask("GET", path)
    assert (refused.status_code, code_of(refused)) == (400, "invalid_value")


async def test_only_so_many_exports_at_once(office: Office) -> None:
    """Two at a time on a gateway; a turn is given back however an export ends."""
    desk = office.door.server.config.app.state.admin  # type: ignore[union-attr]
    async with desk.exports, desk.exports:
        held = await office.ask("GET", LONG_AGO)
        assert (held.status_code, code_of(held)) == (429, "rate_limit_exceeded")
        assert "retry-after" in held.headers
    answers = await asyncio.gather(*(office.ask("GET", LONG_AGO) for _ in range(2)))
    assert {answer.status_code for answer in answers} == {200}
    assert desk.exports._value == 2
