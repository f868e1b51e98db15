"""What cannot be taken is refused in one shape, names its field, and never says what was sent."""

from __future__ import annotations

from typing import Any

import pytest
from admin_kit import PASSWORD, TOKEN, Office, code_of

from gateway.admin.bodies import AdminBody
from gateway.admin.roles import V1
from gateway.admin.route import told
from gateway.errors import Problem
from tenants.errors import (
    AlreadyExists,
    ChangedMeanwhile,
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidValue,
    NotFound,
    PepperUnusable,
    SchemaOutdated,
)
from tenants.repository import Repository

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD: list[tuple[str, str, Any, str, str | None]] = [
    ("POST", "organisations", {"name": ""}, "invalid_value", "name"),
    ("POST", "organisations", {}, "missing_required_parameter", "name"),
    ("POST", "organisations", [], "invalid_value", None),
    ("POST", "organisations", {"name": "x y"}, "invalid_value", None),
    ("POST", "organisations", {"name": "a", "id": "mine"}, "invalid_value", None),
    ("POST", "tenants", {"name": "a", "tier": "free", "weight": 9}, "invalid_value", None),
    ("POST", "tenants", {"name": "a\u0000", "tier": "free"}, "invalid_value", "name"),
    ("PATCH", "tenants/free-tenant", {}, "invalid_value", None),
    ("PATCH", "tenants/free-tenant", {"tier": "free", "disabled": True}, "invalid_value", None),
    ("POST", "tenants/free-tenant/keys", {"scopes": ["root"]}, "invalid_value", "scopes.0"),
    ("POST", "tenants/free-tenant/keys", {"scopes": []}, "invalid_value", "scopes"),
    ("POST", "tenants/free-tenant/keys", {"models": ["m"] * 65}, "invalid_value", "models"),
    ("POST", "tenants/free-tenant/keys", {"expires_at": "soon"}, "invalid_value", "expires_at"),
    (
        "POST",
        "tenants/free-tenant/keys",
        {"expires_at": "2026-01-01T00:00:00"},
        "invalid_value",
        "expires_at",
    ),
    (
        "POST",
        "tenants/free-tenant/keys",
        {"expires_at": "9999-12-31T23:59:59-12:00"},
        "invalid_value",
        "expires_at",
    ),
    (
        "POST",
        "tenants/free-tenant/keys",
        {"expires_at": "2020-01-01T00:00:00Z"},
        "invalid_value",
        None,
    ),
    ("POST", "tenants/free-tenant/keys", {"limits": {"rpm": 1}}, "invalid_value", "limits"),
    (
        "POST",
        "tenants/free-tenant/keys",
        {"limits": {"requests_per_minute": -1}},
        "invalid_value",
        "limits",
    ),
    (
        "PATCH",
        "limits/tenant/free-tenant",
        {"limits": {"tokens_per_day": 2**53}},
        "invalid_value",
        "limits",
    ),
    (
        "PATCH",
        "limits/tenant/free-tenant",
        {"limits": {"tokens_per_day": "1"}},
        "invalid_value",
        "limits",
    ),
    ("PATCH", "budgets/tenant/free-tenant", {"budgets": []}, "invalid_value", "budgets"),
    ("POST", "tiers", {"name": "t", "rank": 1}, "invalid_value", None),
    ("POST", "tiers", {"name": "t", "rank": 1.5}, "invalid_value", "rank"),
    ("POST", "tiers/apply", {"tiers": {}}, "invalid_value", "tiers"),
    ("POST", "tiers/apply", {"tiers": {"free": {"colour": 1}}}, "invalid_value", "tiers"),
    ("POST", "users", {"name": "a", "role": "king"}, "invalid_value", "role"),
    ("POST", "users", {"name": "a", "role": "viewer"}, "invalid_value", "password"),
    (
        "POST",
        "users",
        {"name": "a", "role": "viewer", "password": "short"},
        "invalid_value",
        "password",
    ),
    ("PATCH", "users/viewer", {"tenant": "free-tenant"}, "invalid_value", None),
    ("GET", "tenants?limit=0", None, "invalid_value", "limit"),
    ("GET", "tenants?limit=201", None, "invalid_value", "limit"),
    ("GET", "tenants?limit=1&limit=2", None, "invalid_value", "limit"),
    ("GET", "tenants?cursor=nonsense", None, "invalid_value", "cursor"),
    ("GET", "limits?cursor=WyJhIl0", None, "invalid_value", "cursor"),
    ("GET", "audit?cursor=WyJhIl0", None, "invalid_value", "cursor"),
    ("GET", "audit?since=yesterday", None, "invalid_value", "since"),
    ("GET", "audit?tenent=acme", None, "invalid_value", None),
    ("GET", "audit?actor=%00", None, "invalid_value", "actor"),
]


@pytest.mark.parametrize(("method", "path", "body", "code", "param"), BAD, ids=str)
async def test_a_bad_request_names_its_field(
    office: Office, method: str, path: str, body: Any, code: str, param: str | None
) -> None:
    answer = await office.ask(method, path, body)
    assert (answer.status_code, code_of(answer)) == (400, code), answer.text
    said = answer.json()["error"]
    assert (said["param"] or "").startswith(param or "") if param else said["param"] is None
    for sent in ("king", "colour", "tenent", "nonsense", "soon", "yesterday"):
        assert sent not in said["message"]


async def test_every_body_refuses_what_it_does_not_know() -> None:
    """No body of the admin API has a way to set what is not written in it."""

    def kinds(kind: type[AdminBody]) -> list[type[AdminBody]]:
        return [kind, *(inner for child in kind.__subclasses__() for inner in kinds(child))]

    found = kinds(AdminBody)
    assert len(found) > 15
    for kind in found:
        assert kind.model_config["extra"] == "forbid", kind
        assert kind.model_config["strict"] is True, kind


async def test_a_body_is_json_and_not_too_long(office: Office) -> None:
    client, path = office.people[TOKEN], f"{V1}/organisations"
    kind = {"content-type": "application/json"}
    for content, headers, status, code in (
        (b"{", kind, 400, "invalid_json"),
        (b"\xff", kind, 400, "invalid_json"),
        (b'{"name": "\\ud800"}', kind, 400, "invalid_json"),
        (b"name=a", {"content-type": "application/x-www-form-urlencoded"}, 400, "invalid_value"),
        (b'{"name": "a"}', {"content-type": "text/plain"}, 400, "invalid_value"),
        (b"[" * 100_000, kind, 400, "invalid_json"),
        (b'{"name": "' + b"a" * 300_000 + b'"}', kind, 413, "request_too_large"),
    ):
        answer = await client.post(path, content=content, headers=headers)
        assert (answer.status_code, code_of(answer)) == (status, code), content[:20]


LEDGER_ERRORS = [
    (NotFound("there is no tenant 'secret'"), Problem.NOT_FOUND),
    (AlreadyExists("there is a tenant 'secret'"), Problem.CONFLICT),
    (ChangedMeanwhile("tier secret"), Problem.CHANGED),
    (InvalidValue("a key needs a scope"), Problem.BAD_REQUEST),
    (DatabaseUnavailable("database secret"), Problem.DATABASE_UNAVAILABLE),
    (DatabaseReadOnly("database secret"), Problem.DATABASE_UNAVAILABLE),
    (SchemaOutdated("database secret"), Problem.DATABASE_UNAVAILABLE),
    (PepperUnusable("pepper secret"), Problem.DATABASE_UNAVAILABLE),
]


@pytest.mark.parametrize(("error", "problem"), LEDGER_ERRORS, ids=lambda v: type(v).__name__)
async def test_every_error_of_the_ledger_has_its_row(error: Any, problem: Problem) -> None:
    """And says nothing of tables, files and names but what its rule is."""
    answer = told(error)
    assert answer.problem is problem
    assert "secret" not in answer.message


async def test_a_ledger_that_does_not_answer_is_a_503(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hint when to come back; the login route too, and not as a wrong password."""

    async def no_answer(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("host and port of it")

    monkeypatch.setattr(Repository, "list_tenants", no_answer)
    monkeypatch.setattr(Repository, "find_login", no_answer)
    monkeypatch.setattr(Repository, "find_session", no_answer)
    login = {"user": "owner", "password": PASSWORD}
    for answer in (
        await office.ask("GET", "tenants"),
        await office.ask("GET", "tenants", who="viewer"),
        await office.ask("POST", "/admin/api/login", login, who="nobody"),
    ):
        assert (answer.status_code, code_of(answer)) == (503, "database_unavailable")
        assert "host" not in answer.text
        assert "retry-after" in answer.headers
