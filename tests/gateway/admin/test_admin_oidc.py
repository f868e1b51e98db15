"""Logging in with an OpenID Connect provider that the test runs: whom it lets in, and what not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin_kit import OWN, Office, code_of, open_office
from oidc_provider import CLIENT, SECRET, Provider, open_provider

from engine.core.clock import MonotonicClock, utc_now
from gateway.admin.attempts import Attempts
from gateway.admin.oidc import OidcClient
from gateway.admin.oidc_flow import LIFETIME_S, new_flow, opened, sealed
from gateway.admin.oidc_settings import (
    Grant,
    OidcConfig,
    is_safe_url,
    oidc_config,
    require_oidc,
)
from gateway.settings import Settings, SettingsError
from tenants.values import Role

BEGIN, BACK, SESSION = "/admin/api/oidc/login", "/admin/api/oidc/callback", "/admin/api/session"
ROLES = "bosses=owner,staff=viewer,acme-people=tenant-viewer:premium-tenant"


@dataclass(frozen=True, slots=True)
class House:
    """A gateway and the provider that its people log in with."""

    office: Office
    provider: Provider

    def browser(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.office.door.url, timeout=30)

    async def way_back(self, browser: httpx.AsyncClient, begin: str = BEGIN) -> str:
        """Go to the provider as a browser does; returns where it sends the browser back to."""
        away = await browser.get(begin)
        assert away.status_code == 302, away.text
        async with httpx.AsyncClient() as elsewhere:
            answer = await elsewhere.get(away.headers["location"])
        back: str = answer.headers["location"]
        # Behind a proxy the browser would come back to the public name.
        return back.replace(self.office.door.services.settings.admin_url or "?", "")

    async def log_in(self, browser: httpx.AsyncClient, begin: str = BEGIN) -> httpx.Response:
        return await browser.get(await self.way_back(browser, begin))

    async def refuse_events(self) -> int:
        return len((await self.office.get("audit?action=session.refuse&limit=200"))["data"])


@asynccontextmanager
async def open_house(folder: Path, roles: str = ROLES, **more: Any) -> AsyncIterator[House]:
    async with open_provider() as provider:
        settings: dict[str, Any] = {
            "admin_url": "http://localhost:1",
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT,
            "oidc_client_secret": SECRET,
            "oidc_roles": roles,
        }
        async with open_office(folder, **(settings | more)) as office:
            yield House(office, provider)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened_house:
        yield opened_house


async def test_a_login_through_the_provider(house: House) -> None:
    """Code, PKCE, state and nonce; the groups give the role; the user is made and remembered."""
    house.provider.user = {"sub": "s-1", "groups": ["staff", "x"], "email": "ann@example.com"}
    async with house.browser() as browser:
        done = await house.log_in(browser)
        assert done.status_code == 200, done.text
        assert 'content="0;url=/admin"' in done.text
        session = (await browser.get(SESSION)).json()
        assert (session["name"], session["role"]) == ("ann@example.com", "viewer")
        asked = house.provider.authorizations[-1]
        assert asked["redirect_uri"] == "http://localhost:1" + BACK
        assert {"state", "nonce", "code_challenge"} <= set(asked)
        assert set(asked["scope"].split()) == {"openid", "profile", "email"}
        assert "code_verifier" not in asked
        # Groups decide anew at every login, and a user is the same one by its subject.
        house.provider.user = {"sub": "s-1", "groups": ["bosses", "staff"], "email": "new@x.org"}
        assert (await house.log_in(browser)).status_code == 200
        session = (await browser.get(SESSION)).json()
        assert (session["name"], session["role"]) == ("ann@example.com", "owner")
        house.provider.user = {"sub": "s-1", "groups": ["acme-people"]}
        assert (await house.log_in(browser)).status_code == 200
        session = (await browser.get(SESSION)).json()
        assert (session["role"], session["tenant_id"] is not None) == ("tenant-viewer", True)
    actions = [e["action"] for e in (await house.office.get("audit?actor=oidc"))["data"]]
    assert actions == ["user.role", "user.role", "user.create"]


async def test_who_has_no_group_is_not_let_in(house: House) -> None:
    """Nor who is shut out here, nor who has the name of somebody who is."""
    async with house.browser() as browser:
        for user in ({"sub": "a", "groups": []}, {"sub": "b"}, {"sub": "c", "groups": "other"}):
            house.provider.user = user
            refused = await house.log_in(browser)
            assert (refused.status_code, code_of(refused)) == (401, "invalid_login")
        house.provider.user = {"sub": "d", "groups": "staff", "preferred_username": "owner"}
        assert (await house.log_in(browser)).status_code == 200
        session = (await browser.get(SESSION)).json()
        assert session["name"].startswith("oidc-"), "another user's name gives nothing"
        assert session["role"] == "viewer"
        await house.office.patch(f"users/{session['name']}", {"disabled": True})
        assert (await house.log_in(browser)).status_code == 401
        assert (await browser.get(SESSION)).status_code == 401
    assert await house.refuse_events() == 4


async def test_without_roles_only_known_subjects_come_in(tmp_path: Path) -> None:
    """The ledger says what they may; groups say nothing."""
    async with open_house(tmp_path, roles="") as house, house.browser() as browser:
        house.provider.user = {"sub": "known", "groups": ["bosses"]}
        assert (await house.log_in(browser)).status_code == 401
        repository = house.office.door.ledger.repository
        await repository.create_user("kim", Role.VIEWER, utc_now(), oidc_subject="known")
        assert (await house.log_in(browser)).status_code == 200
        assert (await browser.get(SESSION)).json()["role"] == "viewer"


Wrong = dict[str, Any]
BAD_TOKENS: dict[str, Callable[[], Wrong]] = {
    "another issuer": lambda: {"claims": {"iss": "https://evil.example"}},
    "another audience": lambda: {"claims": {"aud": "another-client"}},
    "no audience": lambda: {"claims": {"aud": None}},
    "two audiences, another party": lambda: {"claims": {"aud": [CLIENT, "o"], "azp": "o"}},
    "another nonce": lambda: {"claims": {"nonce": "replayed"}},
    "no nonce": lambda: {"claims": {"nonce": None}},
    "expired": lambda: {"claims": {"exp": int(utc_now().timestamp()) - 3600}},
    "no expiry": lambda: {"claims": {"exp": None}},
    "not yet valid": lambda: {"claims": {"nbf": int(utc_now().timestamp()) + 3600}},
    "made in the future": lambda: {"claims": {"iat": int(utc_now().timestamp()) + 3600}},
    "no subject": lambda: {"claims": {"sub": None}},
    "a subject that is none": lambda: {"claims": {"sub": "a\0b"}},
    "alg none": lambda: {"signed": "none"},
    "HS256 with the public key": lambda: {"signed": "HS256"},
    "another key": lambda: {"signed": "other"},
    "a broken signature": lambda: {"signed": "broken"},
    "another issuer in the answer": lambda: {"iss": "https://evil.example"},
    "the provider refuses": lambda: {"error": "access_denied"},
}


async def test_a_token_that_is_wrong_lets_nobody_in(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Each check by itself; the answer is always the same, and the log has no token in it."""
    desk: Any = house.office.door.server.config.app.state.admin  # type: ignore[union-attr]
    for name, wrong in BAD_TOKENS.items():
        desk.attempts = Attempts(MonotonicClock())  # so many wrong ones in a row are refused
        caplog.clear()
        house.provider.wrong = wrong()
        async with house.browser() as browser:
            refused = await house.log_in(browser)
            assert (refused.status_code, code_of(refused)) == (401, "invalid_login"), name
            assert (await browser.get(SESSION)).status_code == 401
            house.provider.wrong = {}
            assert (await house.log_in(browser)).status_code == 200, "and the right one does"
        ours = [r for r in caplog.records if r.name.startswith("gateway")]
        warned = [r.getMessage() for r in ours if r.levelno > logging.INFO]
        assert warned, name
        assert not any("eyJ" in message for message in warned)


async def test_an_answer_belongs_to_the_browser_that_asked(house: House) -> None:
    """Another browser's answer, another state, a second use: each is refused."""
    async with house.browser() as browser, house.browser() as other:
        back = await house.way_back(browser)
        assert (await other.get(back)).status_code == 401
        await house.way_back(other)
        assert (await other.get(back)).status_code == 401
        assert (await browser.get(back.replace("state=", "state=x"))).status_code == 401
        assert (await browser.get(back)).status_code == 200
        assert (await browser.get(back)).status_code == 401
        forged = {"cookie": "tiergate-login-oidc=e30=.00"}
        async with house.browser() as third:
            assert (await third.get(back, headers=forged)).status_code == 401
    assert house.provider.asked.count("/token") == 1, "a code is not sent on for strangers"


async def test_keys_of_the_provider_may_change(house: House) -> None:
    """A new key is fetched; an unknown one is not asked for again and again."""
    async with house.browser() as browser:
        assert (await house.log_in(browser)).status_code == 200
        assert house.provider.asked.count("/jwks") == 1
        house.provider.wrong = {"signed": "other"}
        for _ in range(3):
            assert (await house.log_in(browser)).status_code == 401
        assert house.provider.asked.count("/jwks") == 1, "the first keys are new still"
        house.provider.wrong = {}
        house.provider.key = type(house.provider.key).generate_key(2048, auto_kid=True)
        app: Any = house.office.door.server.config.app
        client = app.state.admin.oidc
        at_ns, keys = client._keys
        client._keys = (at_ns - 61 * 10**9, keys)
        assert (await house.log_in(browser)).status_code == 200
        assert house.provider.asked.count("/jwks") == 2


async def test_a_provider_that_is_away_or_another_is_a_503(house: House) -> None:
    """Nothing is fetched from where its own description does not say so over https."""
    desk: Any = house.office.door.server.config.app.state.admin  # type: ignore[union-attr]
    for wrong in (
        {"down": "/.well-known/openid-configuration"},
        {"down": "/jwks"},
        {"discovered_issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
    ):
        desk.oidc = OidcClient(desk.oidc.config, MonotonicClock())  # that knows nothing yet
        house.provider.wrong = wrong
        async with house.browser() as browser:
            answer = await browser.get(BEGIN)
            if answer.status_code == 302:
                answer = await house.log_in(browser)
            assert (answer.status_code, code_of(answer)) == (503, "identity_provider_unavailable")
            assert "evil" not in answer.text


async def test_a_provider_that_is_away_is_not_asked_by_everybody(house: House) -> None:
    """After a failure it has a pause, however many people come."""
    house.provider.wrong = {"down": "/.well-known/openid-configuration"}
    async with house.browser() as browser:
        answers = await asyncio.gather(*(browser.get(BEGIN) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {503}
    assert len(house.provider.asked) == 1


async def test_a_new_proof_is_asked_for_and_its_age_counts(house: House) -> None:
    """`again=true` asks the provider to ask; a login it made long ago is not a recent one."""
    now = int(utc_now().timestamp())
    house.provider.user = {"sub": "b", "groups": ["bosses"], "auth_time": now - 7200}
    user = {"name": "made", "role": "viewer", "oidc_subject": "made"}
    async with house.browser() as browser:
        assert (await house.log_in(browser)).status_code == 200
        late = await browser.post("/admin/api/v1/users", json=user, headers=OWN)
        assert code_of(late) == "recent_login_required"
        house.provider.user["auth_time"] = now
        assert (await house.log_in(browser, BEGIN + "?again=true")).status_code == 200
        asked = house.provider.authorizations[-1]
        assert (asked["prompt"], asked["max_age"]) == ("login", "0")
        made = await browser.post("/admin/api/v1/users", json=user, headers=OWN)
        assert made.status_code == 201


async def test_the_last_owner_is_not_let_in_as_less(house: House) -> None:
    """Whom the provider calls an owner no more is no owner here either, last one or not."""
    house.provider.user = {"sub": "b", "groups": ["bosses"]}
    async with house.browser() as browser:
        assert (await house.log_in(browser)).status_code == 200
        await house.office.patch("users/owner", {"disabled": True})
        house.provider.user = {"sub": "b", "groups": ["staff"]}
        assert (await house.log_in(browser)).status_code == 401


async def test_without_a_provider_there_is_no_such_login(small_office: Office) -> None:
    for path in (BEGIN, BACK):
        answer = await small_office.ask("GET", path, who="nobody")
        assert (answer.status_code, code_of(answer)) == (404, "not_found")


def test_a_flow_is_over_in_time_and_cannot_be_forged() -> None:
    now, secret = utc_now(), b"s" * 32
    flow = new_flow(now)
    value = sealed(flow, secret)
    assert opened(value, secret, flow.state, now) == flow
    assert opened(value, b"t" * 32, flow.state, now) is None
    assert opened(value, secret, "other", now) is None
    assert opened(value[:-1] + ("0" if value[-1] != "0" else "1"), secret, flow.state, now) is None
    assert opened("é" * 3000, secret, flow.state, now) is None
    late = type(now).fromtimestamp(now.timestamp() + LIFETIME_S + 1, now.tzinfo)
    assert opened(value, secret, flow.state, late) is None


GOOD = {
    "oidc_issuer": "https://id.example",
    "oidc_client_id": "c",
    "admin_url": "https://g.example",
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"oidc_issuer": "http://id.example"}, "must be an https URL"),
        ({"oidc_issuer": "https://id.example?x=1"}, "must be an https URL"),
        ({"oidc_client_id": ""}, "TIERGATE_OIDC_CLIENT_ID"),
        ({"admin_url": None}, "TIERGATE_ADMIN_URL"),
        ({"oidc_scopes": "profile"}, "must hold openid"),
        ({"oidc_roles": "admins"}, "is written like"),
        ({"oidc_roles": "admins=king"}, "is written like"),
        ({"oidc_roles": "acme=tenant-viewer"}, "has a tenant"),
        ({"oidc_roles": "acme=viewer:t"}, "has a tenant"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    for check in (oidc_config, require_oidc):
        with pytest.raises(SettingsError, match=says):
            check(Settings(data_dir=tmp_path, **(GOOD | changed)))
    require_oidc(Settings(data_dir=tmp_path, **GOOD))
    assert oidc_config(Settings(data_dir=tmp_path, **GOOD)) is not None
    assert oidc_config(Settings(data_dir=tmp_path)) is None


def test_groups_give_the_most_powerful_role(tmp_path: Path) -> None:
    """A list, one text, or a path into an object, as providers have it."""
    grants = (Grant("a", Role.VIEWER), Grant("b", Role.OWNER), Grant("c=d", Role.OPERATOR))
    config = OidcConfig("", "", None, "", "", "realm.roles", grants)
    assert config.granted({"realm": {"roles": ["a", "b", 3]}}) == grants[1]
    assert config.granted({"realm.roles": "c=d"}) == grants[2]
    for nothing in ({}, {"realm": "a"}, {"realm": {"roles": None}}, {"realm": {"roles": ["A"]}}):
        assert config.granted(nothing) is None
    read = oidc_config(Settings(data_dir=tmp_path, oidc_roles=" c=d=operator , a=viewer", **GOOD))
    assert read is not None
    assert read.grants == (grants[2], grants[0])


@pytest.mark.parametrize(
    "url", ["", None, 3, "ftp://x", "https://", "http://10.0.0.1", "https://a:b"]
)
def test_only_safe_urls_are_fetched(url: Any) -> None:
    assert not is_safe_url(url)
    for good in ("https://id.example/x", "http://127.0.0.1:9/", "http://localhost", "http://[::1]"):
        assert is_safe_url(good)
