"""Readiness tells the truth: each cause by itself, for people and for machines; HEAD like GET."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door

from engine.core.clock import utc_now
from gateway.readiness import State, all_checks
from tenants.database import parse_url, sqlite_file
from tenants.errors import DatabaseUnavailable
from tenants.repository import Repository
from tenants.values import Scope


async def ready(door: Door, status: int) -> dict[str, Any]:
    response = await door.http.get("/readyz")
    assert response.status_code == status, response.text
    head = await door.http.head("/readyz")
    assert (head.status_code, head.content) == (status, b"")
    body: dict[str, Any] = response.json()
    return body


def set_revision(door: Door, revision: str) -> None:
    file = sqlite_file(parse_url(door.services.settings.database_url))
    connection = sqlite3.connect(str(file))
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


async def test_liveness_answers_head_whatever_else_is_wrong(door: Door) -> None:
    """A balancer that asks with HEAD gets the status alone; other methods are refused."""
    door.services.admission.draining = True
    for method in ("GET", "HEAD"):
        assert (await door.http.request(method, "/livez")).status_code == 200
        assert (await door.http.request(method, "/readyz")).status_code == 503
    assert (await door.http.post("/livez")).status_code == 405


async def test_a_draining_gateway_says_so(door: Door) -> None:
    door.services.admission.draining = True
    body = await ready(door, 503)
    assert body["missing"] == ["draining"]
    assert body["checks"]["draining"] == {
        "state": "failed",
        "code": "draining",
        "open_answers": 0,
    }


async def test_a_ledger_that_is_away_degrades_and_known_keys_are_served(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by the poll, before any usage is to be written, and also when it is back."""
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200

    async def no_answer(_self: Repository) -> int:
        raise DatabaseUnavailable("unplugged")

    monkeypatch.setattr(Repository, "keys_version", no_answer)

    async def degraded() -> Any:
        return (await door.http.get("/readyz")).json()["degraded"]

    async def is_away() -> bool:
        return await degraded() == ["database"]

    await eventually(is_away, "the ledger is seen to be away")
    check = (await ready(door, 200))["checks"]["database"]
    assert (check["state"], check["code"]) == ("degraded", "database_away")
    assert check["away_ms"] >= 0
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
    monkeypatch.undo()

    async def is_back() -> bool:
        return await degraded() == []

    await eventually(is_back, "the ledger is back")


async def test_a_schema_that_was_changed_under_us_fails(door: Door) -> None:
    """Somebody upgrades the database while an older gateway runs on it."""
    set_revision(door, "9999")
    await door.services.ledger_watch.look()
    body = await ready(door, 503)
    assert body["missing"] == ["the database has another schema"]
    assert body["checks"]["schema"]["code"] == "schema_changed"
    set_revision(door, door.ledger.revision)
    await door.services.ledger_watch.look()
    await ready(door, 200)


async def test_a_spool_that_is_full_fails(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on usage would be lost: the truth is that nothing more can be billed."""
    meter = door.services.meter
    monkeypatch.setattr(meter, "_database_ok", False)
    monkeypatch.setattr(meter, "_nearly_full", True)
    checks = {check.name: check for check in all_checks(door.services)}
    assert (checks["usage"].state, checks["usage"].code) == (State.FAILED, "spool_full")
    monkeypatch.setattr(meter, "_nearly_full", False)
    checks = {check.name: check for check in all_checks(door.services)}
    assert (checks["usage"].state, checks["database"].state) == (State.OK, State.DEGRADED)


async def test_a_task_that_ended_by_itself_fails(door: Door) -> None:
    async def broken() -> None:
        raise ValueError("a fault of ours")

    task = door.services.background.start("broken", broken())
    await asyncio.wait([task])
    body = await ready(door, 503)
    assert body["missing"] == ["task broken failed"]
    assert body["checks"]["tasks"]["failed"] == ["broken"]


async def test_a_limiter_that_is_away_fails_only_where_all_would_refuse(tmp_path: Path) -> None:
    """Nothing listens where Redis should be: tiers that count by themselves are served on."""
    async with open_door(tmp_path, settings={"redis_url": f"unix://{tmp_path}/none"}) as door:
        limits = {"requests_per_minute": 100}
        await door.ledger.repository.set_limits(Scope.TENANT, "premium-tenant", limits, utc_now())

        async def is_noticed() -> bool:
            await door.post(CHAT, chat_body(max_tokens=1))
            return (await door.http.get("/readyz")).json()["degraded"] == ["limits"]

        await eventually(is_noticed, "the limiter is seen to be away")
        check = (await ready(door, 200))["checks"]["limits"]
        assert (check["code"], check["tiers_refused"]) == ("limiter_away", 0)
        for tier in ("premium", "free"):
            values = {"on_limiter_away": "refuse"}
            await door.ledger.repository.change_tier(tier, values, now=utc_now())

        async def is_refused() -> bool:
            return (await door.http.get("/readyz")).status_code == 503

        await eventually(is_refused, "no tier is served")
        assert (await ready(door, 503))["missing"] == ["limits"]
