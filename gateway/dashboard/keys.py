"""Pages of keys: listed, made and shown once, changed, rotated, closed; nothing of their use.

Every change is the API's own: the same body, the same call, the same audit. A key in clear is in
the one answer that shows it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import KeyBody, KeyChange, LimitValues, RevocationBody, RotationBody
from gateway.admin.reading import query_of, row_id
from gateway.admin.route import desk_of
from gateway.dashboard.asked import asked_tenant
from gateway.dashboard.budgets import bars_of
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import go, model_name, own_url, page
from gateway.dashboard.meanwhile import CLASH, SHOWN, Compared, as_shown, compared
from gateway.dashboard.route import PageRoute
from gateway.dashboard.words import LIMIT_LABELS, OVERLAPS, SCOPE_LABELS, State, state_of_key
from gateway.routes.admin_keys import (
    changed_key,
    made_key,
    planned_revocation,
    revoked_key,
    revoked_keys,
    rotated_key,
    visible_key,
)
from gateway.routes.admin_limits import visible_limits
from gateway.routes.admin_tenants import visible_tenant
from tenants.limits import DIMENSIONS
from tenants.values import IssuedKey, KeyRecord, Scope, TenantRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ON_PAGE = 50
USES = ("name", "expires_at", "models", "environment")
# docs/admin.md, "How fast a key is closed": the slowest of 100 tries with nothing lost.
CLOSED_WITHIN = "a second"
CREATED = 201


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key of a list, with whose it is."""

    key: KeyRecord
    tenant: TenantRecord | None
    state: State


@router.get("/admin/keys")
async def list_keys(request: Request) -> Response:
    """List keys, the newest first, of all tenants or of one."""
    query = query_of(request, "tenant", "before")
    repository, now = desk_of(request).repository, utc_now()
    owner = await asked_tenant(request, query)
    if isinstance(owner, Response):
        return owner
    before = row_id(query["before"]) if query.get("before") else None
    tenant_id = None if owner is None else owner.id
    found = await repository.list_keys(tenant_id, before=before, limit=ON_PAGE + 1)
    tenants = await repository.tenants_by_id({key.tenant_id for key in found[:ON_PAGE]})
    rows = [
        KeyRow(key, tenants.get(key.tenant_id), state_of_key(key, tenants.get(key.tenant_id), now))
        for key in found[:ON_PAGE]
    ]
    onward = found[ON_PAGE - 1].id if len(found) > ON_PAGE else None
    return page(
        request,
        "keys/list.html",
        rows=rows,
        owner=owner,
        form=Form({"tenant": query.get("tenant", "")}),
        query=query,
        onward=onward,
        scope_labels=SCOPE_LABELS,
    )


@router.get("/admin/tenants/{tenant}/keys/new")
async def new_key(request: Request, tenant: str) -> Response:
    """Show the form of a new key."""
    query_of(request)
    owner = await visible_tenant(request, tenant)
    return _key_form(request, Form({"name": "default", "environment": "live"}), owner, None)


@router.post("/admin/tenants/{tenant}/keys/new")
async def make_key(request: Request, tenant: str) -> Response:
    """Make a key and show it, once: the answer itself holds it, no address and no log."""
    owner = await visible_tenant(request, tenant)
    form = await read_form(request, *USES, *DIMENSIONS, lists=("scopes",))
    limits = {name: form.number(name) for name in DIMENSIONS}
    given = {name: amount for name, amount in limits.items() if amount is not None}
    wanted: dict[str, Any] = {
        "name": form["name"],
        "environment": form["environment"],
        "expires_at": _end_of(form),
        "models": _models_of(form),
        "scopes": form.chosen("scopes") or None,
        "limits": given or None,
    }
    form.body(LimitValues, given)  # says what is wrong with a limit beside it
    body = None if form.errors else form.body(KeyBody, wanted)
    issued: IssuedKey | None = None
    if body is not None:
        with form.told(
            "expires_at" if body.expires_at and body.expires_at <= utc_now() else "name"
        ):
            issued = await made_key(request, owner.id, body)
    if issued is None:
        return _key_form(request, form, owner, None, 422)
    return _shown(request, issued, owner, None)


def _shown(
    request: Request, issued: IssuedKey, tenant: TenantRecord, old: KeyRecord | None
) -> Response:
    return page(
        request,
        "keys/shown.html",
        status=CREATED,
        issued=issued,
        tenant=tenant,
        old=old,
        base_url=own_url(request),
        model=model_name(request),
    )


def _key_form(
    request: Request,
    form: Form,
    tenant: TenantRecord | None,
    key: KeyRecord | None,
    status: int = 200,
    clashes: Mapping[str, str] | None = None,
) -> Response:
    return page(
        request,
        "keys/form.html",
        status=status,
        form=form,
        tenant=tenant,
        key=key,
        clashes=clashes or {},
        scope_labels=SCOPE_LABELS,
        limit_labels=LIMIT_LABELS,
    )


def _end_of(form: Form) -> str | None:
    """Return when a key ends, None for never: the field is a moment in UTC without saying so."""
    text = form["expires_at"]
    return f"{text}Z" if text and not text.endswith("Z") else text or None


def _models_of(form: Form) -> list[str] | None:
    """Return the models that are named, one a line; None for all."""
    lines = [line.strip() for line in form["models"].splitlines()]
    return [line for line in lines if line] or None


@router.get("/admin/keys/{key}")
async def show_key(request: Request, key: str) -> Response:
    """Show one key, by its id: what it may do, until when, and its limits."""
    query_of(request)
    record = await visible_key(request, key)
    desk, now = desk_of(request), utc_now()
    owner = await desk.repository.get_tenant(record.tenant_id)
    limits = list(await visible_limits(request, (Scope.KEY, record.id)))
    return page(
        request,
        "keys/key.html",
        key=record,
        tenant=owner,
        state=state_of_key(record, owner, now),
        is_live=record.is_live(now),
        limits=limits,
        bars=await bars_of(desk.ledger.database, limits, now),
        limit_labels=LIMIT_LABELS,
        scope_labels=SCOPE_LABELS,
    )


@router.get("/admin/keys/{key}/change")
async def show_change(request: Request, key: str) -> Response:
    """Show the form of what a key may be used for."""
    query_of(request)
    record = await visible_key(request, key)
    texts = _texts(record)
    form = Form(texts | {SHOWN: as_shown(texts)})
    form.lists["scopes"] = [scope.value for scope in record.scopes or ()]
    return _key_form(request, form, None, record)


@router.post("/admin/keys/{key}/change")
async def change_key(request: Request, key: str) -> Response:
    """Change what was changed in the form: what a key may be used for, and until when."""
    record = await visible_key(request, key)
    form = await read_form(request, *USES, SHOWN, lists=("scopes",))
    wanted: dict[str, Any] = {
        "name": form["name"],
        "expires_at": _end_of(form),
        "models": _models_of(form),
        "scopes": form.chosen("scopes") or None,
    }
    typed = {
        "name": form["name"],
        "expires_at": form["expires_at"].removesuffix("Z"),
        "models": _as_lines(wanted["models"]),
        "scopes": _as_lines(wanted["scopes"]),
    }
    diff = compared(form, typed, _texts(record))
    body = form.body(KeyChange, {name: wanted[name] for name in diff.changed})
    if body is not None and diff.clashes:
        return _clashed(request, form, record, diff)
    changed = None
    if body is not None and not diff.changed:
        return go(request, f"/admin/keys/{record.id}", "Nothing was changed.", "info")
    if body is not None:
        with form.told(
            "expires_at" if body.expires_at and body.expires_at <= utc_now() else "name"
        ):
            changed = await changed_key(request, record.id, body)
    if changed is None:
        return _key_form(request, form, None, record, 422)
    return go(request, f"/admin/keys/{record.id}", f"Key {changed.display} is changed.")


def _texts(key: KeyRecord) -> dict[str, str]:
    """Return what may be changed of a key as a form shows it; its end has no seconds there."""
    end = key.expires_at
    return {
        "name": key.name,
        "expires_at": "" if end is None else f"{end:%Y-%m-%dT%H:%M}",
        "models": _as_lines(key.models),
        "scopes": _as_lines(key.scopes),
    }


def _as_lines(names: Iterable[str] | None) -> str:
    """Return names in the order that the ledger has them, one a line."""
    return "\n".join(sorted(set(names or ())))


def _clashed(request: Request, form: Form, key: KeyRecord, diff: Compared) -> Response:
    """Show what others have set meanwhile beside what was typed."""
    now = _texts(key)
    form.values |= {name: now[name] for name in diff.untouched} | {SHOWN: as_shown(now)}
    if "scopes" in diff.untouched:
        form.lists["scopes"] = [scope.value for scope in key.scopes or ()]
    open_words = {"expires_at": "never", "models": "every model", "scopes": "everything"}
    clashes = {
        name: ", ".join(text.split("\n")) if text else open_words.get(name, "")
        for name, text in diff.clashes.items()
    }
    return _key_form(request, form, None, key, CLASH, clashes)


@router.get("/admin/keys/{key}/rotate")
async def ask_rotation(request: Request, key: str) -> Response:
    """Ask how long the old key lives on."""
    query_of(request)
    record = await visible_key(request, key)
    return _rotation_form(request, Form({"overlap_s": "86400"}), record)


@router.post("/admin/keys/{key}/rotate")
async def rotate_key(request: Request, key: str) -> Response:
    """Make a key's successor and show it, once."""
    record = await visible_key(request, key)
    form = await read_form(request, "overlap_s")
    body = form.body(RotationBody, {"overlap_s": form.number("overlap_s")})
    rotation = None
    if body is not None:
        with form.told("overlap_s"):
            rotation = await rotated_key(request, record.id, body)
    if rotation is None:
        return _rotation_form(request, form, record, 422)
    owner = await desk_of(request).repository.get_tenant(record.tenant_id)
    return _shown(request, rotation.issued, owner, rotation.old)


def _rotation_form(request: Request, form: Form, key: KeyRecord, status: int = 200) -> Response:
    overlaps = list(OVERLAPS.items())
    return page(request, "keys/rotate.html", status=status, form=form, key=key, overlaps=overlaps)


@router.get("/admin/keys/{key}/revoke")
async def ask_revocation(request: Request, key: str) -> Response:
    """Ask whether to close a key."""
    query_of(request)
    record = await visible_key(request, key)
    owner = await desk_of(request).repository.get_tenant(record.tenant_id)
    return page(request, "keys/revoke.html", key=record, tenant=owner, within=CLOSED_WITHIN)


@router.post("/admin/keys/{key}/revoke")
async def revoke_key(request: Request, key: str) -> Response:
    """Close a key."""
    record = await visible_key(request, key)
    await read_form(request)
    closed = await revoked_key(request, record.id)
    return go(
        request,
        f"/admin/keys/{closed.id}",
        f"Key {closed.display} is closed. Running gateways refuse it within {CLOSED_WITHIN}.",
    )


@router.get("/admin/tenants/{tenant}/revocation")
async def ask_to_close_all(request: Request, tenant: str) -> Response:
    """Step one of closing all keys of a tenant: which they are, and the code for step two."""
    query_of(request)
    return await _plan_page(request, await visible_tenant(request, tenant), Form())


@router.post("/admin/tenants/{tenant}/revocation")
async def close_all(request: Request, tenant: str) -> Response:
    """Step two: close the keys that were shown with the code."""
    owner = await visible_tenant(request, tenant)
    form = await read_form(request, "code")
    body = form.body(RevocationBody, {"code": form["code"]})
    closed = None
    if body is not None:
        with form.told("code"):
            closed = await revoked_keys(request, owner.id, body)
    if closed is None:
        return await _plan_page(request, owner, form, 422)
    return go(
        request,
        f"/admin/tenants/{owner.id}",
        f"{len(closed)} keys of {owner.name} are closed. Running gateways refuse them within "
        f"{CLOSED_WITHIN}.",
    )


async def _plan_page(
    request: Request, tenant: TenantRecord, form: Form, status: int = 200
) -> Response:
    plan = await planned_revocation(request, tenant.id)
    return page(
        request,
        "keys/revoke_all.html",
        status=status,
        form=form,
        tenant=tenant,
        plan=plan,
        within=CLOSED_WITHIN,
    )
