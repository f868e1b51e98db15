"""Searching tenants and the audit: what fits is found, page by page, and looks are bounded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from tenants.repository import Change, Repository, audit, tenants
from tenants.values import Actor

Cursor = TypeVar("Cursor")


async def all_pages(
    search: Callable[[Cursor | None], Awaitable[tuple[list[Any], Cursor | None]]], most: int
) -> list[Any]:
    """Walk from page to page until nothing follows."""
    found: list[Any] = []
    cursor: Cursor | None = None
    for _ in range(200):
        part, cursor = await search(cursor)
        assert len(part) <= most
        found += part
        if cursor is None:
            return found
    raise AssertionError("no end of pages")


async def test_tenants_are_found_by_any_part_of_the_name(
    repository: Repository, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever case, of one payer or of all; also where only ten names a call are looked at."""
    monkeypatch.setattr(tenants, "MOST_LOOKED", 10)
    await repository.create_organisation("acme", now)
    names = [f"{word}-{n:02}" for word in ("Alpha", "beta", "under_score") for n in range(15)]
    for number, name in enumerate(names):
        payer = "acme" if number % 2 else "default"
        await repository.create_tenant(name, "free", now, organisation=payer)
    for text in ("", "alpha", "BETA", "1", "_", "%", "a-0", "nobody"):
        for payer in (None, "acme"):

            async def search(after: str | None, text: str = text, payer: str | None = payer) -> Any:
                return await repository.search_tenants(text, payer, after=after, limit=4)

            found = [tenant.name for tenant in await all_pages(search, 4)]
            mine = [n for i, n in enumerate(names) if payer is None or i % 2]
            assert sorted(found) == sorted(n for n in mine if text.lower() in n.lower())
            assert found == [
                t.name for t in await repository.list_tenants() if t.name in set(found)
            ]


async def test_the_audit_is_searched_within_bounds(
    repository: Repository, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is found however rare it is, in pages that look at twenty entries each."""
    monkeypatch.setattr(audit, "MOST_LOOKED", 20)
    tenant = await repository.create_tenant("acme", "free", now)
    for number in range(150):
        moment = now + timedelta(hours=number)
        who = Actor("rare" if number % 37 == 0 else "often", "user")
        action = "key.create" if number % 5 else "tier.change"
        whose = tenant.id if number % 3 == 0 else None
        await repository.write_event(who, moment, Change(action, "x", "y", tenant_id=whose))
    everything = await repository.list_audit(limit=1000)
    begin, end = now + timedelta(hours=40), now + timedelta(hours=110)
    filters: list[dict[str, Any]] = [
        {},
        {"actor": "rare"},
        {"action": "tier.change", "tenant": "acme"},
        {"since": begin, "until": end},
        {"actor": "rare", "since": begin},
        {"actor": "rare", "until": begin},
        {"actor": "nobody", "since": now + timedelta(hours=149)},
    ]
    for asked in filters:

        async def search(before: int | None, asked: dict[str, Any] = asked) -> Any:
            return await repository.search_audit(before=before, limit=7, **asked)

        expected = await repository.list_audit(limit=1000, **asked)
        assert await all_pages(search, 7) == expected, asked
    assert len(everything) > 150


async def test_things_are_named_by_their_ids(repository: Repository, now: datetime) -> None:
    """Those that are there, in one question; the rest is left out."""
    one = await repository.create_tenant("one", "free", now)
    payer = await repository.create_organisation("acme", now)
    key = (await repository.create_key("one", now)).record
    assert await repository.tenants_by_id({one.id, "gone"}) == {one.id: one}
    assert await repository.organisations_by_id([payer.id]) == {payer.id: payer}
    assert await repository.keys_by_id([key.id, "gone"]) == {key.id: key}
    assert await repository.tenants_by_id([]) == {}
