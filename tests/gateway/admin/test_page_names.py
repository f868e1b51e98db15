"""Names that would mean something else where things are looked up by name or id."""

from __future__ import annotations

import pytest
from admin_kit import Office
from sqlalchemy import update
from test_page_forms import fault_of, page, send, value_of

from engine.core.clock import utc_now
from tenants.models import Tenant

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("what", ["tenant", "organisation", "user"])
async def test_a_name_like_an_id_is_refused_at_its_field(office: Office, what: str) -> None:
    """By the form and by the API, which say why."""
    name = (await office.get("tenants/free-tenant"))["id"]
    fields = {
        "tenant": {"name": name, "tier": "free", "organisation": "default"},
        "organisation": {"name": name},
        "user": {"name": name, "role": "viewer", "password": "a long enough password"},
    }[what]
    answer = await send(office, f"/admin/{what}s/new", **fields)
    assert answer.status_code == 422
    assert "name cannot be 32 hexadecimal digits" in fault_of(answer.text, "name")
    assert value_of(answer.text, "name") == name
    refused = await office.post(f"{what}s", fields, expect=400)
    assert "name cannot be 32 hexadecimal digits" in refused["error"]["message"]


async def test_a_tenants_viewer_sees_its_own_tenant_whatever_others_are_named(
    office: Office,
) -> None:
    """Another tenant has its id as a name, of old: no page, no list and no deed takes that one."""
    ledger = office.door.ledger
    mine = (await office.get("tenants/premium-tenant"))["id"]
    double = await ledger.repository.create_tenant("double", "free", utc_now())
    key = await ledger.repository.create_key(double.id, utc_now(), "key-of-the-double")
    async with ledger.database.write() as session:
        await session.execute(update(Tenant).where(Tenant.id == double.id).values(name=mine))
    who = "tenant-viewer"
    assert [t["id"] for t in (await office.get("tenants", who=who))["data"]] == [mine]
    assert {k["tenant_id"] for k in (await office.get("keys", who=who))["data"]} == {mine}
    for path in ("tenants", f"tenants/{mine}", "keys", "usage", "slo", "audit", "requests"):
        text = await page(office, f"/admin/{path}", who)
        assert double.id not in text, path
        assert key.record.id not in text, path
    assert "premium-tenant" in await page(office, "/admin/tenants", who)
    assert (await send(office, f"/admin/tenants/{mine}/state", disabled="true")).status_code == 303
    assert (await office.get("tenants/premium-tenant"))["disabled_at"] is not None
    assert (await office.get(f"tenants/{double.id}"))["disabled_at"] is None
    await send(office, f"/admin/tenants/{mine}/state", disabled="false")


@pytest.mark.parametrize("what", ["tier", "tenant", "organisation", "user"])
async def test_the_name_of_a_forms_address_is_refused_at_its_field(
    office: Office, what: str
) -> None:
    """What is named so would have no page: the form stands there."""
    form, fields = f"/admin/{what}s/new", dict[str, object](name="new")
    if what == "tier":
        fields |= {"rank": 5, "ttft_ms": 900, "tbt_ms": 90}
        text = await page(office, form)
        typed = {"objective": "95", "tbt_mode": "gap", "on_overload": "queue", "weight": "1"}
        typed |= {"on_limiter_away": "local", "max_queue": value_of(text, "max_queue")}
        zeros = ("ttft_ms_per_1k_prompt_tokens", "pace_ms", "price_prompt_nano")
        typed |= dict.fromkeys((*zeros, "price_cached_nano", "price_output_nano"), "0")
        answer = await send(office, form, **fields, **typed)
    else:
        more: dict[str, dict[str, object]] = {
            "tenant": {"tier": "free", "organisation": "default"},
            "user": {"role": "viewer", "password": "a long enough password"},
        }
        fields |= more.get(what, {})
        answer = await send(office, form, **fields)
    assert answer.status_code == 422
    assert "name cannot be 'new'" in fault_of(answer.text, "name")
    refused = await office.post(f"{what}s", fields, expect=400)
    assert "name cannot be 'new'" in refused["error"]["message"]
