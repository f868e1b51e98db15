"""The ledger over HTTP: organisations, tenants, keys, tiers, limits, budgets, users; audited."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from admin_kit import PASSWORD, Office, code_of
from door_kit import CHAT, chat_body, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def latest(office: Office, action: str) -> dict[str, Any]:
    """Return the latest entry of the audit of this action."""
    found = await office.get(f"audit?action={action}&limit=1")
    entry: dict[str, Any] = found["data"][0]
    return entry


async def asked(office: Office, key: str) -> int:
    """Return the status of a chat with this key."""
    headers = {"authorization": f"Bearer {key}"}
    response = await office.door.http.post(CHAT, json=chat_body(max_tokens=1), headers=headers)
    return response.status_code


async def test_a_customer_from_nothing_to_an_answer_and_out(office: Office) -> None:
    """Organisation, tenant, key, a chat; then each of the three ways to shut the door."""
    payer = await office.post("organisations", {"name": "umbrella"})
    made = await office.post(
        "tenants", {"name": "acme", "tier": "free", "organisation": "umbrella"}
    )
    assert made["organisation_id"] == payer["id"]
    assert (await office.get("tenants/acme")) == (await office.get(f"tenants/{made['id']}")) == made
    key = await office.post("tenants/acme/keys", {"name": "ci"})
    assert await asked(office, key["key"]) == 200
    await office.patch("tenants/acme", {"disabled": True})
    await eventually(lambda: refused(office, key["key"]), "a disabled tenant is refused")
    await office.patch("tenants/acme", {"disabled": False})
    await eventually(lambda: served(office, key["key"]), "an enabled tenant is served")
    gone = await office.post(f"keys/{key['id']}/revoke", expect=200)
    assert gone["revoked_at"] is not None
    await eventually(lambda: refused(office, key["key"]), "a revoked key is refused")


async def served(office: Office, key: str) -> bool:
    return await asked(office, key) == 200


async def refused(office: Office, key: str) -> bool:
    return await asked(office, key) == 401


async def test_a_key_is_shown_once_and_never_again(office: Office) -> None:
    """Lists, the key's own page and the audit show the prefix and the last four."""
    made = await office.post("tenants/free-tenant/keys", {"environment": "test"})
    secret = made["key"]
    assert secret.startswith("tgk_test_")
    assert made["display"] == f"tgk_test_...{secret[-4:]}"
    for path in ("keys", f"keys/{made['id']}", "tenants/free-tenant/keys", "audit"):
        text = (await office.ask("GET", path)).text
        assert secret not in text
        assert "digest" not in text
    assert made["id"] in (await office.ask("GET", "audit")).text


async def test_a_key_is_made_with_all_it_may_have_and_changed(office: Office) -> None:
    """Scopes, models, end, limits, budgets; null opens again what was narrowed."""
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    made = await office.post(
        "tenants/free-tenant/keys",
        {
            "name": "narrow",
            "scopes": ["models", "chat"],
            "models": ["talker"],
            "expires_at": end.isoformat(),
            "limits": {"requests_per_minute": 5},
            "budgets": [{"period": "day", "unit": "tokens", "amount": 10, "alert_percent": 80}],
        },
    )
    assert (made["scopes"], made["models"]) == (["chat", "models"], ["talker"])
    assert datetime.fromisoformat(made["expires_at"]) == end
    (allowed,) = (await office.get(f"limits/key/{made['id']}"))["data"]
    assert allowed["limits"]["requests_per_minute"] == 5
    assert allowed["budgets"][0]["amount"] == 10
    changed = await office.patch(f"keys/{made['id']}", {"scopes": None, "models": ["a", "b"]})
    assert (changed["scopes"], changed["models"]) == (None, ["a", "b"])
    assert changed["expires_at"] == made["expires_at"]
    assert (await office.patch(f"keys/{made['id']}", {"expires_at": None}))["expires_at"] is None
    entry = await latest(office, "key.change")
    assert entry["before"]["expires_at"] is not None
    assert entry["after"]["expires_at"] is None


async def test_a_key_is_rotated_with_overlap(office: Office) -> None:
    """Both work for a while, and there is no third."""
    old = await office.post("tenants/free-tenant/keys", {})
    made = await office.post(f"keys/{old['id']}/rotate", {"overlap_s": 3600})
    assert made["rotated_from"] == old["id"]
    assert made["old"]["expires_at"] is not None
    assert [await asked(office, key) for key in (old["key"], made["key"])] == [200, 200]
    again = await office.ask("POST", f"keys/{made['id']}/rotate", {"overlap_s": 3600})
    assert (again.status_code, code_of(again)) == (400, "invalid_value")


async def test_all_keys_of_a_tenant_are_closed_in_two_steps(office: Office) -> None:
    """The code is that of the keys that were shown: one made meanwhile makes it worthless."""
    await office.post("tenants", {"name": "many", "tier": "free"})
    keys = [await office.post("tenants/many/keys", {}) for _ in range(2)]
    plan = await office.get("tenants/many/revocation")
    assert {key["id"] for key in plan["keys"]} == {key["id"] for key in keys}
    late = await office.post("tenants/many/keys", {})
    await office.post("tenants/many/revocation", {"code": plan["code"]}, expect=400)
    assert await asked(office, keys[0]["key"]) == 200
    plan = await office.get("tenants/many/revocation")
    closed = await office.post("tenants/many/revocation", {"code": plan["code"]}, expect=200)
    assert {key["id"] for key in closed["data"]} == {late["id"], *(key["id"] for key in keys)}
    await eventually(lambda: refused(office, late["key"]), "all are closed")


async def test_a_tenant_changes_tier_and_its_next_answer_is_served_by_it(office: Office) -> None:
    await office.post("tenants", {"name": "climber", "tier": "free"})
    key = (await office.post("tenants/climber/keys", {}))["key"]
    headers = {"authorization": f"Bearer {key}"}

    async def tier() -> str:
        answer = await office.door.http.post(CHAT, json=chat_body(max_tokens=1), headers=headers)
        return answer.headers["x-tiergate-tier"]

    assert await tier() == "free"
    assert (await office.patch("tenants/climber", {"tier": "premium"}))["tier"] == "premium"

    async def is_premium() -> bool:
        return await tier() == "premium"

    await eventually(is_premium, "the new tier serves")
    entry = await latest(office, "tenant.change")
    assert (entry["before"]["tier"], entry["after"]["tier"]) == ("free", "premium")
    assert (entry["actor"], entry["actor_kind"], entry["address"]) == (
        "admin token",
        "token",
        "127.0.0.1",
    )


async def test_a_change_names_its_request_in_the_audit(office: Office) -> None:
    """The id that the client gave, or that it was given, finds the entry again."""
    sent = await office.ask("POST", "organisations", {"name": "traced"}, x_request_id="my-id-7")
    assert sent.headers["x-request-id"] == "my-id-7"
    assert (await latest(office, "organisation.create"))["request_id"] == "my-id-7"


async def test_a_tier_is_changed_only_at_the_version_that_was_seen(office: Office) -> None:
    """Without If-Match 428, with another version 412, and then nothing has changed."""
    seen = await office.ask("GET", "tiers/free")
    tag = seen.headers["etag"]
    assert seen.json()["etag"] == tag
    bare = await office.ask("PATCH", "tiers/free", {"ttft_ms": 2500})
    assert (bare.status_code, code_of(bare)) == (428, "version_required")
    changed = await office.ask("PATCH", "tiers/free", {"ttft_ms": 2500}, if_match=tag)
    assert changed.json()["ttft_ms"] == 2500
    for stale in (tag, '"99"', "*", "W/nonsense"):
        lost = await office.ask("PATCH", "tiers/free", {"ttft_ms": 1}, if_match=stale)
        assert (lost.status_code, code_of(lost)) == (412, "version_changed"), stale
    assert (await office.get("tiers/free"))["ttft_ms"] == 2500
    versions = (await office.get("tiers/free/versions"))["data"]
    assert [v["version"] for v in versions] == list(range(1, len(versions) + 1))
    assert versions[-1]["ttft_ms"] == 2500


async def test_tiers_are_set_together_or_not_at_all(office: Office) -> None:
    """One that cannot be stops all; `check` changes nothing; running gateways have the result."""
    before = await office.get("tiers")
    good = {"premium": {"price_output_nano": 1200}, "batch": {"rank": 3, "ttft_ms": 60000}}
    bad = await office.ask("POST", "tiers/apply", {"tiers": good})
    assert bad.status_code == 400
    assert "tier batch" in bad.json()["error"]["message"].lower()
    assert await office.get("tiers") == before
    good["batch"]["tbt_ms"] = 2000
    checked = await office.post("tiers/apply", {"tiers": good, "check": True}, expect=200)
    assert [plan["changed"] for plan in checked["data"]] == [True, True]
    assert await office.get("tiers") == before
    applied = await office.post("tiers/apply", {"tiers": good}, expect=200)
    assert (applied["applied"], applied["data"][1]["before"]) == (True, None)
    prices = {p["tier"]: p["price_output_nano"] for p in (await office.get("prices"))["data"]}
    assert prices["premium"] == 1200

    def is_served() -> bool:
        return "batch" in {tier.name for tier in office.door.services.tiers.current}

    await eventually(is_served, "the running gateway has the new tier")
    stale = {"tiers": {"premium": {"rank": 0, "version": 1}}}
    assert (await office.ask("POST", "tiers/apply", stale)).status_code == 412
    created = await office.ask(
        "POST", "tiers", {"name": "slow", "rank": 4, "ttft_ms": 9, "tbt_ms": 9}
    )
    assert (created.status_code, created.headers["etag"]) == (201, '"1"')


async def test_limits_and_budgets_are_set_and_taken_away(office: Office) -> None:
    """Of an organisation and a tenant, for all models or for one; null takes away."""
    await office.patch("limits/tenant/free-tenant", {"limits": {"tokens_per_minute": 9000}})
    body = {"limits": {"concurrent_requests": 2}, "model": "talker"}
    await office.patch("limits/organisation/default", body)
    budget = {"period": "month", "unit": "nano", "amount": 10**12}
    await office.patch("budgets/tenant/free-tenant", {"budgets": [budget]})
    found = (await office.get("limits/tenant/free-tenant"))["data"]
    assert found[0]["limits"]["tokens_per_minute"] == 9000
    (shown,) = (await office.get("budgets/tenant/free-tenant"))["data"]
    assert shown["budgets"] == [budget | {"alert_percent": None}]
    await office.patch("budgets/tenant/free-tenant", {"budgets": [budget | {"amount": None}]})
    await office.patch("limits/tenant/free-tenant", {"limits": {"tokens_per_minute": None}})
    assert (await office.get("limits/tenant/free-tenant"))["data"] == []
    assert (await latest(office, "budgets.set"))["after"]["budgets"] == []
    for path in ("limits/planet/earth", "limits/tenant/gone", "limits/key/tgk_live_x"):
        assert (await office.ask("GET", path)).status_code == 404


async def test_users_come_and_go(office: Office) -> None:
    """A user is made, gets another role and password, and is shut out; no digest is ever shown."""
    body = {"name": "zoe@example.com", "role": "viewer", "password": PASSWORD}
    made = await office.post("users", body)
    assert (made["has_password"], made["role"]) == (True, "viewer")
    assert (await office.patch(f"users/{made['id']}", {"role": "operator"}))["role"] == "operator"
    lower = {"role": "tenant-viewer", "tenant": "free-tenant"}
    assert (await office.patch("users/zoe@example.com", lower))["tenant_id"] is not None
    await office.post("users/zoe@example.com/password", {"password": PASSWORD + "!"}, expect=200)
    off = await office.patch("users/zoe@example.com", {"disabled": True})
    assert off["disabled_at"] is not None
    only = await office.ask("PATCH", "users/owner", {"role": "viewer"})
    assert "last owner" in only.json()["error"]["message"]
    for path in ("users", "audit"):
        text = (await office.ask("GET", path)).text
        assert "argon2" not in text
        assert PASSWORD not in text


async def test_every_list_has_pages_that_hold_everything_once(office: Office) -> None:
    for i in range(5):
        await office.post("organisations", {"name": f"page-org-{i}"})
        await office.post("tenants", {"name": f"page-{i}", "tier": "free"})
        await office.post(f"tenants/page-{i}/keys", {"limits": {"requests_per_day": i}})
        await office.patch(f"limits/tenant/page-{i}", {"limits": {"tokens_per_day": i}})
    for path in ("organisations", "tenants", "keys", "users", "limits", "audit"):
        whole = await office.everything(path, limit=200)
        pages = await office.everything(path, limit=2)
        assert pages == whole, path
        assert len(whole) >= 4
    payer = await office.post(
        "tenants", {"name": "apart", "tier": "free", "organisation": "page-org-1"}
    )
    found = await office.everything("tenants?organisation=page-org-1")
    assert found == [payer]


async def test_the_audit_is_filtered(office: Office) -> None:
    """By tenant, actor, action and time; all hold together."""
    await office.post("tenants", {"name": "watched", "tier": "free"})
    start = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    await office.post("tenants/watched/keys", {}, who="operator")
    found = await office.everything(f"audit?tenant=watched&since={start}")
    assert [(e["action"], e["actor"]) for e in found] == [("key.create", "operator")]
    assert await office.everything(f"audit?tenant=watched&until={start}&actor=operator") == []
    assert len(await office.everything("audit?tenant=watched&action=tenant.create")) == 1


async def test_two_names_and_a_name_that_is_there(office: Office) -> None:
    """Doubles are a 409, unknown things a 404, and neither says what was sent."""
    for path, body in (
        ("organisations", {"name": "twice"}),
        ("tenants", {"name": "twice", "tier": "free"}),
        ("tiers", {"name": "twice", "rank": 9, "ttft_ms": 9, "tbt_ms": 9}),
        ("users", {"name": "twice", "role": "viewer", "password": PASSWORD}),
    ):
        await office.post(path, body)
        again = await office.ask("POST", path, body)
        assert (again.status_code, code_of(again)) == (409, "already_exists")
    for method, path, sent in (
        ("GET", "tenants/gone", None),
        ("GET", "organisations/gone", None),
        ("GET", "tiers/gone", None),
        ("GET", "users/gone", None),
        ("GET", "keys/" + "0" * 32, None),
        ("PATCH", "tenants/gone", {"tier": "free"}),
        ("PATCH", "tenants/acme", {"tier": "gone"}),
        ("POST", "tenants/gone/keys", {}),
        ("GET", "tenants?organisation=gone", None),
        ("GET", "audit?tenant=gone", None),
        ("GET", "tenants/%00", None),
        ("GET", "users/" + "x" * 5000, None),
    ):
        missing = await office.ask(method, path, sent)
        assert (missing.status_code, code_of(missing)) == (404, "not_found"), path
        assert "gone" not in missing.json()["error"]["message"]
