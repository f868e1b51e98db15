"""Keys at the door: what is remembered, how fast a change is seen, what holds without a ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door, sse

from engine.core.clock import NS_PER_S, VirtualClock, utc_now
from gateway.auth import Authenticator
from gateway.errors import ApiError, Problem
from tenants.errors import DatabaseUnavailable
from tenants.keys import generate_key
from tenants.repository import Repository
from tenants.values import KeyWithTenant, TierRecord


class CountingRepository:
    """A repository in front of a real one that counts questions and can be unplugged."""

    def __init__(self, real: Repository) -> None:
        self._real = real
        self.questions = 0
        self.unplugged = False

    def digest(self, key: str) -> str:
        return self._real.digest(key)

    async def find_key_by_digest(self, digest: str) -> KeyWithTenant | None:
        self.questions += 1
        if self.unplugged:
            raise DatabaseUnavailable("unplugged")
        return await self._real.find_key_by_digest(digest)

    async def keys_version(self) -> int:
        return await self._real.keys_version()

    async def touch_key(self, key_id: str, now: Any) -> bool:
        return await self._real.touch_key(key_id, now)


@asynccontextmanager
async def checking(
    door: Door, **options: Any
) -> AsyncIterator[tuple[Authenticator, CountingRepository, VirtualClock]]:
    repository, clock = CountingRepository(door.ledger.repository), VirtualClock()
    values: dict[str, Any] = {"ttl_s": 30.0, "size": 100} | options
    auth = Authenticator(repository, clock, salt_secret=b"s", **values)  # type: ignore[arg-type]
    await auth.poll()
    yield auth, repository, clock


def bearer(key: str) -> str:
    return f"Bearer {key}"


async def test_a_known_key_is_looked_up_once_until_its_time_is_over(door: Door) -> None:
    """The ledger is not asked for every request, but again after the time to live."""
    async with checking(door) as (auth, repository, clock):
        for _ in range(5):
            principal = await auth.authenticate(bearer(door.keys["premium"]))
            assert principal.tenant.name == "premium-tenant"
        assert repository.questions == 1
        clock.advance_to(31 * NS_PER_S)
        await auth.authenticate(bearer(door.keys["premium"]))
        assert repository.questions == 2


async def test_a_mistyped_key_costs_no_lookup_and_an_unknown_one_only_one(door: Door) -> None:
    """The checksum turns typos away; "unknown" is remembered, but only for a short time."""
    async with checking(door) as (auth, repository, clock):
        key, unknown = door.keys["free"], generate_key()
        for sent in (key[:-1], key + "0", key.replace("tgk_", "tga_"), key.upper()):
            with pytest.raises(ApiError):
                await auth.authenticate(bearer(sent))
        assert repository.questions == 0
        for _ in range(3):
            with pytest.raises(ApiError):
                await auth.authenticate(bearer(unknown))
        assert repository.questions == 1
        clock.advance_to(6 * NS_PER_S)
        with pytest.raises(ApiError):
            await auth.authenticate(bearer(unknown))
        assert repository.questions == 2


async def test_an_address_may_only_try_so_many_unknown_keys(door: Door) -> None:
    """After a burst of failures it has to wait; keys at work, and other addresses, do not."""
    async with checking(door) as (auth, repository, clock):
        known = bearer(door.keys["premium"])
        await auth.authenticate(known, "10.0.0.1")
        problems = []
        for _ in range(65):
            with pytest.raises(ApiError) as refused:
                await auth.authenticate(bearer(generate_key()), "10.0.0.1")
            problems.append(refused.value.problem)
        assert problems == [Problem.UNAUTHENTICATED] * 60 + [Problem.RATE_LIMITED] * 5
        assert refused.value.retry_after_ms == 1000
        assert repository.questions == 61
        await auth.authenticate(known, "10.0.0.1")
        await auth.authenticate(bearer(door.keys["free"]), "10.0.0.2")
        clock.advance_to(2 * NS_PER_S)
        with pytest.raises(ApiError) as later:
            await auth.authenticate(bearer(generate_key()), "10.0.0.1")
        assert later.value.problem is Problem.UNAUTHENTICATED


async def test_many_at_once_share_few_lookups(door: Door) -> None:
    """A thousand requests that arrive with a cold memory do not become a thousand questions."""
    async with checking(door) as (auth, repository, _):
        header = bearer(door.keys["free"])
        await asyncio.gather(*(auth.authenticate(header) for _ in range(1000)))
        assert repository.questions <= 8


async def test_the_memory_is_bounded(door: Door) -> None:
    """Strangers' keys push the oldest answers out; nothing grows."""
    async with checking(door, size=3) as (auth, repository, _):
        await auth.authenticate(bearer(door.keys["free"]))
        for _ in range(3):
            with pytest.raises(ApiError):
                await auth.authenticate(bearer(generate_key()))
        await auth.authenticate(bearer(door.keys["free"]))
        assert repository.questions == 5


async def test_a_changed_ledger_is_asked_again_at_once(door: Door) -> None:
    """After the change counter has moved, nothing remembered counts any more."""
    async with checking(door) as (auth, repository, _):
        header = bearer(door.keys["free"])
        await auth.authenticate(header)
        assert not await auth.poll()
        await door.ledger.repository.revoke_key(door.keys["free"], utc_now())
        assert await auth.poll()
        with pytest.raises(ApiError) as refused:
            await auth.authenticate(header)
        assert refused.value.problem is Problem.UNAUTHENTICATED
        assert repository.questions == 2


async def test_without_a_ledger_known_keys_are_served_and_others_told_to_retry(door: Door) -> None:
    """What the ledger last said stands; a key it never heard of gets a 503, not a 401."""
    async with checking(door) as (auth, repository, clock):
        await auth.authenticate(bearer(door.keys["premium"]))
        repository.unplugged = True
        clock.advance_to(3600 * NS_PER_S)
        await auth.authenticate(bearer(door.keys["premium"]))
        with pytest.raises(ApiError) as refused:
            await auth.authenticate(bearer(door.keys["free"]))
        assert refused.value.problem is Problem.LEDGER_UNAVAILABLE
        assert refused.value.retry_after_ms is not None


async def test_without_a_ledger_a_key_known_to_have_changed_is_not_served(door: Door) -> None:
    """Being away must not bring a revoked key back to life."""
    async with checking(door) as (auth, repository, _):
        await auth.authenticate(bearer(door.keys["premium"]))
        await door.ledger.repository.revoke_key(door.keys["premium"], utc_now())
        await auth.poll()
        repository.unplugged = True
        with pytest.raises(ApiError) as refused:
            await auth.authenticate(bearer(door.keys["premium"]))
        assert refused.value.problem is Problem.LEDGER_UNAVAILABLE


async def test_a_key_expires_while_it_is_remembered(door: Door) -> None:
    """The expiry date is checked at every request, not at every lookup."""
    repository = door.ledger.repository
    soon = utc_now() + timedelta(seconds=0.3)
    issued = await repository.create_key("free-tenant", utc_now(), "brief", expires_at=soon)
    async with checking(door) as (auth, counting, _):
        await auth.authenticate(bearer(issued.plaintext))
        await asyncio.sleep(0.35)
        with pytest.raises(ApiError):
            await auth.authenticate(bearer(issued.plaintext))
        assert counting.questions == 1


async def test_last_use_is_written_at_most_once_a_minute(door: Door) -> None:
    """A hundred requests leave one note."""
    async with checking(door) as (auth, _, _clock):
        header = bearer(door.keys["free"])
        for _ in range(100):
            key_id = (await auth.authenticate(header)).key_id
        await auth.write_last_used()
        (key,) = await door.ledger.repository.list_keys("free-tenant")
        assert key.id == key_id
        assert key.last_used_at is not None
        await auth.authenticate(header)
        await auth.write_last_used()
        (again,) = await door.ledger.repository.list_keys("free-tenant")
        assert again.last_used_at == key.last_used_at


async def test_tenants_have_salts_of_their_own(door: Door) -> None:
    """Two tenants never share a salt, and a tenant's keys all have the same."""
    second = await door.ledger.repository.create_key("free-tenant", utc_now(), "second")
    async with checking(door) as (auth, _, _clock):
        salts = [
            (await auth.authenticate(bearer(key))).salt
            for key in (door.keys["premium"], door.keys["free"], second.plaintext)
        ]
    assert salts[0] != salts[1] == salts[2]
    assert len(salts[0]) == 64


@pytest.mark.parametrize("stream", [False, True])
async def test_a_revoked_key_cuts_its_answers(tmp_path: Path, stream: bool) -> None:
    """A running answer of a revoked key is ended with an error; others go on."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(stream=stream, ignore_eos=True, max_tokens=900)
        running = asyncio.create_task(door.post(CHAT, body, "free"))
        other = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=100, ignore_eos=True)))
        await eventually(lambda: len(door.services.live) == 2, "both are running")
        await asyncio.sleep(0.1)
        await door.ledger.repository.revoke_key(door.keys["free"], utc_now())
        response = await running
        if stream:
            last = sse(response.text)[-1]
            assert last["error"]["code"] == "invalid_api_key"
        else:
            assert response.status_code == 401
        assert (await other).json()["usage"]["completion_tokens"] == 100
        assert (await door.post(CHAT, chat_body(), "free")).status_code == 401
        await door.idle()


async def test_a_model_that_is_not_on_the_list_is_forbidden_and_unseen(door: Door) -> None:
    """A key with an allow-list gets 403 for other models, and does not see them listed."""
    issued = await door.ledger.repository.create_key(
        "free-tenant", utc_now(), "narrow", models=["another"]
    )
    headers = {"authorization": f"Bearer {issued.plaintext}"}
    refused = await door.http.post(CHAT, json=chat_body(), headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    assert (await door.http.get("/v1/models", headers=headers)).json()["data"] == []
    assert (await door.http.get("/v1/models/talker", headers=headers)).status_code == 404


async def test_a_key_revoked_while_the_body_is_under_way_opens_nothing(tmp_path: Path) -> None:
    """What was checked before a slow body is checked again after it."""
    async with open_door(tmp_path) as door:
        body = json.dumps(chat_body()).encode()
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield body[:10]
            arrived.set()
            await go_on.wait()
            yield body[10:]

        headers = door.auth("free")
        slow = asyncio.create_task(door.http.post(CHAT, content=slowly(), headers=headers))
        await arrived.wait()
        version = await door.ledger.repository.keys_version()
        assert (await door.post(CHAT, chat_body(max_tokens=1), "free")).status_code == 200
        await asyncio.sleep(0.1)
        await door.ledger.repository.revoke_key(door.keys["free"], utc_now())
        assert await door.ledger.repository.keys_version() != version

        async def is_refused() -> bool:
            return bool((await door.post(CHAT, chat_body(max_tokens=1), "free")).status_code == 401)

        await eventually(is_refused, "the revoked key is refused")
        go_on.set()
        assert (await slow).status_code == 401
        await door.idle()


async def test_a_change_is_followed_up_when_the_ledger_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger goes away between telling of a change and telling what it was."""
    async with open_door(tmp_path) as door:
        real, failures = Repository.list_tiers, iter([DatabaseUnavailable("unplugged")])

        async def unplugged_once(repository: Repository) -> list[TierRecord]:
            for failure in failures:
                raise failure
            return await real(repository)

        monkeypatch.setattr(Repository, "list_tiers", unplugged_once)
        before = door.services.tiers.current
        await door.ledger.repository.revoke_key(door.keys["free"], utc_now())
        await eventually(lambda: door.services.tiers.current is not before, "tiers are read")
