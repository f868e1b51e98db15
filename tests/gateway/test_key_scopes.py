"""What a key may be used for, as the door checks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from door_kit import Door

from engine.core.clock import VirtualClock, utc_now
from gateway.auth import Authenticator
from gateway.errors import ApiError, Problem
from gateway.ledger import Ledger, ledger
from gateway.settings import Settings
from tenants.values import Limits, Route, Scope

HELLO = {"role": "user", "content": "Hi"}


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with ledger(Settings(data_dir=tmp_path), lambda _line: None) as one:
        await one.repository.create_tenant("acme", "free", utc_now())
        yield one


@pytest.fixture
def auth(opened: Ledger) -> Authenticator:
    return Authenticator(opened.repository, VirtualClock(), salt_secret=b"s", ttl_s=30, size=10)


@pytest.mark.parametrize("scope", Route)
async def test_a_key_opens_its_routes_and_no_other(
    opened: Ledger, auth: Authenticator, scope: Route
) -> None:
    """Every route of the closed list against every scope; without a route there is no check."""
    issued = await opened.repository.create_key("acme", utc_now(), scopes=[scope])
    header = f"Bearer {issued.plaintext}"
    assert (await auth.authenticate(header)).may(scope)
    for route in Route:
        if route is scope:
            assert (await auth.authenticate(header, "", route)).key_id == issued.record.id
            continue
        with pytest.raises(ApiError) as refused:
            await auth.authenticate(header, "", route)
        assert refused.value.problem is Problem.ROUTE_FORBIDDEN
        assert refused.value.spec.status == 403


async def test_a_bad_key_is_refused_before_its_scopes_are_looked_at(
    opened: Ledger, auth: Authenticator
) -> None:
    """A revoked key's holder does not learn what it once was good for."""
    issued = await opened.repository.create_key("acme", utc_now(), scopes=[Route.CHAT])
    await opened.repository.revoke_key(issued.record.id, utc_now())
    with pytest.raises(ApiError) as refused:
        await auth.authenticate(f"Bearer {issued.plaintext}", "", Route.EMBEDDINGS)
    assert refused.value.problem is Problem.UNAUTHENTICATED


async def test_the_door_knows_limits_and_who_pays(opened: Ledger, auth: Authenticator) -> None:
    """With the key, so that no request has to ask for them; a change is seen after a poll."""
    issued = await opened.repository.create_key(
        "acme", utc_now(), limits=Limits(requests_per_minute=2)
    )
    header = f"Bearer {issued.plaintext}"
    await auth.poll()
    principal = await auth.authenticate(header)
    assert principal.organisation_id == principal.tenant.organisation_id
    assert [(s.scope, s.limits) for s in principal.limits] == [
        (Scope.KEY, Limits(requests_per_minute=2))
    ]
    await opened.repository.set_limits(Scope.TENANT, "acme", {"concurrent_requests": 3}, utc_now())
    assert await auth.poll()
    assert [s.scope for s in (await auth.authenticate(header)).limits] == [Scope.KEY, Scope.TENANT]


async def test_every_route_asks_for_its_own_scope(door: Door) -> None:
    """Over HTTP: what a key is not for is 403, before its body is read; the rest is served."""
    body = {"model": "talker", "max_tokens": 1}
    calls = {
        Route.CHAT: ("POST", "/v1/chat/completions", body | {"messages": [HELLO]}),
        Route.COMPLETIONS: ("POST", "/v1/completions", body | {"prompt": "Hi"}),
        Route.MODELS: ("GET", "/v1/models", None),
    }
    for scope in calls:
        issued = await door.ledger.repository.create_key(
            "free-tenant", utc_now(), scope.value, scopes=[scope]
        )
        headers = {"authorization": f"Bearer {issued.plaintext}"}
        for route, (method, path, sent) in calls.items():
            answer = await door.http.request(method, path, json=sent, headers=headers)
            if route is scope:
                assert answer.status_code == 200, (scope, route)
            else:
                code = answer.json()["error"]["code"]
                assert (answer.status_code, code) == (403, "route_not_allowed"), (scope, route)
