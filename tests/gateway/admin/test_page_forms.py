"""Forms of pages: what is wrong is said beside the field, what was typed stays, and what is done is
what the API does, with its audit."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin_kit import TOKEN, Office, log_in, open_office

from gateway.dashboard.settings import MASK, shown_settings
from gateway.settings import Settings
from tenants.values import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def send(office: Office, path: str, who: str = "owner", **fields: Any) -> httpx.Response:
    """Send a form as a browser does."""
    kind = {"content-type": "application/x-www-form-urlencoded"}  # also where no field is
    return await office.people[who].post(path, data=fields, headers=kind)


async def page(office: Office, path: str, who: str = "owner") -> str:
    answer = await office.people[who].get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    return answer.text


def value_of(text: str, name: str) -> str:
    """Return what stands in a field."""
    tag = re.search(rf'<input[^>]*\bname="{name}"[^>]*>', text)
    assert tag is not None, name
    found = re.search(r'value="([^"]*)"', tag[0])
    return "" if found is None else html.unescape(found[1])


def fault_of(text: str, name: str) -> str:
    """Return what is said beside a field, and that the field points to it."""
    said = re.search(rf'<p class="error" id="{name}-error"[^>]*>(.*?)</p>', text, re.DOTALL)
    assert said is not None, name
    if name != "form":
        tag = re.search(rf'<(?:input|select|textarea)[^>]*\bname="{name}"[^>]*>', text)
        assert tag is not None, name
        assert 'aria-invalid="true"' in tag[0]
        assert f"{name}-error" in tag[0]
    return html.unescape(re.sub(r"<[^>]+>", "", said[1])).strip()


async def latest_audit(office: Office) -> dict[str, Any]:
    return dict((await office.get("audit?limit=1"))["data"][0])


async def test_a_tenant_from_a_form_is_one_from_the_api(office: Office) -> None:
    answer = await send(
        office, "/admin/tenants/new", "operator", name="acme", tier="free", organisation="default"
    )
    assert answer.status_code == 303
    record = await office.get("tenants/acme")
    assert answer.headers["location"] == f"/admin/tenants/{record['id']}"
    entry = await latest_audit(office)
    assert (entry["action"], entry["actor"], entry["actor_kind"]) == (
        "tenant.create",
        "operator",
        "user",
    )
    shown = await office.people["operator"].get(answer.headers["location"])
    assert "Tenant acme is there" in shown.text
    again = await office.people["operator"].get(answer.headers["location"])
    assert "Tenant acme is there" not in again.text, "it is said once"


@pytest.mark.parametrize(
    ("typed", "field", "said"),
    [
        ({"name": "two words"}, "name", "A tenant's name has 1 to 64 letters"),
        ({"name": ""}, "name", "This is needed."),
        ({"name": "free-tenant"}, "name", "There is one of that name already."),
        ({"organisation": "nobody"}, "organisation", "There is no organisation of that name."),
        ({"tier": "nothing"}, "tier", "There is no tier of that name."),
    ],
)
async def test_a_fault_stands_beside_its_field_and_what_was_typed_stays(
    office: Office, typed: dict[str, str], field: str, said: str
) -> None:
    sent = {"name": "fine-name", "tier": "premium", "organisation": "default"} | typed
    answer = await send(office, "/admin/tenants/new", **sent)
    assert answer.status_code == 422
    assert fault_of(answer.text, field).startswith(said)
    assert value_of(answer.text, "name") == sent["name"]
    assert value_of(answer.text, "organisation") == sent["organisation"]
    assert ('value="premium" selected' in answer.text) == (sent["tier"] == "premium")


async def test_a_key_is_shown_once_and_nowhere_else(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/admin/tenants/free-tenant/keys/new"
    caplog.set_level("DEBUG")
    answer = await send(
        office,
        path,
        name="app",
        environment="test",
        expires_at="2031-02-03T04:05",
        scopes=["chat", "models"],
        models="builtin\nother",
        requests_per_minute="600",
    )
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    [secret] = set(re.findall(r"tgk_test_[0-9A-Za-z]{20,}", answer.text))
    record = (await office.get("tenants/free-tenant/keys"))["data"][0]
    assert (record["name"], record["expires_at"]) == ("app", "2031-02-03T04:05:00Z")
    assert (record["scopes"], record["models"]) == (["chat", "models"], ["builtin", "other"])
    limits = await office.get(f"limits/key/{record['id']}")
    assert limits["data"][0]["limits"]["requests_per_minute"] == 600
    assert secret not in caplog.text
    assert secret not in str(answer.headers)
    for where in (f"/admin/keys/{record['id']}", "/admin/keys", "/admin/audit", path):
        assert secret not in await page(office, where)
    async with httpx.AsyncClient(base_url=office.door.url) as client:
        asked = await client.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
        assert asked.status_code == 200


async def test_a_key_that_cannot_be_is_not_made(office: Office) -> None:
    path = "/admin/tenants/free-tenant/keys/new"
    before = await office.everything("tenants/free-tenant/keys", limit=50)
    for typed, field in (
        ({"name": "no way"}, "name"),
        ({"expires_at": "2001-01-01T00:00"}, "expires_at"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"requests_per_minute": "many"}, "requests_per_minute"),
        ({"tokens_per_day": "-1"}, "tokens_per_day"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"models": "x" * 300}, "models"),
        ({"environment": "moon"}, "environment"),
    ):
        sent = {"name": "fine", "environment": "live", "concurrent_requests": "7"} | typed
        answer = await send(office, path, **sent)
        assert answer.status_code == 422, typed
        said = re.search(rf'id="{field}-error"[^>]*>(.*?)</p>', answer.text, re.DOTALL)
        assert said is not None, (typed, answer.text)
        assert value_of(answer.text, "concurrent_requests") == "7"
    assert await office.everything("tenants/free-tenant/keys", limit=50) == before


async def test_a_key_is_changed_rotated_and_closed(office: Office) -> None:
    key = await office.post("tenants/free-tenant/keys", {"name": "old", "scopes": ["chat"]})
    here = f"/admin/keys/{key['id']}"
    form = await page(office, f"{here}/change")
    assert value_of(form, "name") == "old"
    answer = await send(office, f"{here}/change", name="new", expires_at="", models="")
    assert answer.headers.get("location") == here, answer.text
    record = await office.get(f"keys/{key['id']}")
    assert (record["name"], record["scopes"], record["models"]) == ("new", None, None)
    answer = await send(office, f"{here}/rotate", overlap_s="3600")
    assert answer.status_code == 201
    assert len(re.findall(r'value="tgk_live_[0-9A-Za-z]{20,}"', answer.text)) == 1
    again = await send(office, f"{here}/rotate", overlap_s="3600")
    assert again.status_code == 422
    assert "is being rotated already" in fault_of(again.text, "overlap_s")
    assert "Revoke this key" in await page(office, f"{here}/revoke", "operator")
    answer = await send(office, f"{here}/revoke", "operator")
    assert answer.headers["location"] == here
    assert (await office.get(f"keys/{key['id']}"))["revoked_at"] is not None
    entry = await latest_audit(office)
    assert (entry["action"], entry["actor"]) == ("key.revoke", "operator")


async def test_all_keys_are_closed_in_two_steps(office: Office) -> None:
    """The code fits the keys that were shown: one that comes meanwhile is shown first."""
    await office.post("tenants", {"name": "leaky", "tier": "free"})
    await office.post("tenants/leaky/keys", {"name": "one"})
    path = "/admin/tenants/leaky/revocation"
    [code] = re.findall(r"Type <code>(\w+)</code>", await page(office, path))
    await office.post("tenants/leaky/keys", {"name": "two"})
    late = await send(office, path, code=code)
    assert late.status_code == 422
    assert "ask for them again" in fault_of(late.text, "code")
    [code] = re.findall(r"Type <code>(\w+)</code>", late.text)
    done = await send(office, path, code=code)
    assert done.status_code == 303
    keys = await office.everything("tenants/leaky/keys")
    assert len(keys) == 2
    assert all(key["revoked_at"] for key in keys)
    assert "No live key" in await page(office, path)


async def test_a_tier_is_changed_by_what_was_typed_alone(office: Office) -> None:
    """Only fields that differ are sent; somebody who was faster is not undone unseen."""
    await office.post("tiers", {"name": "silver", "rank": 2, "ttft_ms": 900, "tbt_ms": 90})
    here = "/admin/tiers/silver/change"
    form = await page(office, here)
    names = re.findall(r'<(?:input|select)[^>]*\bname="(\w+)"', form)
    typed = {
        name: value_of(form, name)
        for name in names
        if name not in ("tbt_mode", "on_overload", "on_limiter_away", "next", "theme")
    }
    typed |= {"tbt_mode": "gap", "on_overload": "queue", "on_limiter_away": "local"}
    assert typed["objective"] == "95"
    answer = await send(office, here, **typed | {"ttft_ms": "700", "objective": "99.5"})
    assert answer.status_code == 303, answer.text
    tier = await office.get("tiers/silver")
    assert (tier["ttft_ms"], tier["objective"], tier["version"]) == (700, 0.995, 2)

    # The form of version 1 again: its author wanted another pace of tokens, and another first one.
    late = await send(office, here, **typed | {"tbt_ms": "80", "ttft_ms": "800"})
    assert late.status_code == 412
    assert "Somebody changed this tier while you typed" in late.text
    assert value_of(late.text, "tbt_ms") == "80", "what was typed stays"
    assert value_of(late.text, "ttft_ms") == "800"
    assert "Changed meanwhile to 700" in late.text
    assert value_of(late.text, "objective") == "99.5", "what was not touched is as it is now"
    assert value_of(late.text, "version") == "2"
    assert (await office.get("tiers/silver"))["version"] == 2
    chosen = ("tbt_mode", "on_overload", "on_limiter_away")
    merged = {name: value_of(late.text, name) for name in typed if name not in chosen}
    merged |= {"tbt_mode": "gap", "on_overload": "queue", "on_limiter_away": "local"}
    saved = await send(office, here, **merged)
    assert saved.status_code == 303, saved.text
    tier = await office.get("tiers/silver")
    assert (tier["ttft_ms"], tier["tbt_ms"], tier["objective"]) == (800, 80, 0.995)

    for fields, field, said in (
        ({"ttft_ms": "fast"}, "ttft_ms", "This must be a whole number."),
        ({"ttft_ms": ""}, "ttft_ms", "This is needed."),
        ({"objective": "abc"}, "objective", "This must be a share in per cent"),
        ({"objective": "101"}, "objective", "This must be a share in per cent"),
        ({"pace_ms": "5000"}, "pace_ms", "Pace_ms must be 0"),
        ({"ttft_ms": "0"}, "ttft_ms", "This must be at least 1."),
        ({"tbt_mode": "wave"}, "tbt_mode", "Input should be 'gap' or 'stream'"),
    ):
        answer = await send(office, here, **merged | {"version": "3"} | fields)
        assert answer.status_code == 422, fields
        assert fault_of(answer.text, field).startswith(said)
    nothing = await send(office, here, **merged | {"version": "3"})
    assert "Nothing is changed yet." in nothing.text


async def test_limits_and_budgets_keep_what_was_typed(office: Office) -> None:
    here = "/admin/limits/tenant/free-tenant"
    bad = await send(office, here, requests_per_minute="10", tokens_per_day="lots", model="")
    assert bad.status_code == 422
    assert fault_of(bad.text, "tokens_per_day") == "This must be a whole number."
    assert value_of(bad.text, "requests_per_minute") == "10"
    good = await send(office, here, requests_per_minute="10", tokens_per_day="", model="")
    assert good.status_code == 303
    assert (await office.get("limits/tenant/free-tenant"))["data"][0]["limits"][
        "requests_per_minute"
    ] == 10
    entry = await latest_audit(office)
    assert entry["action"] == "limits.set"
    same = await send(office, here, requests_per_minute="10", tokens_per_day="", model="")
    assert same.status_code == 303
    assert await latest_audit(office) == entry, "what changes nothing is nothing to write down"

    budgets = "/admin/budgets/tenant/free-tenant"
    fields = {"unit": "nano", "period": "month", "model": ""}
    bad = await send(office, budgets, **fields, amount="12,5", alert_percent="80")
    assert fault_of(bad.text, "amount").startswith("Money is written like 12.50")
    assert value_of(bad.text, "amount") == "12,5"
    bad = await send(office, budgets, **fields, amount="12.50", alert_percent="800")
    assert fault_of(bad.text, "alert_percent") == "This may be at most 100."
    good = await send(office, budgets, **fields, amount="12.50", alert_percent="80")
    assert good.status_code == 303
    data = (await office.get("budgets/tenant/free-tenant"))["data"]
    assert data[0]["budgets"][0]["amount"] == 12_500_000_000
    assert "12.50 a calendar month" in await page(office, here)
    gone = await send(office, budgets, **fields, remove="true")
    assert gone.status_code == 303
    assert (await office.get("budgets/tenant/free-tenant"))["data"] == []


async def test_users_are_the_owners_business(office: Office) -> None:
    made = {"name": "ann@example.com", "role": "viewer", "tenant": "", "oidc_subject": ""}
    bad = await send(office, "/admin/users/new", **made, password="short")
    assert bad.status_code == 422
    assert fault_of(bad.text, "password") == "This needs at least 12 characters."
    assert value_of(bad.text, "name") == "ann@example.com"
    assert "short" not in bad.text.replace("shortcuts", ""), "a secret is not sent back"
    bad = await send(office, "/admin/users/new", **made, password="")
    assert fault_of(bad.text, "password").startswith("A user needs a password")
    bad = await send(
        office, "/admin/users/new", **made | {"role": "tenant-viewer"}, password="long enough it is"
    )
    assert fault_of(bad.text, "tenant").startswith("A tenant-viewer sees one tenant")
    good = await send(office, "/admin/users/new", **made, password="long enough it is")
    assert good.status_code == 303
    here = good.headers["location"]
    assert "ann@example.com" in await page(office, here, "viewer")
    changed = await send(office, f"{here}/change", role="tenant-viewer", tenant="free-tenant")
    assert changed.status_code == 303
    user = await office.get("users/ann@example.com")
    assert user["role"] == "tenant-viewer"
    assert (await send(office, f"{here}/state", disabled="true")).status_code == 303
    assert (await office.get("users/ann@example.com"))["disabled_at"] is not None
    assert (await send(office, f"{here}/password", password="another long one")).status_code == 303
    owner = await office.get("users/owner")
    last = await send(office, f"/admin/users/{owner['id']}/state", TOKEN, disabled="true")
    assert last.status_code == 422
    assert "the last owner" in fault_of(last.text, "form")


async def test_ones_own_password_needs_the_old_one(office: Office) -> None:
    await office.post("users", {"name": "bob", "role": "viewer", "password": "bob's long password"})
    async with httpx.AsyncClient(
        base_url=office.door.url, headers={"sec-fetch-site": "same-origin"}
    ) as bob:
        assert (await log_in(bob, "bob", "bob's long password")).status_code == 200
        bad = await bob.post("/admin/password", data={"old": "no", "new": "a new long password"})
        assert fault_of(bad.text, "old") == "This is not your password."
        bad = await bob.post("/admin/password", data={"old": "bob's long password", "new": "x"})
        assert fault_of(bad.text, "new") == "This needs at least 12 characters."
        good = await bob.post(
            "/admin/password", data={"old": "bob's long password", "new": "a new long password"}
        )
        assert good.status_code == 303
        assert (await bob.get("/admin/tenants")).status_code == 200, "this login goes on"


async def test_what_needs_a_recent_login_is_said_before_anything_is_typed(tmp_path: Path) -> None:
    """With an old login the form's page itself leads to the login, and back; so does sending it."""
    async with open_office(tmp_path) as office:
        desk = office.door.server.config.app.state.admin  # type: ignore[attr-defined]
        desk.recent = desk.recent * 0
        path = "/admin/tenants/free-tenant/keys/new"
        for method in ("GET", "POST"):
            sent = {"data": {"name": "x"}} if method == "POST" else {}
            answer = await office.people["owner"].request(method, path, **sent)
            assert answer.status_code == 303
            assert answer.headers["location"].endswith("&again=true")
        keys = await office.get("tenants/free-tenant/keys")
        assert len(keys["data"]) == 1, "the one it began with"


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"


async def test_hostile_words_are_text_wherever_they_are_shown(office: Office) -> None:
    """Names of models, subjects and filters may hold anything; pages show them as what they are."""
    key = await office.post("tenants/free-tenant/keys", {"name": "x", "models": [HOSTILE]})
    body = {"limits": {"tokens_per_day": 1}, "model": HOSTILE}
    await office.patch("limits/tenant/free-tenant", body)
    user = await office.post("users", {"name": "oidc", "role": "viewer", "oidc_subject": HOSTILE})
    shown = 0
    asked: list[tuple[str, dict[str, str]]] = [
        (f"/admin/keys/{key['id']}", {}),
        (f"/admin/keys/{key['id']}/change", {}),
        ("/admin/limits/tenant/free-tenant", {}),
        ("/admin/limits/tenant/free-tenant", {"model": HOSTILE}),
        (f"/admin/users/{user['id']}", {}),
        ("/admin/audit", {}),
        ("/admin/audit", {"actor": HOSTILE}),
        ("/admin/tenants", {"q": HOSTILE}),
        ("/admin/tiers/free/preview", {"ttft_ms": HOSTILE}),
    ]
    for path, query in asked:
        answer = await office.people["owner"].get(path, params=query)
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text, path
        assert "<img src=x" not in answer.text, path
        shown += "&lt;script&gt;alert" in answer.text
    assert shown >= 8
    answer = await send(office, "/admin/tenants/new", name=HOSTILE, tier=HOSTILE, organisation="x")
    assert answer.status_code == 422
    assert value_of(answer.text, "name") == HOSTILE
    assert "<script>alert" not in answer.text


async def test_a_filter_with_a_typing_error_does_not_look_like_no_filter(office: Office) -> None:
    """The name stays to be put right, and no list of everything is drawn."""
    for page_of, name in (
        ("keys", "tenant"),
        ("slo", "tenant"),
        ("usage", "tenant"),
        ("audit", "tenant"),
        ("tenants", "organisation"),
    ):
        answer = await office.people["viewer"].get(f"/admin/{page_of}?{name}=acmee")
        assert answer.status_code == 404, page_of
        assert fault_of(answer.text, name) == f"There is no {name} of that name."
        assert value_of(answer.text, name) == "acmee"
        assert "free-tenant" not in answer.text
        empty = await office.people["viewer"].get(f"/admin/{page_of}?{name}=")
        assert empty.status_code == 200, "an empty filter is none"


async def test_secrets_among_the_settings_are_masked(tmp_path: Path) -> None:
    """Whatever is secret is said to be set, and passwords in addresses are left out."""
    hidden = "hush-hush-hush-hush-hush-hush-hush-hush"
    settings = Settings.load(
        data_dir=tmp_path,
        database_url=f"postgresql://ann:{hidden}@db.example/tiergate",
        redis_url=f"redis://:{hidden}@cache.example/0",
        pepper=hidden,
        admin_token=f"tga_{hidden}",
        oidc_client_secret=hidden,
        otlp_endpoint="http://collector.example:4318",
        otlp_headers=f"authorization={hidden}",
    )
    shown = {one.name: one for one in shown_settings(settings)}
    assert hidden not in str(shown)
    assert "db.example" in shown["database_url"].value
    for name in ("redis_url", "pepper", "admin_token", "oidc_client_secret", "otlp_headers"):
        assert shown[name].value == MASK
        assert not shown[name].is_default
    assert shown["host"].is_default
    assert set(shown) == set(Settings.model_fields)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.TENANT_VIEWER])
async def test_a_viewer_changes_nothing_with_a_form_either(office: Office, role: Role) -> None:
    """The very forms that an operator sends are refused, and nothing is in the ledger."""
    before = (await office.get("audit?limit=1"))["data"][0]["number"]
    for path, fields in (
        ("/admin/tenants/new", {"name": "mine", "tier": "free", "organisation": "default"}),
        ("/admin/tenants/premium-tenant/change", {"tier": "free", "organisation": "default"}),
        ("/admin/tenants/premium-tenant/state", {"disabled": "true"}),
        ("/admin/tenants/premium-tenant/keys/new", {"name": "k", "environment": "live"}),
        ("/admin/limits/tenant/premium-tenant", {"requests_per_minute": "1", "model": ""}),
        ("/admin/tiers/free/change", {"ttft_ms": "1"}),
        ("/admin/users/new", {"name": "me", "role": "owner", "password": "long enough it is"}),
    ):
        answer = await send(office, path, role.value, **fields)
        assert answer.status_code == 403, path
    assert (await office.get("audit?limit=1"))["data"][0]["number"] == before


async def test_a_month_that_is_none_is_said_at_its_field(office: Office) -> None:
    """The page is there all the same, with what was typed."""
    for who in ("viewer", "tenant-viewer"):
        answer = await office.people[who].get("/admin/usage?month=2026-13")
        assert answer.status_code == 400
        assert "A month is written like 2026-11." in answer.text
    answer = await office.people["viewer"].get("/admin/usage?month=2026-13&tenant=free-tenant")
    assert fault_of(answer.text, "month").startswith("A month is written like 2026-11.")
    assert value_of(answer.text, "month") == "2026-13"
    assert value_of(answer.text, "tenant") == "free-tenant"


async def test_an_id_that_no_request_has_can_be_put_right(office: Office) -> None:
    typed = "chatcmpl-<b>0"
    sent = await office.people["viewer"].get("/admin/requests", params={"id": f" {typed} "})
    answer = await office.people["viewer"].get(sent.headers["location"])
    assert answer.status_code == 404
    assert fault_of(answer.text, "id") == "There is no request of that id."
    assert value_of(answer.text, "id") == typed


async def test_commands_of_pages_name_this_gateway_and_its_model(office: Office) -> None:
    """What an empty page says to type works where it is typed."""
    info = office.door.services.host.engine.info
    assert info is not None
    for path in ("/admin/requests", "/admin/slo"):
        text = html.unescape(await page(office, path, "tenant-viewer"))
        assert f"curl -N {office.door.url}/v1/chat/completions" in text, path
        assert f'"model": "{info.model}"' in text, path
