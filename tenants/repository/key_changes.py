"""Changes what a key may be used for and until when; how keys are made and closed is elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum

from tenants.errors import InvalidValue
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import check_name, tell_change
from tenants.repository.key_names import KeyNames
from tenants.repository.rows import key_of
from tenants.values import SYSTEM, Actor, KeyRecord, Route

MAX_MODELS_PER_KEY = 64
MAX_MODEL_NAME = 256


class Keep(Enum):
    """Says that a field stays as it is, where None has a meaning of its own."""

    KEEP = "keep"


KEEP = Keep.KEEP


class KeyChanges(KeyNames):
    """What may be changed of a key that is there."""

    async def change_key(
        self,
        which: str,
        now: datetime,
        *,
        tenant: str | None = None,
        name: str | None = None,
        models: Sequence[str] | Keep | None = KEEP,
        scopes: Iterable[Route] | Keep | None = KEEP,
        expires_at: datetime | Keep | None = KEEP,
        by: Actor = SYSTEM,
    ) -> KeyRecord:
        """Change a key, named as for `revoke_key`; running gateways follow as for a revoked one.

        Raises `NotFound`; `InvalidValue` for a key that is over, or a bad name, list or date.
        """
        if name is not None:
            check_name("a key", name)
        if not isinstance(expires_at, Keep):
            check_end(expires_at, now)
        allowed = models if isinstance(models, Keep) else checked_models(models)
        routes = scopes if isinstance(scopes, Keep) else checked_scopes(scopes)
        async with self._database.write() as session:
            row = await self._key_row(session, which, tenant)
            await session.refresh(row, with_for_update=True)
            before = key_of(row)
            if not before.is_live(now):
                raise InvalidValue(f"key {row.id} is revoked or expired: make a new one instead")
            row.name = row.name if name is None else name
            row.models = row.models if isinstance(allowed, Keep) else allowed
            row.scopes = row.scopes if isinstance(routes, Keep) else routes
            row.expires_at = row.expires_at if isinstance(expires_at, Keep) else expires_at
            record = key_of(row)
            if record != before:
                change = Change("key.change", "key", row.id, before, record, row.tenant_id)
                write_audit(session, by, now, change)
                await tell_change(session)
        return record


def check_end(expires_at: datetime | None, now: datetime) -> None:
    """Raise `InvalidValue` for an end that is over."""
    if expires_at is not None and expires_at <= now:
        raise InvalidValue(f"a key cannot expire in the past ({expires_at.isoformat()})")


def checked_models(models: Sequence[str] | None) -> list[str] | None:
    """Return an allow-list of models as it is kept, None for all; raises `InvalidValue`."""
    if models is None:
        return None
    if not (
        0 < len(models) <= MAX_MODELS_PER_KEY and all(0 < len(m) <= MAX_MODEL_NAME for m in models)
    ):
        raise InvalidValue(f"a key may name 1 to {MAX_MODELS_PER_KEY} models")
    return sorted(set(models))


def checked_scopes(scopes: Iterable[Route] | None) -> list[str] | None:
    """Return scopes as they are kept, None for all routes; raises `InvalidValue`."""
    if scopes is None:
        return None
    wanted = set(scopes)
    routes: list[str] = [route for route in Route if route in wanted]
    if not routes:
        raise InvalidValue(f"a key needs at least one scope of: {', '.join(Route)}")
    return routes
