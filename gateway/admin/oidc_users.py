"""Finds the user of a provider's claims, and makes or moves one where the groups say so.

A user is known by the subject alone: a name or an address that equals another user's gives nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gateway.admin.oidc_settings import Grant, OidcConfig
from tenants.errors import AlreadyExists, InvalidValue
from tenants.repository import Repository
from tenants.values import Actor, UserRecord

_SUBJECT = re.compile(r"[\x20-\x7e]{1,255}")  # OpenID Connect Core 1.0, section 2
_NAME_CLAIMS = ("preferred_username", "email")


async def user_of(
    repository: Repository,
    config: OidcConfig,
    claims: Mapping[str, Any],
    now: datetime,
    by: Actor,
) -> UserRecord | None:
    """Return the user who may log in with these claims, None where nobody may.

    With grants, the claim decides at every login: a new user is made, one whose groups have
    changed is moved, one who has none of them left is not let in. Without, the ledger decides.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:
        return None
    user = await repository.find_user_by_subject(subject)
    if config.grants:
        grant = config.granted(claims)
        if grant is None:
            return None
        if user is None:
            user = await _made(repository, subject, grant, claims, now, by)
        elif user.disabled_at is None:
            user = await _moved(repository, user, grant, now, by)
    return None if user is None or user.disabled_at is not None else user


async def _made(
    repository: Repository,
    subject: str,
    grant: Grant,
    claims: Mapping[str, Any],
    now: datetime,
    by: Actor,
) -> UserRecord | None:
    names = [claims.get(claim) for claim in _NAME_CLAIMS]
    names.append("oidc-" + hashlib.sha256(subject.encode()).hexdigest()[:16])
    for name in names:
        if not isinstance(name, str):
            continue
        try:
            return await repository.create_user(
                name, grant.role, now, tenant=grant.tenant, oidc_subject=subject, by=by
            )
        # A name that is taken or cannot be one is no reason to be shut out: the next one.
        except (AlreadyExists, InvalidValue):
            continue
    # Or another worker has made this very user at the same moment.
    return await repository.find_user_by_subject(subject)


async def _moved(
    repository: Repository, user: UserRecord, grant: Grant, now: datetime, by: Actor
) -> UserRecord | None:
    tenant_id = None
    if grant.tenant is not None:
        tenant_id = (await repository.get_tenant(grant.tenant)).id
    if (user.role, user.tenant_id) == (grant.role, tenant_id):
        return user
    try:
        return await repository.change_role(user.id, grant.role, now, tenant=tenant_id, by=by)
    except InvalidValue:  # the last owner, who by the provider's word is one no more
        return None
