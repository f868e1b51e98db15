"""Logins: their cookie, their end, how often they may be tried, and what another site cannot do."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from admin_kit import OWN, PASSWORD, TOKEN, Office, code_of, log_in, open_office
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from engine.core.clock import NS_PER_S, VirtualClock, utc_now
from gateway.admin.attempts import Attempts
from gateway.admin.cross_site import is_own_site, says_other_site
from gateway.admin.roles import may
from tenants.values import Role

HOUR = timedelta(hours=1)
ROLES = list(Role)


def cookie_of(response: httpx.Response) -> tuple[str, SimpleCookie]:
    jar: SimpleCookie = SimpleCookie(response.headers["set-cookie"])
    (name,) = jar
    return name, jar


async def test_a_login_is_a_cookie_that_scripts_and_other_sites_cannot_use(
    small_office: Office,
) -> None:
    """HttpOnly, SameSite=Strict, for the whole host; the ledger keeps a digest only."""
    async with httpx.AsyncClient(base_url=small_office.door.url) as client:
        answer = await log_in(client, "operator")
        name, jar = cookie_of(answer)
        assert name == "tiergate-login"
        morsel = jar[name]
        assert morsel["httponly"] is True
        assert morsel["samesite"] == "strict"
        assert (morsel["path"], morsel["domain"], morsel["secure"]) == ("/", "", "")
        assert answer.headers["cache-control"] == "no-store"
        assert morsel.value not in (await small_office.ask("GET", "audit")).text
        session = (await client.get("/admin/api/session")).json()
        assert (session["name"], session["role"]) == ("operator", "operator")
        again = await log_in(client, "operator")
        old = {"cookie": f"{name}={morsel.value}"}
        async with httpx.AsyncClient(base_url=small_office.door.url) as thief:
            assert (await thief.get("/admin/api/session", headers=old)).status_code == 401
        assert again.status_code == 200
        out = await client.post("/admin/api/logout", headers=OWN)
        assert out.status_code == 200
        value = cookie_of(again)[1][name].value
        async with httpx.AsyncClient(base_url=small_office.door.url) as thief:
            late = await thief.get("/admin/api/session", headers={"cookie": f"{name}={value}"})
            assert late.status_code == 401
        assert (await client.get("/admin/api/session")).status_code == 401
    actions = [e["action"] for e in (await small_office.get("audit?actor=operator"))["data"]]
    assert actions.count("session.create") == 3
    assert actions.count("session.end") == 2


async def test_over_https_the_cookie_is_secure_and_bound_to_the_host(tmp_path: Path) -> None:
    """Where people reach the gateway by https, the cookie has the prefix that browsers hold to."""
    async with open_office(tmp_path, admin_url="https://gateway.example") as office:
        answer = await log_in(office.people["nobody"], "owner")
        name, jar = cookie_of(answer)
        assert name == "__Host-tiergate"
        assert jar[name]["secure"] is True


async def test_every_failure_to_log_in_is_the_same(small_office: Office) -> None:
    """Unknown, wrong, without a password, shut out: one answer, one line in the audit each."""
    repository, now = small_office.door.ledger.repository, utc_now()
    await repository.create_user("sso-only", Role.VIEWER, now, oidc_subject="s")
    await small_office.patch("users/viewer", {"disabled": True})
    client = small_office.people["nobody"]
    answers = [
        await log_in(client, "nobody-at-all"),
        await log_in(client, "operator", PASSWORD + "x"),
        await log_in(client, "sso-only"),
        await log_in(client, "viewer"),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert code_of(answers[0]) == "invalid_login"
    assert not any("set-cookie" in answer.headers for answer in answers)
    found = (await small_office.get("audit?action=session.refuse"))["data"]
    assert [e["actor"] for e in found] == ["viewer", "sso-only", "operator", "unknown"]
    assert {e["result"] for e in found} == {"refused"}


async def test_what_was_typed_into_the_wrong_field_is_nowhere(
    small_office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """A password sent as a name, or as itself, is in no answer, log line or audit entry."""
    caplog.set_level(logging.DEBUG)
    client, secret = small_office.people["nobody"], "my secret typed in haste"
    answers = [
        await log_in(client, secret, secret),
        await log_in(client, "owner", secret),
        await client.post("/admin/api/login", json={"user": "owner", "pass": secret}, headers=OWN),
        await client.post("/admin/api/login", content=secret, headers=OWN),
        await small_office.ask("POST", "users", {"name": secret, "role": "viewer"}),
        await small_office.ask("POST", "users", {"name": "x", "role": secret, "password": secret}),
        await small_office.ask("GET", f"keys/{small_office.door.keys['free']}"),
        await small_office.ask("GET", f"tenants/{small_office.door.keys['free']}"),
        await small_office.ask("GET", f"audit?token={small_office.door.admin_token}"),
    ]
    assert all(answer.status_code >= 400 for answer in answers)
    audit = (await small_office.ask("GET", "audit?limit=200")).text
    rooms = ("gateway", "tenants", "engine")
    records = [record for record in caplog.records if record.name.split(".")[0] in rooms]
    assert records
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in records)
    for word in (secret, PASSWORD, small_office.door.keys["free"], small_office.door.admin_token):
        assert word not in audit
        assert word not in logged
        assert not any(word in answer.text for answer in answers)


async def test_logins_cannot_be_tried_for_ever(small_office: Office) -> None:
    """After ten failures an account has to wait, also with the right password; others need not."""
    client = small_office.people["nobody"]
    refused = [await log_in(client, "operator", "wrong") for _ in range(10)]
    assert {answer.status_code for answer in refused} == {401}
    held = await log_in(client, "operator")
    assert (held.status_code, code_of(held)) == (429, "rate_limit_exceeded")
    assert int(held.headers["retry-after"]) >= 1
    assert (await log_in(client, "viewer")).status_code == 200
    assert (await small_office.ask("GET", "tenants", who=TOKEN)).status_code == 200


async def test_many_at_once_are_no_way_around_the_bound(small_office: Office) -> None:
    """An attempt counts before its password is looked at."""
    client = small_office.people["nobody"]
    answers = await asyncio.gather(*(log_in(client, "operator", "wrong") for _ in range(30)))
    assert sum(answer.status_code == 401 for answer in answers) == 10
    assert {answer.status_code for answer in answers} == {401, 429}


def test_attempts_are_forgiven_in_time_and_by_success() -> None:
    """One account's every thirty seconds, one address's every six; both are bounded in number."""
    clock = VirtualClock()
    attempts = Attempts(clock)
    for _ in range(10):
        assert attempts.begin("a", "ann") == 0
    wait_ms = attempts.begin("a", "ann")
    assert 0 < wait_ms <= 30_000
    clock.advance_to(clock.now_ns() + wait_ms * NS_PER_S // 1000 + NS_PER_S)
    assert attempts.begin("a", "ann") == 0
    for _ in range(100):
        assert attempts.begin("b", "bob") == 0
        attempts.succeeded("b", "bob")
    tried = sum(attempts.begin("c", f"user{i}") == 0 for i in range(50))
    assert tried == Attempts.ADDRESS_BURST


def test_a_stranger_at_one_address_keeps_nobody_out() -> None:
    """However steadily wrong passwords come for an account, its owner is let in from elsewhere."""
    clock = VirtualClock()
    attempts = Attempts(clock)
    for _ in range(200):
        clock.advance_to(clock.now_ns() + attempts.begin("stranger", "ann") * NS_PER_S // 1000)
        clock.advance_to(clock.now_ns() + NS_PER_S)
        assert attempts.begin("home", "ann") == 0
        attempts.succeeded("home", "ann")
    assert attempts.begin("stranger", "ann") > 0


def test_many_addresses_guess_an_account_at_a_bounded_rate() -> None:
    """A hundred at once, then one every three seconds, wherever they come from."""
    clock = VirtualClock()
    attempts = Attempts(clock)
    tried = sum(attempts.begin(f"address{i}", "ann") == 0 for i in range(500))
    assert tried == Attempts.ACCOUNT_BURST
    assert 0 < attempts.begin("one more", "ann") <= 3_000
    assert attempts.begin("one more", "bob") == 0
    clock.advance_to(clock.now_ns() + 30 * NS_PER_S)
    assert sum(attempts.begin(f"address{i}", "ann") == 0 for i in range(500)) == 10


async def test_a_login_ends_by_itself(small_office: Office) -> None:
    """When it is over, and when it was not used for long; both are the ledger's to say."""
    desk = small_office.door.server.config.app.state.admin  # type: ignore[union-attr]
    client = small_office.people["viewer"]
    assert (await client.get("/admin/api/session")).status_code == 200
    desk.idle = timedelta(0)
    assert (await client.get("/admin/api/session")).status_code == 401
    desk.idle = HOUR
    assert (await client.get("/admin/api/session")).status_code == 200
    desk.lifetime = timedelta(seconds=-1)
    await log_in(small_office.people["nobody"], "viewer")
    assert (await small_office.people["nobody"].get("/admin/api/session")).status_code == 401


async def test_keys_tiers_and_users_need_a_recent_login(small_office: Office) -> None:
    """An old login reads on, closes a key and makes a tenant; the token is always recent."""
    key = await small_office.post("tenants/free-tenant/keys", {}, who="operator")
    desk = small_office.door.server.config.app.state.admin  # type: ignore[union-attr]
    desk.recent = timedelta(0)
    tier = {"name": "late", "rank": 5, "ttft_ms": 9, "tbt_ms": 9}
    user = {"name": "late", "role": "viewer", "password": PASSWORD}
    for who, path, body in (
        ("operator", "tenants/free-tenant/keys", {}),
        ("operator", f"keys/{key['id']}/rotate", {"overlap_s": 0}),
        ("operator", "tenants/free-tenant/revocation", {"code": "x"}),
        ("operator", "tiers", tier),
        ("operator", "tiers/apply", {"tiers": {"free": {"ttft_ms": 1}}}),
        ("owner", "users", user),
        ("owner", "users/viewer/password", {"password": PASSWORD}),
    ):
        old = await small_office.ask("POST", path, body, who=who)
        assert (old.status_code, code_of(old)) == (403, "recent_login_required"), path
    await small_office.get("keys", who="operator")
    await small_office.post("tenants", {"name": "newer", "tier": "free"}, who="operator")
    await small_office.post(f"keys/{key['id']}/revoke", who="operator", expect=200)
    await small_office.post("users", user)
    desk.recent = HOUR
    assert (await log_in(small_office.people["operator"], "operator")).status_code == 200
    await small_office.post("tiers", tier, who="operator")


async def test_another_site_can_change_nothing(small_office: Office) -> None:
    """A browser's own credentials (cookie, Basic) count only for pages of this gateway."""
    url, body = small_office.door.url, {"name": "evil"}
    path = "/admin/api/v1/organisations"
    cookies = small_office.people["operator"].cookies
    basic = httpx.BasicAuth("x", small_office.door.admin_token)
    hostile = [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ]
    for headers in hostile:
        async with httpx.AsyncClient(base_url=url, cookies=cookies) as browser:
            answer = await browser.post(path, json=body, headers=headers)
            assert (answer.status_code, code_of(answer)) == (403, "cross_site_request"), headers
        async with httpx.AsyncClient(base_url=url, auth=basic) as browser:
            assert (await browser.post(path, json=body, headers=headers)).status_code == 403
        if headers:
            async with httpx.AsyncClient(base_url=url) as browser:
                login = {"user": "owner", "password": PASSWORD}
                answer = await browser.post("/admin/api/login", json=login, headers=headers)
                assert code_of(answer) == "cross_site_request"
    async with httpx.AsyncClient(base_url=url, cookies=cookies) as browser:
        form = await browser.post(path, data=body, headers=OWN)
        assert (form.status_code, code_of(form)) == (400, "invalid_value")
        own = await browser.post(path, json={"name": "mine"}, headers={"origin": url})
        assert own.status_code == 201
    async with httpx.AsyncClient(base_url=url) as script:
        token = {"authorization": f"Bearer {small_office.door.admin_token}"}
        assert (await script.post(path, json={"name": "script"}, headers=token)).status_code == 201


@pytest.mark.parametrize(
    ("headers", "url", "own"),
    [
        ({"sec-fetch-site": "same-origin"}, None, True),
        ({"sec-fetch-site": "none"}, None, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://a", "host": "a"}, None, False),
        ({"origin": "http://a:1", "host": "a:1"}, None, True),
        ({"origin": "http://a:2", "host": "a:1"}, None, False),
        ({"origin": "https://a", "host": "inner:8000"}, "https://a", True),
        ({"origin": "http://a", "host": "a"}, "https://a", False),
        ({"origin": "", "host": ""}, None, False),
        ({}, None, False),
    ],
)
def test_what_counts_as_our_own_page(headers: dict[str, str], url: str | None, own: bool) -> None:
    sent = Headers(headers)
    assert is_own_site(sent, url) is own
    assert says_other_site(sent, url) is (bool(headers.keys() - {"host"}) and not own)


async def test_one_changes_ones_own_password(small_office: Office) -> None:
    """The old one is asked for; all other logins end, and this one goes on."""
    other = small_office.people["nobody"]
    await log_in(other, "viewer")
    client = small_office.people["viewer"]
    new = {"old": PASSWORD, "new": PASSWORD + " two"}
    wrong = await client.post("/admin/api/password", json=new | {"old": "wrong"})
    assert (wrong.status_code, code_of(wrong)) == (401, "invalid_login")
    short = await client.post("/admin/api/password", json=new | {"new": "short"})
    assert short.status_code == 400
    assert (await client.post("/admin/api/password", json=new)).status_code == 200
    assert (await client.get("/admin/api/session")).status_code == 200
    assert (await other.get("/admin/api/session")).status_code == 401
    assert (await log_in(other, "viewer")).status_code == 401
    assert (await log_in(other, "viewer", PASSWORD + " two")).status_code == 200
    token = await small_office.ask("POST", "/admin/api/password", new)
    assert token.status_code == 400


async def test_a_role_that_is_taken_away_ends_the_login(small_office: Office) -> None:
    """At the very next request, not when the login is over."""
    await small_office.get("users", who="operator")
    await small_office.patch("users/operator", {"role": "viewer"})
    after = await small_office.ask("GET", "users", who="operator")
    assert after.status_code == 401


@given(role=st.sampled_from(ROLES), least=st.sampled_from(ROLES))
def test_roles_are_in_one_order(role: Role, least: Role) -> None:
    """Whoever may do what a role may, may do what all below may; only equals may each other's."""
    assert may(role, role)
    assert may(Role.OWNER, role)
    assert may(role, Role.TENANT_VIEWER)
    assert may(role, least) or may(least, role)
    assert (may(role, least) and may(least, role)) == (role is least)
    for third in ROLES:
        if may(role, least) and may(least, third):
            assert may(role, third)


async def test_cookies_cannot_be_tried_for_ever_and_good_ones_are_not_held_up(
    small_office: Office,
) -> None:
    """Sixty unknown ones in a row, then 429 for unknown ones; who is at work notices nothing."""
    url, path = small_office.door.url, "/admin/api/session"
    worker = small_office.people["viewer"]
    assert (await worker.get(path)).status_code == 200
    async with httpx.AsyncClient(base_url=url) as guesser:
        statuses = []
        for n in range(70):
            guess = {"cookie": f"tiergate-login=guess{n}"}
            statuses.append((await guesser.get(path, headers=guess)).status_code)
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert (await worker.get(path)).status_code == 200
