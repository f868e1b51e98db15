"""Keys of the admin API: made and shown once, listed, changed, rotated, closed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import (
    BudgetValue,
    KeyBody,
    KeyChange,
    LimitValues,
    RevocationBody,
    RotationBody,
)
from gateway.admin.documented import ERRORS, documented
from gateway.admin.pages import PAGE_QUERY, one, page, shown
from gateway.admin.reading import body_of, nothing_there, query_of, row_id
from gateway.admin.roles import V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import bad_value
from gateway.routes.admin_tenants import visible_tenant
from gateway.routes.json_response import json_response
from tenants.repository import RevocationPlan, Rotation
from tenants.values import Budget, IssuedKey, KeyRecord, Limits

router = APIRouter(route_class=AdminRoute, responses=ERRORS)


@router.get(f"{V1}/keys", openapi_extra=documented(None, *PAGE_QUERY))
async def list_keys(request: Request) -> Response:
    """List keys by what may be shown of them, the newest first."""
    return await _list(request, caller_of(request).tenant_id)


@router.get(f"{V1}/tenants/{{tenant}}/keys", openapi_extra=documented(None, *PAGE_QUERY))
async def list_keys_of(request: Request, tenant: str) -> Response:
    """List the keys of one tenant."""
    return await _list(request, (await visible_tenant(request, tenant)).id)


async def _list(request: Request, tenant_id: str | None) -> Response:
    repository = desk_of(request).repository

    async def read(cursor: list[str], limit: int) -> list[KeyRecord]:
        before = cursor[0] if cursor else None
        return await repository.list_keys(tenant_id, before=before, limit=limit)

    return await page(query_of(request, *PAGE_QUERY), read, lambda key: [key.id])


@router.post(f"{V1}/tenants/{{tenant}}/keys", status_code=201, openapi_extra=documented(KeyBody))
async def create_key(request: Request, tenant: str) -> Response:
    """Make a key; `key` of the answer is the only time that it is shown."""
    return _issued(await made_key(request, tenant, await body_of(request, KeyBody)))


async def made_key(request: Request, tenant: str, body: KeyBody) -> IssuedKey:
    """Make a key for the caller, whatever form the body came in."""
    owner = await visible_tenant(request, tenant)
    return await desk_of(request).repository.create_key(
        owner.id,
        utc_now(),
        body.name,
        expires_at=body.expires_at,
        models=body.models,
        scopes=body.scopes,
        limits=None if body.limits is None else Limits(**limit_changes(body.limits)),
        budgets=[new_budget(value) for value in body.budgets or ()],
        env=body.environment,
        by=caller_of(request).actor,
    )


def _issued(issued: IssuedKey, **more: Any) -> Response:
    return json_response({**shown(issued.record), "key": issued.plaintext, **more}, 201)


def limit_changes(values: LimitValues) -> dict[str, int | None]:
    """Return the limits that were sent."""
    return values.given


def new_budget(value: BudgetValue) -> Budget:
    """Return a budget to set; raises ApiError for one that is to be taken away."""
    if value.amount is None:
        raise bad_value("budgets", "A new key has no budget to take away.")
    return Budget(value.period, value.unit, value.amount, value.alert_percent)


@router.get(f"{V1}/keys/{{key}}")
async def read_key(request: Request, key: str) -> Response:
    """Show one key, by its id."""
    return one(await visible_key(request, key))


async def visible_key(request: Request, key: str) -> KeyRecord:
    """Return a key that the caller may see; another one is as unknown as none."""
    record = await desk_of(request).repository.get_key(row_id(key))
    mine = caller_of(request).tenant_id
    if mine is not None and record.tenant_id != mine:
        raise nothing_there()
    return record


@router.patch(f"{V1}/keys/{{key}}", openapi_extra=documented(KeyChange))
async def change_key(request: Request, key: str) -> Response:
    """Change what a key may be used for, and until when."""
    return one(await changed_key(request, key, await body_of(request, KeyChange)))


async def changed_key(request: Request, key: str, body: KeyChange) -> KeyRecord:
    """Change a key for the caller, whatever form the body came in."""
    if not body.given:
        raise bad_value(None, "Nothing is to be changed.")
    if "name" in body.given and body.name is None:
        raise bad_value("name", "'name' must be a text.")
    return await desk_of(request).repository.change_key(
        row_id(key), utc_now(), by=caller_of(request).actor, **body.given
    )


@router.post(f"{V1}/keys/{{key}}/rotate", status_code=201, openapi_extra=documented(RotationBody))
async def rotate_key(request: Request, key: str) -> Response:
    """Make the key's successor, shown once; the key itself ends after the overlap."""
    rotation = await rotated_key(request, key, await body_of(request, RotationBody))
    return _issued(rotation.issued, old=shown(rotation.old))


async def rotated_key(request: Request, key: str, body: RotationBody) -> Rotation:
    """Rotate a key for the caller, whatever form the body came in."""
    return await desk_of(request).repository.rotate_key(
        row_id(key),
        utc_now(),
        timedelta(seconds=body.overlap_s),
        by=caller_of(request).actor,
    )


@router.post(f"{V1}/keys/{{key}}/revoke")
async def revoke_key(request: Request, key: str) -> Response:
    """Close one key; closing a closed one changes nothing."""
    return one(await revoked_key(request, key))


async def revoked_key(request: Request, key: str) -> KeyRecord:
    """Close a key for the caller."""
    repository, by = desk_of(request).repository, caller_of(request).actor
    return await repository.revoke_key(row_id(key), utc_now(), by=by)


@router.get(f"{V1}/tenants/{{tenant}}/revocation")
async def plan_revocation(request: Request, tenant: str) -> Response:
    """Show the live keys of a tenant, with the code that confirms to close exactly these."""
    return one(await planned_revocation(request, tenant))


async def planned_revocation(request: Request, tenant: str) -> RevocationPlan:
    """Return which keys of a tenant would be closed, and the code that confirms it."""
    owner = await visible_tenant(request, tenant)
    return await desk_of(request).repository.plan_revocation(owner.id, utc_now())


@router.post(f"{V1}/tenants/{{tenant}}/revocation", openapi_extra=documented(RevocationBody))
async def revoke_all(request: Request, tenant: str) -> Response:
    """Close the keys that were shown with this code."""
    closed = await revoked_keys(request, tenant, await body_of(request, RevocationBody))
    return json_response({"object": "list", "data": shown(closed)})


async def revoked_keys(request: Request, tenant: str, body: RevocationBody) -> list[KeyRecord]:
    """Close the keys of a code for the caller, whatever form the body came in."""
    owner = await visible_tenant(request, tenant)
    return await desk_of(request).repository.revoke_all(
        owner.id, body.code, utc_now(), by=caller_of(request).actor
    )
