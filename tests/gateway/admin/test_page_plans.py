"""No management page asks a question that reads a table that grows with traffic from end to end."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from admin_kit import open_office
from test_page_roles import filled

from engine.core.clock import utc_now
from gateway.dashboard import tiers
from gateway.dashboard.management_roles import MANAGEMENT
from tenants.repository import Change
from tenants.repository.audit import write_audit
from tenants.slo_store import insert_slo
from tenants.usage import insert_usage
from tenants.values import Actor, UsageRecord

TURNED = (
    "/admin/tenants?q=tenant&organisation=default&after=a",
    "/admin/organisations?after=a",
    "/admin/keys?tenant=free-tenant",
    "/admin/slo?tenant=free-tenant&tier=free&range=90d",
    "/admin/usage?tenant=free-tenant&month=2026-11",
    "/admin/usage?after=f",
    "/admin/audit?tenant=free-tenant&actor=ann&action=x.y",
    "/admin/audit?since=2026-11-01T00:00&until=2030-01-01T00:00&before=900",
    "/admin/users?after=a",
)


def of_the_ledger(name: str) -> ModuleType:
    """Return a kit of the ledger's own tests."""
    path = Path(__file__).parents[2] / "tenants" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.asyncio
async def test_every_page_goes_by_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every page as it opens, as people turn it, and as a tenant's viewer has it."""
    monkeypatch.setattr(tiers, "SAMPLE", 50)  # as small a part of all as it is of a busy week
    plans, kit = of_the_ledger("plan_kit"), of_the_ledger("slo_kit")
    async with open_office(tmp_path) as office:
        ledger, now = office.door.ledger, utc_now()
        tenant = await ledger.repository.get_tenant("free-tenant")
        key = (await ledger.repository.list_keys(tenant.id))[0]
        rows = [kit.slo_record(n, tenant_id=tenant.id, tier="free") for n in range(2000)]
        await insert_slo(ledger.database, rows)
        used = UsageRecord(
            request_id="",
            tenant_id=tenant.id,
            key_id=key.id,
            tier_requested="free",
            tier_served="free",
            model="builtin",
            prompt_tokens=1,
            cached_tokens=0,
            output_tokens=1,
            finish_reason="stop",
            stream=True,
            arrival=datetime(2026, 11, 1, tzinfo=UTC),
            total_ms=1.0,
        )
        fields = {name: getattr(used, name) for name in used.__dataclass_fields__}
        days = [
            UsageRecord(**fields | {"request_id": f"r{n}", "arrival": now - timedelta(hours=n)})
            for n in range(1000)
        ]
        await insert_usage(ledger.database, days)
        async with ledger.database.write() as session:
            change = Change("x.y", "z", "", None, None, tenant.id)
            for _ in range(1000):
                write_audit(session, Actor("ann"), now, change)
        await plans.analyse(ledger.database)
        paths = [p for (m, p), _ in sorted(MANAGEMENT.items()) if m == "GET"]
        with plans.questions() as asked:
            for path in (*(filled(p, key=key.id) for p in paths), *TURNED):
                for who in ("owner", "tenant-viewer"):
                    answer = await office.people[who].get(path)
                    assert answer.status_code in (200, 403, 404), (path, answer.text)
                    assert answer.status_code == 200 or who != "owner", path
        assert len(asked.asked) > 60
        # The audit's own order is that of its numbers: SQLite walks it back, 5,000 rows at most.
        walks = "FROM audit ORDER BY audit.number DESC\n LIMIT ?"
        walks_before = "WHERE audit.number < ? ORDER BY audit.number DESC\n LIMIT ?"
        found = await plans.whole_tables_read(ledger.database, asked)
        left = [said for said in found if walks not in said and walks_before not in said]
        assert left == []
