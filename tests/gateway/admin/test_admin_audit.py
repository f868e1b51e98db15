"""Nothing is changed over HTTP that the audit does not tell: who, before, after, which request."""

from __future__ import annotations

from typing import Any

import pytest
from admin_kit import OWN, PASSWORD, TOKEN, Office, log_in

from gateway.admin.roles import ACCESS, BASE, V1
from tenants.keys import KEY_PATTERN
from tenants.repository import audit as audit_module

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRETS = (PASSWORD, "argon2", "tga_")


async def prepared(office: Office) -> dict[str, str]:
    """Make what the changes are made to; returns the parts of the paths."""
    await office.post("organisations", {"name": "audited"})
    await office.post("tenants", {"name": "audited", "tier": "free"})
    key = await office.post("tenants/audited/keys", {})
    await office.post("users", {"name": "audited", "role": "viewer", "password": PASSWORD})
    return {"tenant": "audited", "key": key["id"], "user": "audited", "tier": "premium"}


def changes() -> dict[tuple[str, str], tuple[Any, set[str]]]:
    """Return a body for every route that changes something, and the actions it is to leave."""
    tier = {"rank": 7, "ttft_ms": 9, "tbt_ms": 9}
    budget = {"period": "day", "unit": "tokens", "amount": 5}
    return {
        ("POST", f"{V1}/organisations"): ({"name": "fresh"}, {"organisation.create"}),
        ("POST", f"{V1}/tenants"): ({"name": "fresh", "tier": "free"}, {"tenant.create"}),
        ("PATCH", f"{V1}/tenants/{{tenant}}"): ({"tier": "premium"}, {"tenant.change"}),
        ("POST", f"{V1}/tenants/{{tenant}}/keys"): (
            {"limits": {"requests_per_day": 1}},
            {"key.create", "limits.set"},
        ),
        ("PATCH", f"{V1}/keys/{{key}}"): ({"name": "other"}, {"key.change"}),
        ("POST", f"{V1}/keys/{{key}}/rotate"): ({"overlap_s": 60}, {"key.rotate", "key.create"}),
        ("POST", f"{V1}/keys/{{key}}/revoke"): (None, {"key.revoke"}),
        ("POST", f"{V1}/tenants/{{tenant}}/revocation"): ("code", {"key.revoke"}),
        ("POST", f"{V1}/tiers"): ({"name": "fresh", **tier}, {"tier.create"}),
        ("POST", f"{V1}/tiers/apply"): ({"tiers": {"free": {"ttft_ms": 1234}}}, {"tier.change"}),
        ("PATCH", f"{V1}/tiers/{{tier}}"): ({"ttft_ms": 444}, {"tier.change"}),
        ("PATCH", f"{V1}/limits/{{scope}}/{{target}}"): (
            {"limits": {"tokens_per_day": 4}},
            {"limits.set"},
        ),
        ("PATCH", f"{V1}/budgets/{{scope}}/{{target}}"): ({"budgets": [budget]}, {"budgets.set"}),
        ("POST", f"{V1}/users"): (
            {"name": "fresh", "role": "viewer", "password": PASSWORD},
            {"user.create"},
        ),
        ("PATCH", f"{V1}/users/{{user}}"): ({"role": "operator"}, {"user.role"}),
        ("POST", f"{V1}/users/{{user}}/password"): ({"password": PASSWORD}, {"user.password"}),
    }


async def test_every_route_that_changes_something_is_in_the_audit(office: Office) -> None:
    """Each by its request's id, with the caller, and with what was before and after."""
    parts = await prepared(office)
    rows = changes()
    writes = {row for row in ACCESS if row[0] != "GET" and row[1].startswith(V1)}
    assert set(rows) == writes, "a new route that changes something belongs here"
    for number, ((method, path), (body, actions)) in enumerate(rows.items()):
        for part, value in (parts | {"scope": "tenant", "target": "audited"}).items():
            path = path.replace(f"{{{part}}}", value)
        headers = {"x-request-id": f"change-{number}"}
        if body == "code":
            body = {"code": (await office.get("tenants/audited/revocation"))["code"]}
        if method == "PATCH" and "/tiers/" in path:
            headers["if-match"] = (await office.ask("GET", path)).headers["etag"]
        answer = await office.people[TOKEN].request(method, path, json=body, headers=headers)
        assert answer.status_code in (200, 201), (path, answer.text)
        found = [
            entry
            for entry in (await office.get("audit?limit=20"))["data"]
            if entry["request_id"] == f"change-{number}"
        ]
        assert {entry["action"] for entry in found} == actions, path
        for entry in found:
            assert (entry["actor"], entry["actor_kind"]) == ("admin token", "token")
            assert entry["after"] is not None
            is_new = entry["action"].endswith(".create") or entry["before"] is None
            assert is_new or entry["before"] != entry["after"] or "password" in path, entry
    text = (await office.ask("GET", "audit?limit=200")).text
    assert KEY_PATTERN.search(text) is None
    for secret in SECRETS:
        assert secret not in text


async def test_logins_and_their_end_are_in_the_audit_too(office: Office) -> None:
    client = office.people["nobody"]
    await log_in(client, "viewer")
    await client.post(f"{BASE}/logout", headers=OWN | {"x-request-id": "leaving"})
    found = (await office.get("audit?actor=viewer&limit=2"))["data"]
    assert [entry["action"] for entry in found] == ["session.end", "session.create"]
    assert found[0]["request_id"] == "leaving"


async def test_what_cannot_be_written_down_does_not_happen(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit's row and the change are one transaction: without the one, not the other."""
    parts = {"name": "unseen", "tier": "free"}
    await office.post("tenants", parts)
    key = await office.post("tenants/unseen/keys", {})
    before = {
        path: await office.get(path)
        for path in ("tenants/unseen", f"keys/{key['id']}", "users/viewer", "tiers")
    }

    class Unwritable:
        """A row that no database takes."""

        def __new__(cls, **columns: Any) -> Any:
            return audit_row(**(columns | {"actor": None}))

    audit_row = audit_module.Audit
    monkeypatch.setattr(audit_module, "Audit", Unwritable)
    for method, path, body in (
        ("PATCH", "tenants/unseen", {"tier": "premium"}),
        ("PATCH", "tenants/unseen", {"disabled": True}),
        ("PATCH", f"keys/{key['id']}", {"name": "other"}),
        ("POST", f"keys/{key['id']}/revoke", None),
        ("PATCH", "users/viewer", {"role": "operator"}),
        ("POST", "tiers/apply", {"tiers": {"free": {"ttft_ms": 77}, "premium": {"ttft_ms": 7}}}),
    ):
        answer = await office.ask(method, path, body)
        assert answer.status_code >= 400, path
    monkeypatch.undo()
    for path, was in before.items():
        assert await office.get(path) == was, path
