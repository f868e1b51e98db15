"""Limits and budgets of keys, tenants and organisations, as rows; what is used up is elsewhere.

A key's are kept under the id of its chain, so that they outlive a rotation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import case, delete, literal, select, tuple_, union
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.errors import InvalidValue
from tenants.limits import DIMENSIONS, changed_budgets, changed_limits
from tenants.models import BudgetRow, Limit
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import (
    MAX_ROWS,
    find_organisation,
    find_tenant,
    page_size,
    tell_change,
)
from tenants.repository.key_names import KeyNames
from tenants.values import (
    SYSTEM,
    Actor,
    Budget,
    Limits,
    Period,
    Scope,
    ScopeLimits,
    Unit,
)

MOST_MODEL = 256
BudgetChange = Budget | tuple[Period, Unit]
Target = tuple[Scope, str]
Owner = tuple[Scope, str, str]


async def limits_of(
    session: AsyncSession, targets: Iterable[Target] | None = None
) -> tuple[ScopeLimits, ...]:
    """Return what is set for these targets, the narrowest scope first; None: for all there are."""
    limit_query, budget_query = select(Limit), select(BudgetRow)
    if targets is not None:
        wanted = [(scope.value, target_id) for scope, target_id in targets]
        limit_query = limit_query.where(tuple_(Limit.scope, Limit.target_id).in_(wanted))
        budget_query = budget_query.where(tuple_(BudgetRow.scope, BudgetRow.target_id).in_(wanted))
    limits: dict[Owner, dict[str, int]] = {}
    for row in await session.scalars(limit_query):
        owner = (Scope(row.scope), row.target_id, row.model)
        limits.setdefault(owner, {})[row.dimension] = row.amount
    budgets: dict[Owner, list[Budget]] = {}
    for spent in await session.scalars(budget_query):
        budgets.setdefault((Scope(spent.scope), spent.target_id, spent.model), []).append(
            Budget(Period(spent.period), Unit(spent.unit), spent.amount, spent.alert_percent)
        )
    order = {scope: place for place, scope in enumerate(Scope)}
    found = sorted(limits.keys() | budgets.keys(), key=lambda o: (order[o[0]], *o[1:]))
    return tuple(
        ScopeLimits(
            scope=scope,
            target_id=target_id,
            limits=Limits(**limits.get((scope, target_id, model), {})),
            budgets=changed_budgets((), budgets.get((scope, target_id, model), [])),
            model=model,
        )
        for scope, target_id, model in found
    )


async def write_limits(session: AsyncSession, allowed: ScopeLimits) -> None:
    """Make the rows of one target say exactly this."""
    scope, target_id = allowed.scope.value, allowed.target_id
    for table in (Limit, BudgetRow):
        await session.execute(
            delete(table).where(
                table.scope == scope,
                table.target_id == target_id,
                table.model == allowed.model,
            )
        )
    for dimension in DIMENSIONS:
        amount = getattr(allowed.limits, dimension)
        if amount is not None:
            session.add(
                Limit(
                    scope=scope,
                    target_id=target_id,
                    model=allowed.model,
                    dimension=dimension,
                    amount=amount,
                )
            )
    for budget in allowed.budgets:
        session.add(
            BudgetRow(
                scope=scope,
                target_id=target_id,
                model=allowed.model,
                period=budget.period.value,
                unit=budget.unit.value,
                amount=budget.amount,
                alert_percent=budget.alert_percent,
            )
        )


class Allowances(KeyNames):
    """What is asked about limits and budgets; targets are named as operators name them."""

    async def get_limits(
        self, scope: Scope, target: str, *, tenant: str | None = None
    ) -> list[ScopeLimits]:
        """Return what is set for a key, a tenant or an organisation: for all models, then for each.

        With `tenant`, keys of others are not seen. Raises `NotFound`.
        """
        async with self._database.read() as session:
            target_id, _ = await self._target(session, scope, target, tenant)
            return list(await limits_of(session, [(scope, target_id)]))

    async def list_limits(
        self, *, after: Target | None = None, limit: int = MAX_ROWS
    ) -> list[ScopeLimits]:
        """Return what is set for up to `limit` (at most 1,000) targets, from behind `after` on.

        Targets of the narrowest scope come first, those of a scope by their id. A target with
        limits for several models has an entry for each, and all of them are on one page.
        """
        owners = union(
            select(Limit.scope, Limit.target_id), select(BudgetRow.scope, BudgetRow.target_id)
        ).subquery()
        places = {scope.value: place for place, scope in enumerate(Scope)}
        order = (case(places, value=owners.c.scope), owners.c.target_id)
        query = select(owners.c.scope, owners.c.target_id)
        query = query.order_by(*order).limit(page_size(limit))
        if after is not None:
            last = tuple_(literal(places[after[0].value]), literal(after[1]))
            query = query.where(tuple_(*order) > last)
        async with self._database.read() as session:
            targets = [(Scope(scope), name) for scope, name in await session.execute(query)]
            found = await limits_of(session, targets)
        rows = {target: row for row, target in enumerate(targets)}
        return sorted(found, key=lambda f: (rows[f.scope, f.target_id], f.model))

    async def list_limits_of(self, targets: Sequence[Target]) -> list[ScopeLimits]:
        """Return what is set for these targets, by id; a key's id is that of its chain."""
        async with self._database.read() as session:
            return list(await limits_of(session, targets))

    async def set_limits(
        self,
        scope: Scope,
        target: str,
        changes: Mapping[str, int | None],
        now: datetime,
        *,
        model: str = "",
        by: Actor = SYSTEM,
    ) -> ScopeLimits:
        """Change some limits of a target, None taking one away; raises `NotFound`, `InvalidValue`.

        Running gateways follow as they follow a revoked key.
        """
        async with self._database.write() as session:
            before, tenant_id = await self._before(session, scope, target, model)
            after = dataclasses.replace(before, limits=changed_limits(before.limits, changes))
            await _keep(session, "limits.set", before, after, tenant_id, now, by)
        return after

    async def set_budgets(
        self,
        scope: Scope,
        target: str,
        changes: Sequence[BudgetChange],
        now: datetime,
        *,
        model: str = "",
        by: Actor = SYSTEM,
    ) -> ScopeLimits:
        """Put budgets in the place of their like, a (period, unit) alone taking one away.

        Raises `NotFound`, `InvalidValue`.
        """
        async with self._database.write() as session:
            before, tenant_id = await self._before(session, scope, target, model)
            after = dataclasses.replace(before, budgets=changed_budgets(before.budgets, changes))
            await _keep(session, "budgets.set", before, after, tenant_id, now, by)
        return after

    async def _before(
        self, session: AsyncSession, scope: Scope, target: str, model: str
    ) -> tuple[ScopeLimits, str | None]:
        """Return what is set now, and the tenant whose it is; others who change it wait."""
        if len(model) > MOST_MODEL:
            raise InvalidValue(f"a model's name has at most {MOST_MODEL} characters")
        target_id, tenant_id = await self._target(session, scope, target, None)
        # There may be no row to lock yet; the counter that every change raises is always there.
        await tell_change(session)
        found = await limits_of(session, [(scope, target_id)])
        nothing = ScopeLimits(scope, target_id, model=model)
        return next((f for f in found if f.model == model), nothing), tenant_id

    async def _target(
        self, session: AsyncSession, scope: Scope, target: str, tenant: str | None
    ) -> tuple[str, str | None]:
        """Return the id that rows are kept under, and the tenant whose it is."""
        if scope is Scope.ORGANISATION:
            return (await find_organisation(session, target)).id, None
        if scope is Scope.TENANT:
            tenant_id = (await find_tenant(session, target)).id
            return tenant_id, tenant_id
        key = await self._key_row(session, target, tenant)
        return key.chain_id or key.id, key.tenant_id


async def _keep(
    session: AsyncSession,
    action: str,
    before: ScopeLimits,
    after: ScopeLimits,
    tenant_id: str | None,
    now: datetime,
    by: Actor,
) -> None:
    await write_limits(session, after)
    change = Change(action, after.scope.value, after.target_id, before, after, tenant_id)
    write_audit(session, by, now, change)
