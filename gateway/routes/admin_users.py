"""Users of the admin API: who they are and what they may do; how they log in is elsewhere."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.core.clock import utc_now
from gateway.admin.bodies import PasswordBody, UserBody, UserChange
from gateway.admin.documented import ERRORS, documented
from gateway.admin.pages import PAGE_QUERY, one, page
from gateway.admin.reading import body_of, name, query_of
from gateway.admin.roles import V1
from gateway.admin.route import AdminRoute, caller_of, desk_of
from gateway.errors import bad_value
from tenants.values import UserRecord

router = APIRouter(route_class=AdminRoute, responses=ERRORS)


@router.get(f"{V1}/users", openapi_extra=documented(None, *PAGE_QUERY))
async def list_users(request: Request) -> Response:
    """List the users by name."""
    repository = desk_of(request).repository

    async def read(cursor: list[str], limit: int) -> list[UserRecord]:
        return await repository.list_users(after=cursor[0] if cursor else None, limit=limit)

    return await page(query_of(request, *PAGE_QUERY), read, lambda user: [user.name])


@router.post(f"{V1}/users", status_code=201, openapi_extra=documented(UserBody))
async def create_user(request: Request) -> Response:
    """Add a user, with a password, an OIDC subject, or both."""
    return one(await made_user(request, await body_of(request, UserBody)), 201)


async def made_user(request: Request, body: UserBody) -> UserRecord:
    """Add a user for the caller, whatever form the body came in."""
    if body.password is None and body.oidc_subject is None:
        raise bad_value("password", "A user needs a password or an oidc_subject.")
    desk = desk_of(request)
    digest = None if body.password is None else await desk.passwords.digest(body.password)
    return await desk.repository.create_user(
        body.name,
        body.role,
        utc_now(),
        tenant=body.tenant,
        password_digest=digest,
        oidc_subject=body.oidc_subject,
        by=caller_of(request).actor,
    )


@router.get(f"{V1}/users/{{user}}")
async def read_user(request: Request, user: str) -> Response:
    """Show one user, by name or id."""
    return one(await desk_of(request).repository.get_user(name(user)))


@router.patch(f"{V1}/users/{{user}}", openapi_extra=documented(UserChange))
async def change_user(request: Request, user: str) -> Response:
    """Give a user another role, or shut one out; all logins of that user end."""
    return one(await changed_user(request, user, await body_of(request, UserChange)))


async def changed_user(request: Request, user: str, body: UserChange) -> UserRecord:
    """Change a user for the caller, whatever form the body came in."""
    repository, by = desk_of(request).repository, caller_of(request).actor
    if (body.role is None) == (body.disabled is None) or (body.tenant and body.role is None):
        raise bad_value(None, "Send role (with tenant for a tenant-viewer), or disabled.")
    if body.disabled is not None:
        return await repository.set_user_disabled(name(user), body.disabled, utc_now(), by=by)
    assert body.role is not None
    return await repository.change_role(name(user), body.role, utc_now(), tenant=body.tenant, by=by)


@router.post(f"{V1}/users/{{user}}/password", openapi_extra=documented(PasswordBody))
async def set_password(request: Request, user: str) -> Response:
    """Give a user another password; all logins of that user end."""
    return one(await given_password(request, user, await body_of(request, PasswordBody)))


async def given_password(request: Request, user: str, body: PasswordBody) -> UserRecord:
    """Give a user another password for the caller, whatever form the body came in."""
    desk = desk_of(request)
    record = await desk.repository.get_user(name(user))  # before the work of a digest
    digest = await desk.passwords.digest(body.password)
    by = caller_of(request).actor
    return await desk.repository.set_password(record.id, digest, utc_now(), by=by)
