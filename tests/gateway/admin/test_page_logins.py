"""Logging in to the pages: with a password, with the token, again, and out; and live streams."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin_kit import OWN, PASSWORD, TOKEN, Office, open_office
from door_kit import CHAT, chat_body, eventually

from engine.core.clock import utc_now
from gateway.admin.seal import sealed
from gateway.admin.token_login import PURPOSE, _secret

LOGIN = "/admin/login"


def _plan_kit() -> Any:
    path = Path(__file__).parents[2] / "tenants" / "plan_kit.py"
    spec = importlib.util.spec_from_file_location("page_plan_kit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plan_kit = _plan_kit()


def browser(office: Office, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=office.door.url, timeout=30, headers=OWN | headers)


async def enter(client: httpx.AsyncClient, secret: str, user: str = "", onward: str = "") -> Any:
    form = {"user": user, "secret": secret, "next": onward}
    return await client.post(LOGIN, data=form)


async def test_a_login_leads_where_one_wanted_to_go(small_office: Office) -> None:
    async with browser(small_office) as client:
        away = await client.get("/admin/requests?tier=free")
        assert away.status_code == 303
        assert away.headers["location"] == "/admin/login?next=/admin/requests%3Ftier%3Dfree"
        assert away.headers["cache-control"] == "no-store"
        shown = await client.get(away.headers["location"])
        wanted = re.search(r'name="next" value="([^"]*)"', shown.text)
        assert wanted is not None
        done = await enter(client, PASSWORD, "viewer", wanted[1].replace("&amp;", "&"))
        assert (done.status_code, done.headers["location"]) == (303, "/admin/requests?tier=free")
        assert (await client.get("/admin/requests")).status_code == 200
        again = await client.get(LOGIN)
        assert (again.status_code, again.headers["location"]) == (303, "/admin")


@pytest.mark.parametrize("onward", ["https://evil.example", "//evil.example", "/admin/login", "x"])
async def test_nobody_is_led_to_another_site(small_office: Office, onward: str) -> None:
    async with browser(small_office) as client:
        done = await enter(client, PASSWORD, "viewer", onward)
        assert done.headers["location"] == "/admin"


async def test_every_failure_to_log_in_looks_the_same(small_office: Office) -> None:
    """A wrong name, a wrong password, a wrong token: one answer, and an entry in the audit."""
    async with browser(small_office) as client:
        tries = [("viewer", "wrong password"), ("nobody-here", PASSWORD), ("", "tga_wrong")]
        for user, secret in tries:
            answer = await enter(client, secret, user)
            assert answer.status_code == 401
            assert "User and password do not fit." in answer.text
            assert secret not in answer.text
            assert "set-cookie" not in answer.headers
        without = await enter(client, PASSWORD)
        assert (without.status_code, "Type a user name" in without.text) == (400, True)
    refused = await small_office.everything("audit?action=session.refuse", limit=50)
    assert len(refused) == len(tries)


async def test_a_login_from_another_site_is_refused(small_office: Office) -> None:
    for told in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        async with httpx.AsyncClient(base_url=small_office.door.url, headers=told) as client:
            answer = await enter(client, PASSWORD, "viewer")
            assert answer.status_code == 403
            assert answer.headers["x-tiergate-fault"] == "cross_site_request"


async def test_the_token_logs_in_and_out_and_is_an_owner(small_office: Office) -> None:
    """By the pages and the API alike; other sites cannot use it; the audit has both."""
    async with browser(small_office) as client:
        done = await enter(client, f" {small_office.door.admin_token}\n")
        assert done.status_code == 303
        kept = done.headers["set-cookie"]
        for flag in ("HttpOnly", "SameSite=strict", "Path=/"):
            assert flag in kept
        assert small_office.door.admin_token not in kept
        session = (await client.get("/admin/api/session")).json()
        assert (session["role"], session["kind"]) == ("owner", "token")
        other = {"sec-fetch-site": "cross-site"}
        body = {"name": "from-elsewhere"}
        path = "/admin/api/v1/organisations"
        assert (await client.post(path, json=body, headers=other)).status_code == 403
        assert (await client.post(path, json=body)).status_code == 201
        form = {"content-type": "application/x-www-form-urlencoded"}
        out = await client.post("/admin/logout", headers=form)
        assert (out.status_code, out.headers["location"]) == (303, LOGIN)
        assert (await client.get("/admin")).status_code == 303
        assert "You are logged out." in (await client.get(LOGIN)).text
        assert "You are logged out." not in (await client.get(LOGIN)).text, "it is said once"
    made = await small_office.everything("audit?action=session.create", limit=50)
    assert "token" in {entry["actor_kind"] for entry in made}


async def test_a_right_token_is_never_held_up(small_office: Office) -> None:
    """However often others guess from the same address."""
    async with browser(small_office) as client:
        guesses = [await enter(client, f"tga_{n}") for n in range(30)]
        assert {g.status_code for g in guesses} == {401, 429}
        assert "Try again in" in guesses[-1].text
        assert int(guesses[-1].status_code) == 429
        assert (await enter(client, small_office.door.admin_token)).status_code == 303


async def test_a_tokens_login_ends_with_its_time_and_must_be_recent(tmp_path: Path) -> None:
    """Shown long ago it opens pages but changes no key; a forged or foreign cookie opens none."""
    async with open_office(tmp_path) as office, browser(office) as client:
        desk = office.door.server.config.app.state.admin  # type: ignore[union-attr]
        secret, now = _secret(desk), utc_now()
        old = int((now - timedelta(hours=1)).timestamp())
        cookies = {
            "good": sealed({"proved": old}, PURPOSE, secret, now + timedelta(minutes=5)),
            "over": sealed({"proved": old}, PURPOSE, secret, now - timedelta(seconds=1)),
            "other": sealed({"proved": old}, "flash", secret, now + timedelta(minutes=5)),
            "forged": sealed({"proved": old}, PURPOSE, b"x" * 32, now + timedelta(minutes=5)),
        }
        found = {}
        for name, value in cookies.items():
            header = {"cookie": f"tiergate-login-token={value}"}
            found[name] = (await client.get("/admin/engine", headers=header)).status_code
        assert found == {"good": 200, "over": 303, "other": 303, "forged": 303}
        header = {"cookie": f"tiergate-login-token={cookies['good']}"}
        fresh = await client.get("/admin/users/new", headers=header)
        assert fresh.headers["location"] == "/admin/login?next=/admin/users/new&again=true"
        asked = await client.get(fresh.headers["location"], headers=header)
        assert "Confirm it is you" in asked.text
        body = {"name": "x", "role": "viewer"}
        refused = await client.post("/admin/api/v1/users", json=body, headers=header)
        assert refused.json()["error"]["code"] == "recent_login_required"


async def test_a_form_that_needs_a_recent_login_comes_back_to_its_page(tmp_path: Path) -> None:
    async with open_office(tmp_path, admin_recent_s=1.0) as office:
        await asyncio.sleep(1.1)
        client = office.people["owner"]
        page = f"{office.door.url}/admin/users/new"
        sent = await client.post("/admin/users/new", data={"name": "x"}, headers={"referer": page})
        assert sent.headers["location"] == "/admin/login?next=/admin/users/new&again=true"
        assert "Nothing is saved yet" in (await client.get(sent.headers["location"])).text
        done = await enter(client, PASSWORD, "owner", "/admin/users/new")
        assert done.headers["location"] == "/admin/users/new"
        assert (await client.get("/admin/users/new")).status_code == 200


async def test_an_address_that_is_no_page_is_told_as_one_to_browsers_only(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office, browser(office) as client:
        as_browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        lost = await client.get("/admin/nothing/at/all", headers=as_browser)
        assert lost.status_code == 404
        assert "<h1>There is no such path here.</h1>" in lost.text
        assert "default-src 'none'" in lost.headers["content-security-policy"]
        for path, headers in (("/admin/nothing", {}), ("/admin/api/nothing", as_browser)):
            answer = await client.get(path, headers=headers)
            assert answer.json()["error"]["message"] == "There is no such path here."


async def test_a_part_of_a_page_sends_the_whole_page_to_the_login(tmp_path: Path) -> None:
    """Its script is told where to go; the login page then says why."""
    async with open_office(tmp_path) as office, browser(office) as client:
        headers = {"hx-request": "true", "referer": f"{office.door.url}/admin/tiers/free/change"}
        answer = await client.get("/admin/tiers/free/preview", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["hx-redirect"] == "/admin/login?next=/admin/tiers/free/change"
        assert "location" not in answer.headers
        page = await client.get(answer.headers["hx-redirect"])
        assert "Your login has ended." in page.text


async def test_a_stream_tells_of_requests_and_ends_when_the_gateway_drains(
    small_office: Office,
) -> None:
    """Its first event is everything so far; a request that ends is in one of the next."""
    door, client = small_office.door, small_office.people["viewer"]
    seen = ""
    async with client.stream("GET", "/admin/live/overview") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        asked = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=3)))
        async with asyncio.timeout(30):
            async for part in answer.aiter_text():
                seen += part
                if '"premium",' in seen.partition("event: points")[2] and seen.count("event:") > 1:
                    door.services.admission.draining = True
        await asked
    assert seen.startswith("event: points\ndata: {")
    assert '"reset":true' in seen
    assert '"reset":false' in seen
    assert "What the scheduler is doing" in seen
    for secret in (*door.keys.values(), door.admin_token):
        assert secret not in seen


async def test_streams_of_one_user_are_bounded_and_given_back(small_office: Office) -> None:
    client = small_office.people["viewer"]
    frame = small_office.door.server.config.app.state.frame  # type: ignore[union-attr]
    async with httpx.AsyncClient(
        base_url=small_office.door.url, cookies=client.cookies, headers=OWN, timeout=30
    ) as many:
        opened = []
        for _ in range(8):
            request = many.build_request("GET", "/admin/live/engine")
            opened.append(await many.send(request, stream=True))
        assert {answer.status_code for answer in opened} == {200}
        refused = await many.get("/admin/live/engine")
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        for answer in opened:
            await answer.aclose()
    await eventually(lambda: len(frame.live) == 0, "all streams are given back")


async def test_a_stream_is_no_use_of_a_login(tmp_path: Path) -> None:
    """Else a screen that nobody touches would never be logged out."""
    async with open_office(tmp_path) as office:
        client, repository = office.people["viewer"], office.door.ledger.repository
        (secret,) = client.cookies.jar
        assert secret.value is not None

        async def seen() -> Any:
            found = await repository.find_session(secret.value, utc_now(), idle=timedelta(days=1))
            assert found is not None
            return found.seen_at

        await repository.touch_session(secret.value, utc_now() - timedelta(minutes=10))
        before = await seen()
        async with client.stream("GET", "/admin/live/overview") as answer:
            assert answer.status_code == 200
        assert await seen() == before
        assert (await client.get("/admin/engine")).status_code == 200
        assert await seen() > before


async def test_a_login_that_ends_ends_its_streams(small_office: Office) -> None:
    """The user is shut out; what was open is not kept open."""
    client = small_office.people["viewer"]
    async with asyncio.timeout(30), client.stream("GET", "/admin/live/engine") as answer:
        assert answer.status_code == 200
        shut_out = {"disabled": True}
        assert (await small_office.patch("users/viewer", shut_out))["disabled_at"] is not None
        async for _ in answer.aiter_text():
            pass
    assert (await client.get("/admin/live/engine")).status_code == 303


async def test_no_live_page_reads_a_table_whole(small_office: Office) -> None:
    """Every question of the overview, the list of requests and a timeline goes by an index."""
    door, client = small_office.door, small_office.people["viewer"]
    made = [(await door.post(CHAT, chat_body(max_tokens=2))).json()["id"] for _ in range(3)]
    await door.usage(3)
    await plan_kit.analyse(door.ledger.database)
    paths = ["/admin", "/admin/engine", f"/admin/requests/{made[0]}", "/admin/requests/unknown"]
    paths += [f"/admin/requests{q}" for q in ("", "?missed=true", "?tenant=premium-tenant")]
    paths += ["/admin/requests?tier=premium&outcome=completed&tenant=premium-tenant&missed=true"]
    with plan_kit.questions() as asked:
        for path in paths:
            answer = await client.get(path)
            assert answer.status_code == (404 if "unknown" in path else 200), answer.text
    assert any("slo_records" in statement for statement in asked.asked)
    assert any("slo_counts" in statement for statement in asked.asked)
    assert await plan_kit.whole_tables_read(door.ledger.database, asked) == []


async def test_a_pages_cursor_shows_each_request_once(small_office: Office) -> None:
    """The newest first, 25 a page, none twice and none left out."""
    door, client = small_office.door, small_office.people["viewer"]
    made = [(await door.post(CHAT, chat_body(max_tokens=1))).json()["id"] for _ in range(30)]

    async def written() -> bool:
        return (await client.get(f"/admin/requests/{made[-1]}")).status_code == 200

    await eventually(written, "the last is written")
    await door.usage(30)
    found: list[str] = []
    path: str | None = "/admin/requests"
    while path is not None:
        answer = await client.get(path)
        found += re.findall(r'href="/admin/requests/(chatcmpl-[0-9a-f]+)"', answer.text)
        onward = re.search(r'href="([^"]+)" rel="next"', answer.text)
        path = None if onward is None else onward[1].replace("&amp;", "&")
    assert found == made[::-1]
    for wrong in ("x", "W10", "WyJ4IiwgInkiXQ"):
        refused = await client.get(f"/admin/requests?cursor={wrong}")
        assert (refused.status_code, TOKEN in refused.text) == (400, False)
