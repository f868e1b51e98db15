"""Pages of users and of one's own password: who may come to these pages, and as what.

Every change is the API's own: the same body, the same call, the same audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.admin.bodies import OwnPasswordBody, PasswordBody, UserBody, UserChange
from gateway.admin.reading import name as path_part
from gateway.admin.reading import query_of
from gateway.admin.route import caller_of, desk_of
from gateway.dashboard.forms import Form, read_form
from gateway.dashboard.frame import go
from gateway.dashboard.frame import page as framed
from gateway.dashboard.meanwhile import CLASH, SHOWN, as_shown, others_changed
from gateway.dashboard.route import PageRoute
from gateway.dashboard.tenants import shut_out
from gateway.dashboard.words import state_of_user
from gateway.errors import ApiError, Problem
from gateway.passwords import MIN_LENGTH
from gateway.routes.admin_login import changed_own_password
from gateway.routes.admin_users import changed_user, given_password, made_user
from tenants.errors import NotFound
from tenants.values import Role, UserRecord

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ON_PAGE = 50
ROLES = (
    (Role.OWNER.value, "owner: everything, users too"),
    (Role.OPERATOR.value, "operator: everything but users"),
    (Role.VIEWER.value, "viewer: sees everything, changes nothing"),
    (Role.TENANT_VIEWER.value, "tenant-viewer: sees one tenant, changes nothing"),
)


def page(request: Request, template: str, **values: Any) -> Response:
    """Return a page that belongs to the settings."""
    return framed(request, template, active="/admin/settings", **values)


@router.get("/admin/users")
async def list_users(request: Request) -> Response:
    """List the users by name."""
    query = query_of(request, "after")
    repository = desk_of(request).repository
    found = await repository.list_users(after=query.get("after") or None, limit=ON_PAGE + 1)
    shown = found[:ON_PAGE]
    tenants = await repository.tenants_by_id({u.tenant_id for u in shown if u.tenant_id})
    return page(
        request,
        "users/list.html",
        rows=[(user, state_of_user(user)) for user in shown],
        tenants={tenant_id: tenant.name for tenant_id, tenant in tenants.items()},
        onward=shown[-1].name if len(found) > ON_PAGE else None,
        is_later=bool(query.get("after")),
    )


@router.get("/admin/users/new")
async def new_user(request: Request) -> Response:
    """Show the form of a new user."""
    query_of(request)
    return _user_form(request, Form({"role": Role.VIEWER.value}), None)


@router.post("/admin/users/new")
async def make_user(request: Request) -> Response:
    """Add a user."""
    form = await read_form(request, "name", "role", "tenant", "password", "oidc_subject")
    wanted: dict[str, Any] = {
        "name": form["name"],
        "role": form["role"],
        "tenant": form["tenant"] or None,
        "password": form.values.get("password") or None,
        "oidc_subject": form["oidc_subject"] or None,
    }
    if wanted["password"] is None and wanted["oidc_subject"] is None:
        form.wrong("password", "A user needs a password or an OIDC subject.")
    body = form.body(UserBody, wanted)
    record = None
    if body is not None and not form.errors and await _fits(request, form):
        with form.told("name"):
            record = await made_user(request, body)
    if record is None:
        return _user_form(request, form, None, 422)
    return go(request, f"/admin/users/{record.id}", f"User {record.name} is there.")


async def _fits(request: Request, form: Form) -> bool:
    """True where role and tenant go together and the tenant is there; else it is said beside it."""
    needs = form["role"] == Role.TENANT_VIEWER
    if needs and not form["tenant"]:
        form.wrong("tenant", "A tenant-viewer sees one tenant: type its name.")
    elif form["tenant"] and not needs:
        form.wrong("tenant", "Only a tenant-viewer belongs to a tenant: leave this empty.")
    elif needs:
        try:
            await desk_of(request).repository.get_tenant(form["tenant"])
        except NotFound:
            form.wrong("tenant", "There is no tenant of that name.")
    return not form.errors


def _user_form(
    request: Request,
    form: Form,
    user: UserRecord | None,
    status: int = 200,
    clashes: Mapping[str, str] | None = None,
) -> Response:
    form.values.pop("password", None)
    return page(
        request,
        "users/form.html",
        status=status,
        form=form,
        user=user,
        clashes=clashes or {},
        roles=ROLES,
        min_length=MIN_LENGTH,
    )


async def _user(request: Request, user: str) -> UserRecord:
    return await desk_of(request).repository.get_user(path_part(user))


@router.get("/admin/users/{user}")
async def show_user(request: Request, user: str) -> Response:
    """Show one user."""
    query_of(request)
    record = await _user(request, user)
    tenant = None
    if record.tenant_id is not None:
        tenant = await desk_of(request).repository.get_tenant(record.tenant_id)
    return page(request, "users/user.html", user=record, state=state_of_user(record), tenant=tenant)


@router.get("/admin/users/{user}/change")
async def show_change(request: Request, user: str) -> Response:
    """Show the form of another role."""
    query_of(request)
    record = await _user(request, user)
    texts = await _texts(request, record)
    return _user_form(request, Form(texts | {SHOWN: as_shown(texts)}), record)


async def _texts(request: Request, user: UserRecord) -> dict[str, str]:
    """Return what may be changed of a user as a form shows it."""
    if user.tenant_id is None:
        return {"role": user.role.value, "tenant": ""}
    tenant = await desk_of(request).repository.get_tenant(user.tenant_id)
    return {"role": user.role.value, "tenant": tenant.name}


@router.post("/admin/users/{user}/change")
async def change_user(request: Request, user: str) -> Response:
    """Give a user another role; all logins of that user end."""
    record = await _user(request, user)
    form = await read_form(request, "role", "tenant", SHOWN)
    typed, now = {name: form[name] for name in ("role", "tenant")}, await _texts(request, record)
    body = form.body(UserChange, {"role": typed["role"], "tenant": typed["tenant"] or None})
    changed = None
    if body is not None and await _fits(request, form):
        if typed == now:
            return go(request, f"/admin/users/{record.id}", "Nothing was changed.", "info")
        # Role and tenant are one: whoever changed either of them meanwhile meant another user.
        clashes = {name: now[name] for name in others_changed(form, now)}
        if clashes:
            form.values[SHOWN] = as_shown(now)
            return _user_form(request, form, record, CLASH, clashes)
        with form.told("role"):
            changed = await changed_user(request, record.id, body)
    if changed is None:
        return _user_form(request, form, record, 422)
    return go(request, f"/admin/users/{record.id}", f"User {record.name} is {changed.role} now.")


@router.get("/admin/users/{user}/state")
async def ask_state(request: Request, user: str) -> Response:
    """Ask whether to shut a user out, or to let one in again."""
    query_of(request)
    return page(request, "users/state.html", user=await _user(request, user), form=Form())


@router.post("/admin/users/{user}/state")
async def change_state(request: Request, user: str) -> Response:
    """Shut a user out, or let one in again."""
    record = await _user(request, user)
    form = await read_form(request, "disabled")
    body = UserChange(disabled=shut_out(form))
    with form.told():
        await changed_user(request, record.id, body)
    if form.errors:
        return page(request, "users/state.html", status=422, user=record, form=form)
    said = "is shut out, and logged out everywhere" if body.disabled else "may log in again"
    return go(request, f"/admin/users/{record.id}", f"User {record.name} {said}.")


@router.get("/admin/users/{user}/password")
async def ask_password(request: Request, user: str) -> Response:
    """Show the form of another password for a user."""
    query_of(request)
    return _password_page(request, Form(), await _user(request, user))


@router.post("/admin/users/{user}/password")
async def set_password(request: Request, user: str) -> Response:
    """Give a user another password; all logins of that user end."""
    record = await _user(request, user)
    form = await read_form(request, "password")
    body = form.body(PasswordBody, {"password": form.values.get("password", "")})
    changed = None
    if body is not None:
        with form.told("password"):
            changed = await given_password(request, record.id, body)
    if changed is None:
        return _password_page(request, form, record, 422)
    return go(request, f"/admin/users/{record.id}", f"User {record.name} has another password now.")


def _password_page(
    request: Request, form: Form, user: UserRecord | None, status: int = 200
) -> Response:
    """Show the form of another password, of `user` or (None) of one's own."""
    return page(
        request,
        "users/password.html",
        status=status,
        form=form,
        user=user,
        has_password=caller_of(request).session is not None,
        min_length=MIN_LENGTH,
    )


@router.get("/admin/password")
async def ask_own_password(request: Request) -> Response:
    """Show the form of another password of one's own."""
    query_of(request)
    return _password_page(request, Form(), None)


@router.post("/admin/password")
async def set_own_password(request: Request) -> Response:
    """Give oneself another password; one's other logins end."""
    form = await read_form(request, "old", "new")
    body = form.body(OwnPasswordBody, {n: form.values.get(n, "") for n in ("old", "new")})
    if body is None:
        return _password_page(request, form, None, 422)
    changed = None
    try:
        with form.told("new"):
            changed = await changed_own_password(request, body)
    except ApiError as error:
        if error.problem not in (Problem.LOGIN_FAILED, Problem.RATE_LIMITED):
            raise
        said = "This is not your password." if error.problem is Problem.LOGIN_FAILED else ""
        form.wrong("old", said or error.message)
    if changed is None:
        return _password_page(request, form, None, 422)
    response = go(request, "/admin/password", "You have another password now.")
    await desk_of(request).log_in(request, response, changed, caller_of(request).actor)
    return response
