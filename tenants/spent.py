"""Adds up what an owner of limits has used since a moment, from the usage rows; it knows no limit.

A limiter asks this when a calendar window begins without a count: at the first request of a month,
or after its store was lost. Rows count by their arrival. A request with several choices has a row
for each, by its own id and `-<index>`: it counts once, whichever of its rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, func, or_, select

from tenants.database import Database
from tenants.models import ApiKey, Usage
from tenants.values import Scope

_ID_DIGITS = 32  # hexadecimal, at the end of every request's own id


@dataclass(frozen=True, slots=True)
class Used:
    """Requests (not rows), tokens, and what they cost in billionths of the currency."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    cost_nano: int


async def used_since(
    database: Database, scope: Scope, target_id: str, since: datetime, *, model: str = ""
) -> Used:
    """Return what a key (by its chain), a tenant or an organisation has used since `since`.

    With `model` only what was asked of that. Raises `DatabaseUnavailable`.
    """
    shared = _request_of_choice()
    query = select(
        # Most requests have one row: only those that share theirs have to be told apart.
        func.count() - func.count(shared) + func.count(shared.distinct()),
        func.coalesce(func.sum(Usage.prompt_tokens), 0),
        func.coalesce(func.sum(Usage.output_tokens), 0),
        func.coalesce(func.sum(Usage.cost_nano), 0),
    ).where(Usage.arrival >= since, _is_of(scope, target_id))
    if model:
        query = query.where(Usage.model == model)
    async with database.read() as session:
        sums = (await session.execute(query)).one()
    return Used(*(int(amount) for amount in sums))


def _request_of_choice() -> ColumnElement[str | None]:
    """Return the part of a row's id that all choices of its request share; null where it is one."""
    stem = func.rtrim(Usage.request_id, "0123456789")
    # The length: digits alone do not tell an index from the end of an id.
    is_choice = and_(stem.like("%-"), func.length(stem) > _ID_DIGITS)
    return case((is_choice, stem))


def _is_of(scope: Scope, target_id: str) -> ColumnElement[bool]:
    if scope is Scope.TENANT:
        return Usage.tenant_id == target_id
    if scope is Scope.ORGANISATION:
        return Usage.organisation_id == target_id
    chain = or_(ApiKey.chain_id == target_id, ApiKey.id == target_id)
    return Usage.key_id.in_(select(ApiKey.id).where(chain))
